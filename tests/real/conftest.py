"""The real model, pulled once into the ordinary data folder: 93 MB the first time, nothing afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from meshnode.models import store

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in host.py: on a busy machine spinning threads cost minutes


@pytest.fixture(scope="session")
def installed() -> store.Installed:
    """The converted model, with its digest."""
    data = Path(os.environ.get("MESHNODE_DATA") or platformdirs.user_data_dir("meshnode"))
    return store.Models(data / "models").pull("smollm2-135m")


@pytest.fixture(scope="session")
def model(installed: store.Installed) -> Path:
    """The folder of the converted model."""
    return installed.folder
