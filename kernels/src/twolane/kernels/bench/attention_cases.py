"""Attention cases: decode against the bytes of KV, prefill against tensor-core FLOPs, both beside torch's
SDPA.

SDPA gets the same keys and values dense and padded, without paging: it's the easier task, so a fair bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from twolane.kernels.bench.case import Case, CaseBuilder, Sizes
from twolane.kernels.paged_decode_attention import paged_decode_attention
from twolane.kernels.paged_decode_attention_reference import paged_decode_attention_reference
from twolane.kernels.paged_kv import KvPages
from twolane.kernels.paged_prefill_attention import paged_prefill_attention
from twolane.kernels.paged_prefill_attention_reference import paged_prefill_attention_reference

_BF16_TOLERANCE = 2e-2
# Above this many scores the reference's float32 score matrix doesn't fit: SDPA is the reference then.
_MOST_REFERENCE_SCORES = 2**31


def attention_cases(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[CaseBuilder]:
    """Decode batches, even and skewed; prefill of whole prompts, of chunks over cached prefixes, of short
    turns."""
    for label, contexts in sizes.decode_batches:
        yield "paged_decode_attention", partial(_decode, sizes, label, list(contexts), device, dtype)
    for label, sequences in sizes.prefill_batches:
        yield "paged_prefill_attention", partial(_prefill, sizes, label, list(sequences), device, dtype)
    # Wide pages let Hopper's tensor memory unit fetch a block of keys at once.
    wide = replace(sizes, page_tokens=sizes.wide_page_tokens)
    label, sequences = sizes.prefill_batches[0]
    label = f"{label}, pages of {wide.page_tokens}"
    yield "paged_prefill_attention", partial(_prefill, wide, label, list(sequences), device, dtype)


def _paged(sizes: Sizes, contexts: list[int], device: torch.device, dtype: torch.dtype) -> KvPages:
    """Layer 1 of a two-layer pool, pages in random order."""
    counts = [-(-context // sizes.page_tokens) for context in contexts]
    shape = (sum(counts), 2, 2, sizes.n_kv_heads, sizes.page_tokens, sizes.head_dim)
    pool = torch.randn(shape, device=device, dtype=dtype)
    pages = torch.randperm(shape[0]).to(torch.int32)
    table = torch.zeros(len(contexts), max(counts), dtype=torch.int32)
    first = 0
    for row, count in enumerate(counts):
        table[row, :count] = pages[first : first + count]
        first += count
    lengths = torch.tensor(contexts, dtype=torch.int32, device=device)
    return KvPages(pool[:, 1, 0], pool[:, 1, 1], table.to(device), lengths)


def _dense(pages: torch.Tensor, kv: KvPages, context: int) -> torch.Tensor:
    """[B, n_kv_heads, context, D] contiguous, for SDPA."""
    batch, n_pages = kv.page_table.shape
    picked = pages[kv.page_table.flatten().long()].view(batch, n_pages, *pages.shape[1:]).transpose(1, 2)
    return picked.reshape(batch, pages.shape[1], n_pages * pages.shape[2], pages.shape[3])[
        :, :, :context
    ].contiguous()


def _decode(sizes: Sizes, label: str, contexts: list[int], device: torch.device, dtype: torch.dtype) -> Case:
    kv = _paged(sizes, contexts, device, dtype)
    q = torch.randn(len(contexts), sizes.n_heads, sizes.head_dim, device=device, dtype=dtype)
    out = torch.empty_like(q)
    peers: dict[str, Callable[[], object]] = {}
    if len(set(contexts)) == 1:
        keys, values = (_dense(pages, kv, contexts[0]) for pages in (kv.k_pages, kv.v_pages))
        queries = q[:, :, None]
        peers["sdpa, dense"] = lambda: F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
    row_bytes = 2 * sizes.n_kv_heads * sizes.head_dim * q.element_size()
    moved = sum(contexts) * row_bytes + 2 * q.numel() * q.element_size()
    flops = 4 * sum(contexts) * sizes.n_heads * sizes.head_dim
    return Case(
        "paged_decode_attention",
        label,
        lambda: paged_decode_attention(q, kv, out=out),
        lambda: paged_decode_attention_reference(q, kv),
        _BF16_TOLERANCE,
        moved,
        flops,
        peers,
    )


def _visible_pairs(sequences: list[tuple[int, int]]) -> int:
    """Query-key pairs that causal attention computes."""
    return sum(new * (context - new) + new * (new + 1) // 2 for new, context in sequences)


def _prefill(
    sizes: Sizes, label: str, sequences: list[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> Case:
    contexts = [context for _, context in sequences]
    kv = _paged(sizes, contexts, device, dtype)
    starts = torch.tensor([0, *(new for new, _ in sequences)], device=device).cumsum(0).to(torch.int32)
    q = torch.randn(
        sum(new for new, _ in sequences), sizes.n_heads, sizes.head_dim, device=device, dtype=dtype
    )
    out = torch.empty_like(q)

    def reference() -> torch.Tensor:
        return paged_prefill_attention_reference(q, kv, starts)

    peers: dict[str, Callable[[], object]] = {}
    expected = reference
    if len(set(sequences)) == 1:
        sdpa = _sdpa(q, kv, sequences)
        peers["sdpa, dense"] = sdpa
        if sizes.n_heads * sequences[0][0] * sequences[0][1] >= _MOST_REFERENCE_SCORES:
            expected = sdpa
    row_bytes = 2 * sizes.n_kv_heads * sizes.head_dim * q.element_size()
    return Case(
        "paged_prefill_attention",
        label,
        lambda: paged_prefill_attention(q, kv, starts, out=out),
        expected,
        _BF16_TOLERANCE,
        sum(contexts) * row_bytes + 2 * q.numel() * q.element_size(),
        4 * _visible_pairs(sequences) * sizes.n_heads * sizes.head_dim,
        peers,
    )


def _sdpa(q: torch.Tensor, kv: KvPages, sequences: list[tuple[int, int]]) -> Callable[[], torch.Tensor]:
    new, context = sequences[0]
    keys, values = (_dense(pages, kv, context) for pages in (kv.k_pages, kv.v_pages))
    queries = q.view(len(sequences), new, *q.shape[1:]).transpose(1, 2)

    def run() -> torch.Tensor:
        if new == context:
            out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        else:
            bias = causal_lower_right(new, context)
            out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, enable_gqa=True)
        return out.transpose(1, 2).reshape(q.shape)

    return run
