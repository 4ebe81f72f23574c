"""Compile the engine's kernels into the wheel, where there is a C compiler.

A wheel made without one is the same package for every machine, and compiles when an engine is first opened; agents,
which host nothing, never need it. A checkout (an editable install) compiles then, too: its sources change.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "meshnode/engine/native"


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        build = self._build_module()
        try:
            made = build.compile_all(Path(self.directory) / "kernels")
        except build.CannotCompile as reason:
            self.app.display_warning(f"the wheel carries no kernels: {reason}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["force_include"].update({str(library): f"{NATIVE}/{library.name}" for library in made})

    def _build_module(self) -> Any:
        """By its path: the package is not installed yet, and its imports need not be."""
        spec = importlib.util.spec_from_file_location("kernels_build", Path(self.root) / NATIVE / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
