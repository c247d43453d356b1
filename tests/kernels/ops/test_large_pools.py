"""Offsets in pools of more than 2^31 elements, which a pool of a hundred gigabytes has, need 64 bits.

The pool is a sparse file where there is no device: only pages that are touched take memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from twolane.kernels.page_copy import gather_pages, scatter_pages
from twolane.kernels.paged_decode_attention import paged_decode_attention
from twolane.kernels.paged_decode_attention_reference import paged_decode_attention_reference
from twolane.kernels.paged_kv import KvPages
from twolane.kernels.paged_prefill_attention import paged_prefill_attention
from twolane.kernels.paged_prefill_attention_reference import paged_prefill_attention_reference
from twolane.kernels.rotary_page_write import PageTarget, Rotation, rotary_page_write

N_PAGES, N_KV_HEADS, PAGE_TOKENS, HEAD_DIM = 3, 1, 16, 16
# Layers of a page, so many that the last page begins past 2^31 elements.
N_LAYERS = 2**30 // (2 * N_KV_HEADS * PAGE_TOKENS * HEAD_DIM) + 1


@pytest.fixture
def pool(device: torch.device, tmp_path: Path) -> torch.Tensor:
    """[3, very many, 2, 1, 16, 16] in float16, zeros."""
    shape = (N_PAGES, N_LAYERS, 2, N_KV_HEADS, PAGE_TOKENS, HEAD_DIM)
    if device.type == "cuda":
        return torch.zeros(shape, dtype=torch.float16, device=device)
    return torch.from_numpy(np.memmap(tmp_path / "pool", dtype=np.float16, mode="w+", shape=shape))


def filled(pool: torch.Tensor, layer: int, contexts: list[int]) -> KvPages:
    """One layer's pages with random contents, each sequence on one page, the last first."""
    assert pool.stride(0) * (N_PAGES - 1) > 2**31
    k, v = pool[:, layer, 0], pool[:, layer, 1]
    for pages in (k, v):
        pages.copy_(torch.randn(pages.shape))
    table = torch.arange(N_PAGES - 1, N_PAGES - 1 - len(contexts), -1, dtype=torch.int32)
    lengths = torch.tensor(contexts, dtype=torch.int32)
    return KvPages(k, v, table[:, None].contiguous().to(pool.device), lengths.to(pool.device))


def test_attention_reads_pages_beyond(pool: torch.Tensor, assert_near: Callable[..., None]) -> None:
    """Decode and prefill, in the last layer of the last page."""
    kv = filled(pool, N_LAYERS - 1, [16, 9])
    q = torch.randn(2, 2, HEAD_DIM).to(pool)
    assert_near(paged_decode_attention(q, kv), paged_decode_attention_reference(q, kv), looser=2)
    q = torch.randn(7, 2, HEAD_DIM).to(pool)
    starts = torch.tensor([0, 4, 7], dtype=torch.int32, device=pool.device)
    expected = paged_prefill_attention_reference(q, kv, starts)
    assert_near(paged_prefill_attention(q, kv, starts), expected, looser=2)


def test_keys_and_values_are_written_beyond(pool: torch.Tensor) -> None:
    """At the last slots of the pool; unrotated, so that they are what was given."""
    qkv = torch.randn(2, 4, HEAD_DIM).to(pool)
    q, k, v = qkv[:, :2], qkv[:, 2:3], qkv[:, 3:]
    ones = torch.ones(1, HEAD_DIM // 2, device=pool.device)
    slots = torch.tensor([N_PAGES * PAGE_TOKENS - 1, N_PAGES * PAGE_TOKENS - 2], device=pool.device)
    target = PageTarget(pool[:, N_LAYERS - 1, 0], pool[:, N_LAYERS - 1, 1], slots)
    positions = torch.zeros(2, dtype=torch.int32, device=pool.device)
    rotary_page_write((q, k, v), Rotation(ones, torch.zeros_like(ones)), positions, target)
    torch.testing.assert_close(pool[-1, -1, 0, 0, [15, 14]], k[:, 0])
    torch.testing.assert_close(pool[-1, -1, 1, 0, [15, 14]], v[:, 0])


def test_pages_are_copied_from_and_to_beyond(pool: torch.Tensor) -> None:
    """Two layers of the last page."""
    filled(pool, N_LAYERS - 1, [16])
    ids = torch.tensor([N_PAGES - 1], device=pool.device)
    first = N_LAYERS - 2
    gathered = gather_pages(pool, ids, first_layer=first)
    assert torch.equal(gathered[0], pool[-1, first:])
    assert gathered.any()
    scatter_pages(gathered + 1, pool, ids, first_layer=first)
    assert torch.equal(pool[-1, first:], gathered[0] + 1)
