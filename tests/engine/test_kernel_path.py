"""Starts the kernel path's tests under Triton's interpreter, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs compiled, in this process")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_kernel_path_passes_its_tests_under_the_interpreter() -> None:
    """The variable must be set before Triton is imported, and would change other tests here."""
    folder = Path(__file__).parent / "kernel_path"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(folder)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
