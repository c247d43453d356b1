"""Compiles a Python function for this processor, and keeps the machine code on disk for the next process.

Decorator of the functions in `compiled`. The folder carries a digest of their sources, because numba looks at
one file of a function only; code for another processor or numba is never taken, numba sees to that.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
from numba.core import config as numba_config

CACHE_FOLDER_VARIABLE = "TWOLANE_COMPILED_CACHE_DIR"
# Sums may be taken in any order and products fused; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "nsz", "arcp"}
_SOURCES = ("compiled.py", "compiled_cache.py", "vector_parts.py")

# Its types leave out some of its options.
_njit: Any = numba.njit
config: Any = numba_config
_PART = {"forceinline": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

P = ParamSpec("P")
R = TypeVar("R")


def compiled(signature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles for numba's `signature` at once, without the interpreter's lock; from disk where it can."""

    def compile_now(function: Callable[P, R]) -> Callable[P, R]:
        with _cache_folder() as cached:
            made: Callable[P, R] = _njit(
                signature, nogil=True, error_model="numpy", fastmath=_FAST, cache=cached
            )(function)
        return made

    return compile_now


def part(function: Callable[P, R]) -> Callable[P, R]:
    """Marks a function that goes into the compiled functions that call it; Python can't call it."""
    made: Callable[P, R] = _njit(**_PART, fastmath=_FAST)(function)
    return made


def part_without_nan(function: Callable[P, R]) -> Callable[P, R]:
    """As `part`, for sums and maxima that meet no NaN: only then a maximum becomes vectors."""
    made: Callable[P, R] = _njit(**_PART, fastmath=_FAST | {"nnan"})(function)
    return made


def cache_folder() -> Path:
    """Where machine code is kept: TWOLANE_COMPILED_CACHE_DIR, or a folder of the user's."""
    root = os.environ.get(CACHE_FOLDER_VARIABLE)
    base = Path(root) if root else Path.home() / ".cache" / "twolane" / "compiled"
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return base / digest.hexdigest()[:16]


@contextmanager
def _cache_folder() -> Iterator[bool]:
    """Points numba at the folder; yields whether it can be written, for without it all compile anew."""
    before = config.CACHE_DIR
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            writable = True
    except (OSError, RuntimeError):
        writable = False
    else:
        config.CACHE_DIR = str(folder)
    try:
        yield writable
    finally:
        config.CACHE_DIR = before
