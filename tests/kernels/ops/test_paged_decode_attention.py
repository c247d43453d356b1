"""paged_decode_attention against its reference: odd groups, dimensions and pages, skewed batches, windows,
splits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twolane.kernels.paged_decode_attention import max_splits, paged_decode_attention
from twolane.kernels.paged_decode_attention_reference import paged_decode_attention_reference
from twolane.kernels.paged_kv import KvPages


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "page_tokens"),
    [(4, 2, 64, 16), (7, 1, 128, 16), (3, 3, 40, 5), (32, 1, 16, 1), (10, 2, 8, 64)],
)
def test_heads_dimensions_and_pages_of_odd_sizes(
    device: torch.device,
    dtype: torch.dtype,
    make_kv: Callable[..., KvPages],
    assert_near: Callable[..., None],
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    page_tokens: int,
) -> None:
    """Contexts of one token, of a page and a bit, and of several splits in one batch."""
    kv = make_kv([1, 17, 150], (n_kv_heads, page_tokens, head_dim), dtype)
    q = torch.randn(3, n_heads, head_dim, device=device).to(dtype)
    assert_near(paged_decode_attention(q, kv), paged_decode_attention_reference(q, kv), looser=2)


@pytest.mark.parametrize("lengths", [[900], [700, 3, 0, 65], [0, 0]])
def test_skewed_batches_and_padded_rows(
    device: torch.device,
    make_kv: Callable[..., KvPages],
    assert_near: Callable[..., None],
    lengths: list[int],
) -> None:
    """One long sequence takes more splits than short ones; a row without context gives zeros, never NaN."""
    kv = make_kv(lengths, (2, 16, 32), torch.float32)
    q = torch.randn(len(lengths), 4, 32, device=device)
    actual = paged_decode_attention(q, kv)
    assert_near(actual, paged_decode_attention_reference(q, kv))
    for row, length in enumerate(lengths):
        if length == 0:
            assert actual[row].abs().max() == 0


@pytest.mark.parametrize("window", [1, 50, 64, 1000])
def test_window_limits_the_attended_tokens(
    device: torch.device, make_kv: Callable[..., KvPages], assert_near: Callable[..., None], window: int
) -> None:
    """Windows inside a block, at its edge, and longer than every context."""
    kv = make_kv([300, 20, 64], (1, 16, 64), torch.float32)
    q = torch.randn(3, 2, 64, device=device)
    expected = paged_decode_attention_reference(q, kv, window_tokens=window)
    assert_near(paged_decode_attention(q, kv, window_tokens=window), expected)


def test_large_scores_and_a_given_scale_stay_exact(
    device: torch.device, make_kv: Callable[..., KvPages], assert_near: Callable[..., None]
) -> None:
    """Scores in the hundreds would overflow without the running peak, in splits and in their merge."""
    kv = make_kv([400], (1, 16, 32), torch.float32)
    q = torch.randn(1, 2, 32, device=device) * 40
    expected = paged_decode_attention_reference(q, kv, scale=0.5)
    assert_near(paged_decode_attention(q, kv, scale=0.5), expected, looser=10)


def test_queries_may_be_a_slice_of_a_packed_projection(
    device: torch.device, make_kv: Callable[..., KvPages], assert_near: Callable[..., None]
) -> None:
    """Only heads must be adjacent; tokens may be any distance apart, also in the output."""
    kv = make_kv([30, 40], (1, 16, 32), torch.float32)
    q = torch.randn(2, 6, 32, device=device)[:, :4]
    wide = torch.zeros(2, 7, 32, device=device)
    paged_decode_attention(q, kv, out=wide[:, 1:5])
    assert_near(wide[:, 1:5], paged_decode_attention_reference(q, kv))
    assert wide[:, 5:].abs().sum() == 0


def test_splits_depend_on_batch_and_capacity_only() -> None:
    """A full batch isn't split, one sequence is split up to the limit, a short table bounds the splits."""
    assert max_splits(528, 256 * 8, 8192, 64) == 1
    assert max_splits(528, 64 * 8, 8192, 64) == 4
    assert max_splits(528, 8, 131072, 64) == 64
    assert max_splits(528, 8, 128, 64) == 2


def test_bad_input_is_refused(device: torch.device, make_kv: Callable[..., KvPages]) -> None:
    """Head counts, dimensions, table type and window are named."""
    kv = make_kv([5], (2, 16, 32), torch.float32)
    q = torch.zeros(1, 4, 32, device=device)
    wide_table = KvPages(kv.k_pages, kv.v_pages, kv.page_table.long(), kv.context_lens)
    cases: list[tuple[torch.Tensor, KvPages, str]] = [
        (torch.zeros(1, 3, 32, device=device), kv, "aren't a multiple"),
        (torch.zeros(1, 4, 30, device=device), kv, "multiple of 8"),
        (torch.zeros(2, 4, 32, device=device), kv, "q must have shape"),
        (q.half(), kv, "k_pages must be float16"),
        (q, wide_table, "page_table must be int32"),
    ]
    for queries, pages, message in cases:
        with pytest.raises(ValueError, match=message):
            paged_decode_attention(queries, pages)
    with pytest.raises(ValueError, match="at least 1"):
        paged_decode_attention(q, kv, window_tokens=0)
