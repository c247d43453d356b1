"""No kernel computes with a loaded value before casting it, and the lint that says so can see."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

KERNELS = Path(__file__).parents[2] / "kernels" / "src" / "twolane" / "kernels"


def _lint_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bf16_lint", Path(__file__).with_name("bf16_lint.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they're built.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


LINT = _lint_module()
HEADER = "@triton.jit\ndef kernel(p, o, n, UPCAST_DOT: tl.constexpr):\n"


def _kernel(*lines: str) -> str:
    return HEADER + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.stem)
def test_no_kernel_computes_with_raw_values(path: Path) -> None:
    """A finding names the line, the kernel and the use."""
    assert LINT.lint(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "lines",
    [
        ("x = tl.load(p)", "tl.store(o, (x + 1.0).to(tl.float32))"),
        ("x = tl.load(p) * 2.0",),
        ("x = tl.load(p)", "y = tl.maximum(x, 0.0)"),
        ("x = tl.load(p)", "x += 1.0"),
        ("x = tl.load(p)", "y = -x"),
        ("x = tl.load(p)", "y = tl.where(x > 0.0, 1.0, 0.0)"),
        ("x = tl.load(p)", "y = tl.dot(x, tl.trans(x))"),
        ("x = tl.load(p)", "z = tl.sum(x, axis=0)"),
        ("x = 0.0", "for i in range(n):", "    y = x + 1.0", "    x = tl.load(p)"),
        ("if n > 0:", "    x = tl.load(p)", "else:", "    x = tl.load(p).to(tl.float32)", "y = x * 2.0"),
        ("x = tl.load(p).to(tl.float32)", "y = x.to(tl.bfloat16)", "z = y + y"),
        ("x = tl.load(p)", "if UPCAST_DOT:", "    x = x.to(tl.float32)", "y = x + 1.0"),
    ],
)
def test_raw_arithmetic_is_found(lines: tuple[str, ...]) -> None:
    """Every way in which bit patterns could be computed with."""
    assert LINT.lint(_kernel(*lines))


@pytest.mark.parametrize(
    "lines",
    [
        ("x = tl.load(p).to(tl.float32)", "tl.store(o, (x + 1.0).to(o.dtype.element_ty))"),
        ("x = tl.load(p)", "tl.store(o, x)"),
        ("x = tl.load(p)", "y = x.to(tl.float32) * 2.0"),
        (
            "q = tl.load(p)",
            "if UPCAST_DOT:",
            "    q = q.to(tl.float32)",
            "w = tl.dot(q, tl.trans(q))",
            "a = tl.dot(w.to(q.dtype), q)",
            "y = w * 2.0 + a",
        ),
    ],
)
def test_cast_values_pass(lines: tuple[str, ...]) -> None:
    """The patterns that the kernels use."""
    assert LINT.lint(_kernel(*lines)) == []
