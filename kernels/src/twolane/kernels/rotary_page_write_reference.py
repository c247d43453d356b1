"""Plain-torch definition of ``rotary_page_write``, for tests and benches; also a usable path on any
device."""

from __future__ import annotations

import torch

from twolane.kernels.rms_norm_reference import rms_norm_reference


def rotary_reference(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Half rotation of [T, H, D] by tables [max_position, D/2], in float32, returned in the dtype of
    ``x``."""
    first, second = x.float().chunk(2, dim=-1)
    c, s = cos[positions.long()].unsqueeze(1), sin[positions.long()].unsqueeze(1)
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1).to(x.dtype)


def page_write_reference(rows: torch.Tensor, pages: torch.Tensor, slots: torch.Tensor) -> None:
    """Write [T, n_kv_heads, D] rows to their slots of [n_pages, n_kv_heads, page_tokens, D]; skip negative
    slots."""
    keep = slots >= 0
    page, offset = slots[keep] // pages.shape[2], slots[keep] % pages.shape[2]
    pages[page, :, offset] = rows[keep]


def head_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of each head of [T, H, D], kept in float32."""
    normed, _ = rms_norm_reference(x.float().reshape(-1, x.shape[-1]), weight, eps)
    return normed.reshape(x.shape)
