"""Rotates queries and keys to their positions and writes keys and values into their pages, in one pass.

Called by the engine in every attention layer, right after the QKV projection; Qwen3's per-head norm of
queries and keys is fused in. Half rotation: element i pairs with i + D/2 (Llama, Qwen, Mistral). Limit:
memory bandwidth.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from twolane.kernels import launch, tuning
from twolane.kernels.tuning import LaunchConfig, config

_MAX_HEAD_DIM = 256


@triton.jit
def _normed_halves(
    at, low, mask_low, mask_high, weight_ptr, eps, D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr
):
    """Both halves of some heads in float32, after the per-head RMS norm if there is one."""
    first = tl.load(at, mask=mask_low, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=mask_high, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / D + eps)
        inside = low < HALF
        first *= scale[:, None] * tl.load(weight_ptr + low, mask=inside, other=0.0).to(tl.float32)[None, :]
        second *= (
            scale[:, None] * tl.load(weight_ptr + HALF + low, mask=inside, other=0.0).to(tl.float32)[None, :]
        )
    return first, second


# Forms that differ by where a step's arrays happen to lie would stall serving with compilation.
@triton.jit(do_not_specialize=["n_slots"], do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def _rotary_page_write_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    q_out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    q_weight_ptr,
    k_weight_ptr,
    n_slots,
    eps,
    stride_q,
    stride_k,
    stride_v,
    stride_q_out,
    stride_page,
    stride_page_head,
    N_HEADS: tl.constexpr,
    N_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    Q_BLOCKS: tl.constexpr = (N_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    low = tl.arange(0, BLOCK_HALF)
    inside = low < HALF
    position = tl.load(positions_ptr + token).to(tl.int64)
    cos = tl.load(cos_ptr + position * HALF + low, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + position * HALF + low, mask=inside, other=0.0).to(tl.float32)[None, :]

    if block < Q_BLOCKS:
        heads = block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        mask = (heads < N_HEADS)[:, None] & inside[None, :]
        offset = heads[:, None] * D + low[None, :]
        at = q_ptr + token * stride_q + offset
        first, second = _normed_halves(at, low, mask, mask, q_weight_ptr, eps, D, HALF, NORM)
        out = q_out_ptr + token * stride_q_out + offset
        dtype = q_out_ptr.dtype.element_ty
        tl.store(out, (first * cos - second * sin).to(dtype), mask=mask)
        tl.store(out + HALF, (second * cos + first * sin).to(dtype), mask=mask)
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        # A negative slot is a padded token; one past the end would touch foreign memory.
        if (slot >= 0) & (slot < n_slots):
            heads = (block - Q_BLOCKS) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
            mask = (heads < N_KV_HEADS)[:, None] & inside[None, :]
            offset = heads[:, None] * D + low[None, :]
            in_page = slot // PAGE_TOKENS * stride_page + slot % PAGE_TOKENS * D
            target = in_page + heads[:, None] * stride_page_head + low[None, :]
            at = k_ptr + token * stride_k + offset
            first, second = _normed_halves(at, low, mask, mask, k_weight_ptr, eps, D, HALF, NORM)
            dtype = k_pages_ptr.dtype.element_ty
            tl.store(k_pages_ptr + target, (first * cos - second * sin).to(dtype), mask=mask)
            tl.store(k_pages_ptr + target + HALF, (second * cos + first * sin).to(dtype), mask=mask)
            value_at = v_ptr + token * stride_v + offset
            raw_low = tl.load(value_at, mask=mask, other=0.0)
            raw_high = tl.load(value_at + HALF, mask=mask, other=0.0)
            tl.store(v_pages_ptr + target, raw_low, mask=mask)
            tl.store(v_pages_ptr + target + HALF, raw_high, mask=mask)


@dataclass(frozen=True)
class Rotation:
    """The rotary tables of a model: cos and sin [max_position, D/2], float32, contiguous."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class HeadNorm:
    """Per-head RMS norm of queries and keys before the rotation (Qwen3): weights [D] and epsilon."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float


@dataclass(frozen=True)
class PageTarget:
    """Where keys and values go: one layer's views of the pool and the slot of every token.

    k_pages, v_pages: [n_pages, n_kv_heads, page_tokens, D], equal strides, token rows of D adjacent elements;
    slots: [T] int64, page * page_tokens + offset, negative to write nothing.
    """

    k_pages: torch.Tensor
    v_pages: torch.Tensor
    slots: torch.Tensor


def rotary_page_write(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    rotation: Rotation,
    positions: torch.Tensor,
    target: PageTarget,
    *,
    norm: HeadNorm | None = None,
    q_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the rotated queries [T, n_heads, D]; write rotated keys, and values, to their slots.

    qkv: queries [T, n_heads, D], keys and values [T, n_kv_heads, D], heads adjacent, any token stride
    (slices of a packed projection); positions: [T] int32 or int64, which must be rows of the tables (not
    checked: that would wait for the device). ``q_out`` may be the queries themselves. Slots past the pool's
    end are skipped. Raises ValueError on bad shapes, dtypes or strides.
    """
    q = qkv[0]
    _validate(qkv, rotation, positions, target, norm)
    result = torch.empty(q.shape, dtype=q.dtype, device=q.device) if q_out is None else q_out
    launch.require_shape("rotary_page_write", "q_out", result, q.shape)
    launch.require_dtype("rotary_page_write", "q_out", result, (q.dtype,))
    launch.require_adjacent_heads("rotary_page_write", "q_out", result)
    if q.shape[0] == 0:
        return result

    def make_trial() -> tuning.Trial:
        # Queries may be rotated in place, so measure into scratch; page writes repeat the same bytes.
        scratch = torch.empty_like(result)
        return lambda chosen: _launch(chosen, qkv, rotation, positions, target, norm, scratch)

    n_heads, n_kv_heads, head_dim = q.shape[1], qkv[1].shape[1], q.shape[2]
    tokens = launch.next_power_of_2(q.shape[0])
    shape_class = (n_heads, n_kv_heads, head_dim, q.dtype, norm is not None, tokens)
    options = candidates(n_heads, head_dim)
    chosen = tuning.choose("rotary_page_write", shape_class, options, make_trial, q.device)
    _launch(chosen, qkv, rotation, positions, target, norm, result)
    return result


def candidates(n_heads: int, head_dim: int) -> list[LaunchConfig]:
    """Launch configurations worth measuring, the default first."""
    most = launch.next_power_of_2(n_heads)
    pairs = [(8, 2), (32, 4), (4, 1), (16, 8)] if head_dim <= 128 else [(4, 2), (8, 4), (16, 4)]
    return [config(warps, BLOCK_HEADS=min(heads, most)) for heads, warps in pairs]


def _launch(
    chosen: LaunchConfig,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    rotation: Rotation,
    positions: torch.Tensor,
    target: PageTarget,
    norm: HeadNorm | None,
    q_out: torch.Tensor,
) -> None:
    q, k, v = qkv
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads, block_heads = k.shape[1], chosen.blocks["BLOCK_HEADS"]
    pages = target.k_pages
    grid = (n_tokens, triton.cdiv(n_heads, block_heads) + triton.cdiv(n_kv_heads, block_heads))
    _rotary_page_write_kernel[grid](
        q,
        k,
        v,
        q_out,
        pages,
        target.v_pages,
        rotation.cos,
        rotation.sin,
        positions,
        target.slots,
        None if norm is None else norm.q_weight,
        None if norm is None else norm.k_weight,
        pages.shape[0] * pages.shape[2],
        0.0 if norm is None else norm.eps,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        q_out.stride(0),
        pages.stride(0),
        pages.stride(1),
        N_HEADS=n_heads,
        N_KV_HEADS=n_kv_heads,
        D=head_dim,
        PAGE_TOKENS=pages.shape[2],
        NORM=norm is not None,
        BLOCK_HALF=launch.next_power_of_2(head_dim // 2),
        **chosen.options(),
    )


def _validate(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    rotation: Rotation,
    positions: torch.Tensor,
    target: PageTarget,
    norm: HeadNorm | None,
) -> None:
    op, (q, k, v) = "rotary_page_write", qkv
    weights = () if norm is None else (norm.q_weight, norm.k_weight)
    launch.require_runnable(
        op,
        q,
        k,
        v,
        rotation.cos,
        rotation.sin,
        positions,
        target.k_pages,
        target.v_pages,
        target.slots,
        *weights,
    )
    launch.require_shape(op, "queries", q, (None, None, None))
    n_tokens, _, head_dim = q.shape
    if head_dim % 2 != 0 or not 2 <= head_dim <= _MAX_HEAD_DIM:
        raise ValueError(f"{op}: the head dimension must be even and at most {_MAX_HEAD_DIM}, got {head_dim}")
    launch.require_shape(op, "keys", k, (n_tokens, None, head_dim))
    launch.require_shape(op, "values", v, k.shape)
    launch.require_dtype(op, "queries", q, launch.FLOAT_DTYPES)
    for name, tensor in (("queries", q), ("keys", k), ("values", v)):
        launch.require_dtype(op, name, tensor, (q.dtype,))
        launch.require_adjacent_heads(op, name, tensor)
    for name, table in (("cos", rotation.cos), ("sin", rotation.sin)):
        launch.require_shape(op, name, table, (rotation.cos.shape[0], head_dim // 2))
        launch.require_dtype(op, name, table, (torch.float32,))
        launch.require_contiguous(op, name, table)
    launch.require_vector(op, "positions", positions, n_tokens, launch.INDEX_DTYPES)
    launch.require_vector(op, "slots", target.slots, n_tokens, (torch.int64,))
    launch.require_pages(op, target.k_pages, target.v_pages, k.shape[1], q)
    for weight in weights:
        launch.require_vector(op, "head norm weight", weight, head_dim, launch.FLOAT_DTYPES)
