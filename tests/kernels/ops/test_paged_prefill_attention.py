"""paged_prefill_attention against its reference: cached prefixes, odd groups and pages, windows, padded
buckets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twolane.kernels.paged_kv import KvPages
from twolane.kernels.paged_prefill_attention import paged_prefill_attention
from twolane.kernels.paged_prefill_attention_reference import paged_prefill_attention_reference


def _starts(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim", "page_tokens"),
    [(4, 2, 64, 16), (7, 1, 128, 16), (2, 2, 40, 5), (16, 1, 16, 1), (6, 2, 96, 64), (4, 2, 64, 64)],
)
def test_new_tokens_see_their_prefix_and_each_other(
    device: torch.device,
    dtype: torch.dtype,
    make_kv: Callable[..., KvPages],
    assert_near: Callable[..., None],
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    page_tokens: int,
) -> None:
    """In one batch: no prefix, a long prefix under few tokens, a single token, a prompt of several blocks."""
    new, contexts = [9, 5, 1, 70], [9, 140, 33, 90]
    kv = make_kv(contexts, (n_kv_heads, page_tokens, head_dim), dtype)
    starts = _starts(new, device)
    q = torch.randn(sum(new), n_heads, head_dim, device=device).to(dtype)
    expected = paged_prefill_attention_reference(q, kv, starts)
    assert_near(paged_prefill_attention(q, kv, starts), expected, looser=2)


@pytest.mark.parametrize("window", [1, 17, 64, 128, 1000])
def test_window_hides_what_lies_too_far_back(
    device: torch.device, make_kv: Callable[..., KvPages], assert_near: Callable[..., None], window: int
) -> None:
    """Windows inside a block, at block edges, over several blocks, and longer than every context."""
    new, contexts = [100, 3], [230, 200]
    kv = make_kv(contexts, (1, 16, 32), torch.float32)
    starts = _starts(new, device)
    q = torch.randn(sum(new), 2, 32, device=device)
    expected = paged_prefill_attention_reference(q, kv, starts, window_tokens=window)
    assert_near(paged_prefill_attention(q, kv, starts, window_tokens=window), expected)


def test_padded_bucket_writes_only_rows_of_sequences(
    device: torch.device, make_kv: Callable[..., KvPages], assert_near: Callable[..., None]
) -> None:
    """A captured bucket has more rows and sequences than are in use; the rest of the output isn't touched."""
    kv = make_kv([20, 0, 7, 0], (2, 4, 16), torch.float32)
    starts = _starts([6, 0, 7, 0], device)
    q = torch.randn(40, 4, 16, device=device)
    out = torch.full_like(q, 5.0)
    paged_prefill_attention(q, kv, starts, out=out)
    expected = paged_prefill_attention_reference(q, kv, starts)
    assert_near(out[:13], expected[:13])
    assert torch.equal(out[13:], torch.full_like(out[13:], 5.0))


def test_one_query_per_sequence_is_decode(
    device: torch.device, make_kv: Callable[..., KvPages], assert_near: Callable[..., None]
) -> None:
    """Prefill of one token and decode are the same operation."""
    from twolane.kernels.paged_decode_attention import paged_decode_attention

    kv = make_kv([90, 5], (2, 16, 32), torch.float32)
    q = torch.randn(2, 4, 32, device=device)
    assert_near(paged_prefill_attention(q, kv, _starts([1, 1], device)), paged_decode_attention(q, kv))


def test_large_scores_stay_exact(
    device: torch.device, make_kv: Callable[..., KvPages], assert_near: Callable[..., None]
) -> None:
    """Scores in the hundreds would overflow without the running peak."""
    kv = make_kv([80], (1, 16, 32), torch.float32)
    starts = _starts([33], device)
    q = torch.randn(33, 2, 32, device=device) * 40
    expected = paged_prefill_attention_reference(q, kv, starts, scale=0.5)
    assert_near(paged_prefill_attention(q, kv, starts, scale=0.5), expected, looser=10)


def test_chunks_give_what_the_whole_prompt_gives(
    device: torch.device, make_kv: Callable[..., KvPages], assert_near: Callable[..., None]
) -> None:
    """Chunked prefill: the second chunk over the first one's pages equals the tail of one pass."""
    kv = make_kv([75], (1, 16, 32), torch.float32)
    q = torch.randn(75, 2, 32, device=device)
    whole = paged_prefill_attention(q, kv, _starts([75], device))
    tail = paged_prefill_attention(q[40:], kv, _starts([35], device))
    assert_near(tail, whole[40:])


def test_bad_input_is_refused(device: torch.device, make_kv: Callable[..., KvPages]) -> None:
    """The offsets' length and type, and the group size, are named."""
    kv = make_kv([5], (1, 16, 32), torch.float32)
    q = torch.zeros(5, 4, 32, device=device)
    starts = _starts([5], device)
    with pytest.raises(ValueError, match="cu_seqlens_q must have shape"):
        paged_prefill_attention(q, kv, starts[:1])
    with pytest.raises(ValueError, match="cu_seqlens_q must be int32"):
        paged_prefill_attention(q, kv, starts.long())
    with pytest.raises(ValueError, match="at most 64 query heads"):
        paged_prefill_attention(torch.zeros(5, 65, 32, device=device), kv, starts)
