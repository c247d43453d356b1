"""Cases whose limit is memory bandwidth: norm, rotary with page write, SiLU product, page copies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from twolane.kernels.bench.case import Case, CaseBuilder, Sizes
from twolane.kernels.page_copy import gather_pages, scatter_pages
from twolane.kernels.page_copy_reference import gather_pages_reference, scatter_pages_reference
from twolane.kernels.rms_norm import rms_norm
from twolane.kernels.rms_norm_reference import rms_norm_reference
from twolane.kernels.rotary_page_write import HeadNorm, PageTarget, Rotation, rotary_page_write
from twolane.kernels.rotary_page_write_reference import head_norm_reference, rotary_reference
from twolane.kernels.silu_mul import silu_mul
from twolane.kernels.silu_mul_reference import silu_mul_reference

_BF16_TOLERANCE = 2e-2


def elementwise_cases(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[CaseBuilder]:
    """Every case at prefill size, and norm and rotary at decode size too, where launches weigh more."""
    for tokens in (sizes.tokens, sizes.batch):
        yield "rms_norm", partial(_rms_norm, sizes, tokens, device, dtype)
        yield "rotary_page_write", partial(_rotary, sizes, tokens, device, dtype)
    yield "silu_mul", partial(_silu_mul, sizes, device, dtype)
    yield "page_copy", partial(_gather, sizes, device, dtype)
    yield "page_copy", partial(_scatter, sizes, device, dtype)


def _rms_norm(sizes: Sizes, tokens: int, device: torch.device, dtype: torch.dtype) -> Case:
    x, residual = (torch.randn(tokens, sizes.hidden, device=device, dtype=dtype) for _ in range(2))
    weight = torch.randn(sizes.hidden, device=device, dtype=dtype)
    out = torch.empty_like(x)
    fixed = residual.clone()

    def expected() -> torch.Tensor:
        return rms_norm_reference(x, weight, 1e-6, residual=fixed)[0]

    def run() -> torch.Tensor:
        # In place on the residual: the first run starts from ``fixed``, later ones only have to take as long.
        return rms_norm(x, weight, 1e-6, residual=residual, out=out)

    def torch_norm() -> torch.Tensor:
        return F.rms_norm(x + residual, (sizes.hidden,), weight, 1e-6)

    label, moved = f"+residual {tokens} x {sizes.hidden}", 4 * x.numel() * x.element_size()
    return Case("rms_norm", label, run, expected, _BF16_TOLERANCE, moved, 0, {"torch": torch_norm})


def _rotary(sizes: Sizes, tokens: int, device: torch.device, dtype: torch.dtype) -> Case:
    n_heads, n_kv_heads, head_dim = sizes.n_heads, sizes.n_kv_heads, sizes.head_dim
    packed = torch.randn(tokens, n_heads + 2 * n_kv_heads, head_dim, device=device, dtype=dtype)
    q, k, v = torch.split(packed, [n_heads, n_kv_heads, n_kv_heads], dim=1)
    n_pages = -(-tokens // sizes.page_tokens)
    pool = torch.zeros(n_pages, 2, 2, n_kv_heads, sizes.page_tokens, head_dim, device=device, dtype=dtype)
    target = PageTarget(pool[:, 1, 0], pool[:, 1, 1], torch.arange(tokens, device=device))
    angles = torch.rand(tokens, head_dim // 2, device=device) * 6
    rotation = Rotation(angles.cos(), angles.sin())
    positions = torch.arange(tokens, device=device)
    weights = [torch.ones(head_dim, device=device, dtype=dtype) for _ in range(2)]
    norm = HeadNorm(weights[0], weights[1], 1e-6)
    q_out = torch.empty(tokens, n_heads, head_dim, device=device, dtype=dtype)

    def expected() -> torch.Tensor:
        normed = head_norm_reference(q, weights[0], 1e-6)
        return rotary_reference(normed, rotation.cos, rotation.sin, positions).to(dtype)

    def run() -> torch.Tensor:
        return rotary_page_write((q, k, v), rotation, positions, target, norm=norm, q_out=q_out)

    moved = 2 * packed.numel() * packed.element_size() + angles.numel() * 8
    return Case("rotary_page_write", f"{tokens} tokens", run, expected, _BF16_TOLERANCE, moved)


def _silu_mul(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    gate_up = torch.randn(sizes.tokens, 2 * sizes.intermediate, device=device, dtype=dtype)
    out = torch.empty(sizes.tokens, sizes.intermediate, device=device, dtype=dtype)

    def torch_product() -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def run() -> torch.Tensor:
        return silu_mul(gate_up, out=out)

    def expected() -> torch.Tensor:
        return silu_mul_reference(gate_up)

    label, moved = f"{sizes.tokens} x {sizes.intermediate}", 3 * out.numel() * out.element_size()
    return Case("silu_mul", label, run, expected, _BF16_TOLERANCE, moved, 0, {"torch": torch_product})


def _pool(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (2 * sizes.transfer_pages, sizes.n_layers, 2, sizes.n_kv_heads, sizes.page_tokens, sizes.head_dim)
    pool = torch.randn(shape, device=device, dtype=dtype)
    return pool, torch.randperm(shape[0], device=device)[: sizes.transfer_pages]


def _gather(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    pool, ids = _pool(sizes, device, dtype)
    out = torch.empty(ids.shape[0], *pool.shape[1:], device=device, dtype=dtype)

    def run() -> torch.Tensor:
        return gather_pages(pool, ids, out=out)

    def expected() -> torch.Tensor:
        return gather_pages_reference(pool, ids)

    peers = {"index_select": lambda: torch.index_select(pool, 0, ids, out=out)}
    moved = 2 * out.numel() * out.element_size()
    return Case("page_copy", f"gather {ids.shape[0]} pages", run, expected, 0.0, moved, 0, peers)


def _scatter(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    pool, ids = _pool(sizes, device, dtype)
    staging = torch.randn(ids.shape[0], *pool.shape[1:], device=device, dtype=dtype)

    def run() -> torch.Tensor:
        scatter_pages(staging, pool, ids)
        return pool

    def expected() -> torch.Tensor:
        wanted = pool.clone()
        scatter_pages_reference(staging, wanted, ids)
        return wanted

    peers = {"index_copy_": lambda: pool.index_copy_(0, ids, staging)}
    moved = 2 * staging.numel() * staging.element_size()
    return Case("page_copy", f"scatter {ids.shape[0]} pages", run, expected, 0.0, moved, 0, peers)
