"""rotary_page_write against its reference: odd heads and dimensions, packed projections, padding, head
norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twolane.kernels.rotary_page_write import HeadNorm, PageTarget, Rotation, rotary_page_write
from twolane.kernels.rotary_page_write_reference import (
    head_norm_reference,
    page_write_reference,
    rotary_reference,
)

N_PAGES, N_LAYERS, PAGE_TOKENS = 5, 2, 4


def _rotation(head_dim: int, device: torch.device) -> Rotation:
    angles = torch.outer(torch.arange(64.0), 10000.0 ** (-torch.arange(0, head_dim, 2.0) / head_dim)).to(
        device
    )
    return Rotation(angles.cos(), angles.sin())


def _pool(n_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(N_PAGES, N_LAYERS, 2, n_kv_heads, PAGE_TOKENS, head_dim, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "head_dim"), [(4, 2, 16), (7, 1, 64), (3, 3, 20), (9, 3, 96), (40, 8, 128)]
)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "head-norm"])
def test_queries_and_pages_match_the_reference(
    device: torch.device,
    assert_near: Callable[..., None],
    dtype: torch.dtype,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    normed: bool,
) -> None:
    """Slices of a packed projection, one padded token, one layer of a strided pool; the other layer stays
    zero."""
    tokens = 3
    packed = torch.randn(tokens, n_heads + 2 * n_kv_heads, head_dim, device=device).to(dtype)
    q, k, v = torch.split(packed, [n_heads, n_kv_heads, n_kv_heads], dim=1)
    rotation = _rotation(head_dim, device)
    positions = torch.tensor([0, 63, 17], device=device)
    slots = torch.tensor([13, -1, 6], device=device)
    weights = [torch.randn(head_dim, device=device).to(dtype) for _ in range(2)]
    norm = HeadNorm(weights[0], weights[1], 1e-6) if normed else None
    pool = _pool(n_kv_heads, head_dim, dtype, device)
    expected_pool = pool.clone()

    actual = rotary_page_write(
        (q, k, v), rotation, positions, PageTarget(pool[:, 1, 0], pool[:, 1, 1], slots), norm=norm
    )

    wide_q = head_norm_reference(q, weights[0], 1e-6) if normed else q
    wide_k = head_norm_reference(k, weights[1], 1e-6) if normed else k
    expected = rotary_reference(wide_q, rotation.cos, rotation.sin, positions).to(dtype)
    rotated = rotary_reference(wide_k, rotation.cos, rotation.sin, positions).to(dtype)
    page_write_reference(rotated, expected_pool[:, 1, 0], slots)
    page_write_reference(v, expected_pool[:, 1, 1], slots)
    assert_near(actual, expected)
    assert_near(pool, expected_pool)
    assert torch.equal(pool[:, 1, 1], expected_pool[:, 1, 1])


def test_queries_can_be_rotated_in_place(device: torch.device, assert_near: Callable[..., None]) -> None:
    """Both halves are read before either is written."""
    q, k, v = (torch.randn(2, heads, 32, device=device) for heads in (4, 2, 2))
    rotation = _rotation(32, device)
    positions = torch.tensor([5, 6], dtype=torch.int32, device=device)
    expected = rotary_reference(q, rotation.cos, rotation.sin, positions)
    pool = _pool(2, 32, torch.float32, device)
    target = PageTarget(pool[:, 0, 0], pool[:, 0, 1], torch.tensor([0, 1], device=device))
    rotary_page_write((q, k, v), rotation, positions, target, q_out=q)
    assert_near(q, expected)


def test_slots_past_the_pool_write_nothing(device: torch.device) -> None:
    """A wrong slot must not reach foreign memory."""
    q, k, v = (torch.randn(2, 2, 16, device=device) for _ in range(3))
    pool = _pool(2, 16, torch.float32, device)
    slots = torch.tensor([N_PAGES * PAGE_TOKENS, 2**40], device=device)
    rotary_page_write(
        (q, k, v),
        _rotation(16, device),
        torch.tensor([1, 2], device=device),
        PageTarget(pool[:, 1, 0], pool[:, 1, 1], slots),
    )
    assert pool.abs().sum() == 0


def test_bad_input_is_refused(device: torch.device) -> None:
    """Odd head dimensions, foreign page shapes and wrong slot types are named."""
    rotation = _rotation(16, device)
    positions = torch.tensor([0], device=device)
    pool = _pool(2, 16, torch.float32, device)
    target = PageTarget(pool[:, 0, 0], pool[:, 0, 1], torch.tensor([0], device=device))
    qkv = tuple(torch.zeros(1, heads, 16, device=device) for heads in (4, 2, 2))
    odd = tuple(torch.zeros(1, heads, 15, device=device) for heads in (4, 2, 2))
    three = tuple(torch.zeros(1, heads, 16, device=device) for heads in (4, 3, 3))
    narrow = PageTarget(target.k_pages, target.v_pages, target.slots.int())
    with pytest.raises(ValueError, match="head dimension must be even"):
        rotary_page_write(odd, rotation, positions, target)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k_pages must have shape"):
        rotary_page_write(three, rotation, positions, target)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slots must be int64"):
        rotary_page_write(qkv, rotation, positions, narrow)  # type: ignore[arg-type]
    by_token = pool[:, 0, 0].transpose(1, 2).contiguous().transpose(1, 2)
    foreign = PageTarget(by_token, by_token, target.slots)
    with pytest.raises(ValueError, match="adjacent in a page"):
        rotary_page_write(qkv, rotation, positions, foreign)  # type: ignore[arg-type]
