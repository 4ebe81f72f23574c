"""The compiled kernels as Python sees them: structures, and four functions.

`load` takes the best variant that this processor can run: from the package (a wheel carries them), from the user's
cache, or freshly compiled into it. The structures mirror those of forward.c, field by field.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from ctypes import POINTER, c_float, c_int, c_int32, c_void_p
from pathlib import Path

import platformdirs

from meshnode import errors
from meshnode.engine.native import build


class Matrix(ctypes.Structure):
    """A packed int8 matrix; pointers into arrays that somebody else keeps alive."""

    _fields_ = (
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("in_padded", c_int32),
        ("out_padded", c_int32),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("bias", c_void_p),
        ("gain", c_void_p),
    )


class Model(ctypes.Structure):
    _fields_ = (
        ("layers", c_int32),
        ("hidden", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("vocabulary", c_int32),
        ("window", c_int32),
        ("planes", c_int32),
        ("eps", c_float),
        ("layer", POINTER(Layer)),
        ("embedding", Matrix),
        ("head", Matrix),
        ("norm", c_void_p),
        ("turns", c_void_p),
        ("pool", c_void_p),
    )


class Pass(ctypes.Structure):
    _fields_ = (
        ("rows", c_int32),
        ("segments", c_int32),
        ("wanted", c_int32),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("first_row", c_void_p),
        ("first_page", c_void_p),
        ("pages", c_void_p),
        ("wanted_rows", c_void_p),
        ("logits", c_void_p),
    )


@functools.cache
def load(name: str = "") -> ctypes.CDLL:
    """The library of the named variant, or of the best one. Raises ConfigError."""
    reasons = []
    for of in build.variants():
        if name not in ("", of.name) or not of.needs <= processor_flags():
            continue
        try:
            return _opened(_find(of))
        except (build.CannotCompile, OSError) as error:
            reasons.append(f"{of.name}: {error}")
    raise errors.ConfigError(
        f"the kernels of the exact classes are not here ({'; '.join(reasons) or 'this processor cannot run them'})",
        hint="install a C compiler (Debian: gcc, libc6-dev), or serve numeric class f32",
    )


def runnable() -> list[str]:
    """Names of the variants that this processor can run, the best first."""
    return [of.name for of in build.variants() if of.needs <= processor_flags()]


def _find(of: build.Variant) -> Path:
    wanted = build.file_name(of)
    beside = Path(build.__file__).parent / wanted
    if beside.exists():
        return beside
    return build.compile_one(of, Path(platformdirs.user_cache_dir("meshnode")) / "kernels")


def _opened(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.meshnode_open.restype = c_void_p
    found.meshnode_open.argtypes = (POINTER(Model), c_int, c_int, c_int)
    found.meshnode_close.restype = None
    found.meshnode_close.argtypes = (c_void_p,)
    found.meshnode_forward.restype = c_int
    found.meshnode_forward.argtypes = (c_void_p, POINTER(Pass))
    found.meshnode_page.restype = None
    found.meshnode_page.argtypes = (c_int, c_int, c_int, c_void_p, c_void_p, c_int)
    found.meshnode_pack.restype = None
    found.meshnode_pack.argtypes = (c_void_p, c_int, c_int, c_void_p, c_int)
    return found


@functools.cache
def processor_flags() -> frozenset[str]:
    """What the processor says that it can do; empty where there is no /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    name = "flags" if platform.machine() == "x86_64" else "Features"
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith(name)), "").split())
