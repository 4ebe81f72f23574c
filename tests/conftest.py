"""What every test gets: hypothesis without chance and without a deadline, and the `gpu` marker.

The machine that runs this is shared, so a deadline would fail good tests; and a test that fails once in a hundred runs
teaches everyone to run it again, so examples are the same each time. `HYPOTHESIS_PROFILE=explore` rolls new ones.
"""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, database=None, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and say so. torch is asked only if there is such a test: it loads
    slowly."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch finds none on this machine"))
