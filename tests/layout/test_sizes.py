"""Files, functions and parameter lists stay small enough to read; an exception needs a reason."""

from __future__ import annotations

from tests.layout.tree import ROOT, Function, functions, python_files

FILE_LINES = 400
FUNCTION_LINES = 50
KERNEL_LINES = 110
PARAMETERS = 6

# "path" or "path::function" -> why it may be larger than the limit.
EXCEPTIONS: dict[str, str] = {}


def _line_count(name: str) -> int:
    return len((ROOT / name).read_text(encoding="utf-8").splitlines())


def _key(function: Function) -> str:
    return f"{function.path}::{function.name}"


def _long_files() -> dict[str, int]:
    return {name: count for name in python_files() if (count := _line_count(name)) > FILE_LINES}


def _long_functions() -> dict[str, int]:
    limits = {True: KERNEL_LINES, False: FUNCTION_LINES}
    return {_key(f): f.lines for f in functions() if f.lines > limits[f.is_kernel]}


def _wide_functions() -> dict[str, int]:
    """Tests ask for fixtures by parameter, and kernels can't take a dataclass: both are left out."""
    ours = [f for f in functions() if not f.path.startswith(("tests/", "kernels/"))]
    return {_key(f): f.parameters for f in ours if f.parameters > PARAMETERS}


def _offenders(measured: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in measured.items() if name not in EXCEPTIONS}


def test_no_file_is_longer_than_the_limit() -> None:
    """A file holds one concept."""
    assert _offenders(_long_files()) == {}


def test_no_function_is_longer_than_the_limit() -> None:
    """A function fits on a screen; a Triton kernel may take two."""
    assert _offenders(_long_functions()) == {}


def test_no_function_takes_more_parameters_than_the_limit() -> None:
    """After six comes a dataclass."""
    assert _offenders(_wide_functions()) == {}


def test_every_exception_is_needed_and_has_a_reason() -> None:
    """An exception goes when its cause goes."""
    needed = _long_files() | _long_functions() | _wide_functions()
    assert [name for name, why in EXCEPTIONS.items() if name not in needed or not why.strip()] == []
