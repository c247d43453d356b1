"""Plain-torch definition of ``rms_norm``, for tests and benches; also a usable path on any device."""

from __future__ import annotations

import torch


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the normalised rows and the new residual stream (None without one); inputs are left as they
    are."""
    if residual is not None:
        residual = (x.float() + residual.float()).to(residual.dtype)
        x = residual
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype), residual
