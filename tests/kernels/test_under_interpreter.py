"""Runs the kernel tests of ``ops/`` under Triton's interpreter, each file in a process of its own.

Triton chooses between compiler and interpreter when a kernel is imported; setting that here would change
every other test that imports one. On a CUDA machine ``ops/`` runs compiled as well, in the ordinary way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(Path(__file__).with_name("ops").glob("test_*.py"))
_TIMEOUT_S = 420
_NO_TESTS_RAN = 5


@pytest.mark.timeout(_TIMEOUT_S + 10)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem.removeprefix("test_"))
def test_kernel_matches_its_reference(path: Path) -> None:
    """The inner run's report is the failure message."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert done.returncode != _NO_TESTS_RAN, f"nothing was collected from {path.name}:\n{done.stdout}"
    assert done.returncode == 0, done.stdout + done.stderr
