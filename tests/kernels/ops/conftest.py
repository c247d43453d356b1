"""Fixtures of the kernel tests: the device, and uninitialised memory that shows itself.

The same tests run interpreted on a CPU and compiled on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from twolane.kernels.paged_kv import KvPages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Filling memory needs torch's deterministic mode, whose complaints on a GPU aren't failures of these
    tests."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning"))


@pytest.fixture(autouse=True)
def _fresh_tensors_hold_nan() -> Iterator[None]:
    """Fill ``torch.empty`` with NaN (or the largest integer), so that reading what nobody wrote fails a
    test."""
    # Absent from torch's type stubs.
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
    settings.fill_uninitialized_memory = before
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


@pytest.fixture
def make_kv(device: torch.device) -> Callable[..., KvPages]:
    """``make_kv(context_lens, (n_kv_heads, page_tokens, head_dim), dtype)``: layer 1 of a two-layer pool.

    Pages are in shuffled order. All that no kernel may use is NaN or an impossible page: other layers,
    unused pages, tokens past the context, table entries past the last page.
    """

    def build(context_lens: list[int], shape: tuple[int, int, int], dtype: torch.dtype) -> KvPages:
        n_kv_heads, page_tokens, head_dim = shape
        counts = [-(-context // page_tokens) for context in context_lens]
        order = torch.randperm(sum(counts) + 2).tolist()
        pool = torch.full((len(order), 2, 2, n_kv_heads, page_tokens, head_dim), float("nan"), dtype=dtype)
        table = torch.full((len(context_lens), max([*counts, 1]) + 1), 2**31 - 1, dtype=torch.int32)
        for row, (context, count) in enumerate(zip(context_lens, counts, strict=True)):
            for index in range(count):
                page = order.pop()
                table[row, index] = page
                used = min(page_tokens, context - index * page_tokens)
                pool[page, 1, :, :, :used] = torch.randn(2, n_kv_heads, used, head_dim).to(dtype)
        pool = pool.to(device)
        lengths = torch.tensor(context_lens, dtype=torch.int32, device=device)
        return KvPages(pool[:, 1, 0], pool[:, 1, 1], table.to(device), lengths)

    return build
