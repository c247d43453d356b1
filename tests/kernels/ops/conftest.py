"""Fixtures of the kernel tests: the device, and uninitialised memory that shows itself.

The same tests run interpreted on a CPU and compiled on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_tensors_hold_nan() -> Iterator[None]:
    """Fill ``torch.empty`` with NaN (or the largest integer), so that reading what nobody wrote fails a
    test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    before, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        True,
    )
    torch.manual_seed(0)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run in this process."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


# Kernel and reference both compute in float32 and round once at the end.
_RELATIVE_ERROR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture
def assert_near() -> Callable[..., None]:
    """``assert_near(actual, expected, looser=1.0)``: values, dtype and shape; a NaN anywhere fails."""

    def compare(actual: torch.Tensor, expected: torch.Tensor, *, looser: float = 1.0) -> None:
        tolerance = _RELATIVE_ERROR[expected.dtype] * looser
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    return compare


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each element type the engine uses."""
    return cast(torch.dtype, request.param)
