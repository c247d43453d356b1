"""The compile gate passes for every kernel on sm_80 and sm_90, and fails where it should."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from twolane.kernels.compile_gate import Compiled, violations
from twolane.kernels.compile_gate_cases import Budget, KernelCase, kernel_cases

_TIMEOUT_S = 420
KERNELS = Path(__file__).parents[2] / "kernels" / "src" / "twolane" / "kernels"


def _case(budget: Budget) -> KernelCase:
    return replace(kernel_cases(90)[0], budget=budget)


def _run(*arguments: str, interpret: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "twolane.kernels.compile_gate", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


@pytest.mark.timeout(_TIMEOUT_S + 10)
@pytest.mark.parametrize("arch", ["80", "90"])
def test_every_kernel_compiles_within_its_budget(arch: str) -> None:
    """No GPU is needed; the table is the failure message."""
    done = _run("--arch", arch)
    assert done.returncode == 0, done.stdout + done.stderr


def test_gate_refuses_to_run_interpreted() -> None:
    """Under the interpreter nothing would be compiled, which must not look like success."""
    done = _run(interpret="1")
    assert done.returncode == 2
    assert "unset TRITON_INTERPRET" in done.stderr


@pytest.mark.parametrize(
    ("compiled", "message"),
    [
        (Compiled(65, 0, 0, {"HGMMA": 1}), "65 registers, at most 64"),
        (Compiled(64, 8, 0, {"HGMMA": 1}), "8 bytes spilled"),
        (Compiled(64, 0, 300 * 1024, {"HGMMA": 1}), "bytes of shared memory"),
        (Compiled(64, 0, 0, {"HMMA": 9}), "no HGMMA instruction"),
    ],
)
def test_each_violation_is_reported(compiled: Compiled, message: str) -> None:
    """Registers, spills, shared memory and tensor-core instructions, one at a time."""
    case = _case(Budget(64, 256 * 1024, {90: ("HGMMA",)}))
    (found,) = violations(case, 90, compiled)
    assert message in found


def test_a_result_within_budget_has_no_violation() -> None:
    """Reaching a limit isn't breaking it."""
    case = _case(Budget(64, 1024, {90: ("HGMMA",)}))
    assert violations(case, 90, Compiled(64, 0, 1024, {"HGMMA": 2})) == []


def test_every_kernel_has_a_case() -> None:
    """A kernel launched from the host but absent from the gate would go unchecked."""
    launched = {
        line.split("[")[0].strip()
        for path in KERNELS.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("_") and "_kernel[" in line
    }
    assert launched == {case.kernel.__name__ for case in kernel_cases(90)}
