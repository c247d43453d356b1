"""Page gather, scatter and copy against their references: layer ranges, odd page sizes, padded id lists,
refusals."""

from __future__ import annotations

import pytest
import torch

from twolane.kernels.page_copy import copy_pages, gather_pages, scatter_pages
from twolane.kernels.page_copy_reference import (
    copy_pages_reference,
    gather_pages_reference,
    scatter_pages_reference,
)


def _pool(device: torch.device, dtype: torch.dtype, page_tokens: int = 16, head_dim: int = 8) -> torch.Tensor:
    return torch.randn(7, 3, 2, 2, page_tokens, head_dim, device=device).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(("page_tokens", "head_dim"), [(16, 8), (3, 2), (1, 1)])
@pytest.mark.parametrize(("first", "count"), [(0, None), (1, 1), (1, 2)])
def test_gathered_bytes_are_those_of_the_pages(
    device: torch.device,
    dtype: torch.dtype,
    page_tokens: int,
    head_dim: int,
    first: int,
    count: int | None,
) -> None:
    """Every dtype is moved as words, so equality is exact, for page ranges of any word size."""
    pool = _pool(device, dtype, page_tokens, head_dim)
    ids = torch.tensor([5, 0, 6], dtype=torch.int32, device=device)
    actual = gather_pages(pool, ids, first_layer=first, n_layers=count)
    expected = gather_pages_reference(pool, ids, first_layer=first, n_layers=count)
    assert actual.shape == expected.shape
    assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scatter_writes_only_the_given_pages_and_layers(device: torch.device, dtype: torch.dtype) -> None:
    """All other pages and layers keep their bytes; a negative id is padding."""
    pool = _pool(device, dtype)
    expected = pool.clone()
    staging = torch.randn(3, 2, *pool.shape[2:], device=device).to(dtype)
    ids = torch.tensor([4, -1, 2], device=device)
    scatter_pages(staging, pool, ids, first_layer=1)
    scatter_pages_reference(staging, expected, ids, first_layer=1)
    assert torch.equal(pool, expected)


def test_gather_then_scatter_moves_pages_between_pools(device: torch.device) -> None:
    """The way of a transfer: same content under other page numbers."""
    source, target = _pool(device, torch.float16), _pool(device, torch.float16)
    there, here = torch.tensor([1, 3], device=device), torch.tensor([6, 0], device=device)
    scatter_pages(gather_pages(source, there), target, here)
    assert torch.equal(target[here], source[there])


def test_copy_inside_the_pool_skips_padded_pairs(device: torch.device) -> None:
    """Copy on write: targets take the sources' content, the rest stays."""
    pool = _pool(device, torch.float32)
    expected = pool.clone()
    sources = torch.tensor([0, -1, 2], device=device)
    targets = torch.tensor([6, 5, 4], device=device)
    copy_pages(pool, sources, targets)
    copy_pages_reference(expected, sources, targets)
    assert torch.equal(pool, expected)


def test_ids_past_the_end_touch_nothing(device: torch.device) -> None:
    """A wrong id must not reach foreign memory: its copy is skipped, its place in the buffer is left."""
    pool = _pool(device, torch.float32)
    before = pool.clone()
    staging = torch.full((2, *pool.shape[1:]), 3.0, device=device)
    gather_pages(pool, torch.tensor([99, 1], device=device), out=staging)
    assert torch.equal(staging[0], torch.full_like(staging[0], 3.0))
    assert torch.equal(staging[1], pool[1])
    scatter_pages(staging, pool, torch.tensor([7, 2**31], device=device))
    assert torch.equal(pool, before)


def test_bad_layers_and_strides_are_refused(device: torch.device) -> None:
    """Messages name the pool, the layers or the buffer."""
    pool = _pool(device, torch.float32)
    ids = torch.tensor([1], device=device)
    with pytest.raises(ValueError, match="layers 2 to 4"):
        gather_pages(pool, ids, first_layer=2, n_layers=3)
    with pytest.raises(ValueError, match="each page of the pool must be contiguous"):
        gather_pages(pool.transpose(4, 5), ids)
    with pytest.raises(ValueError, match="staging must have shape"):
        scatter_pages(torch.zeros(2, 3, 2, 2, 16, 8, device=device), pool, ids)
    with pytest.raises(ValueError, match="buffer is torch"):
        scatter_pages(torch.zeros(1, *pool.shape[1:], dtype=torch.float16, device=device), pool, ids)
