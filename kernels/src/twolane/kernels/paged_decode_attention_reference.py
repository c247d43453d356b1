"""Plain-torch definition of ``paged_decode_attention``, for tests and benches."""

from __future__ import annotations

import torch

from twolane.kernels.paged_kv import KvPages
from twolane.kernels.paged_prefill_attention_reference import paged_prefill_attention_reference


def paged_decode_attention_reference(
    q: torch.Tensor, kv: KvPages, *, scale: float | None = None, window_tokens: int | None = None
) -> torch.Tensor:
    """Attention of one query [B, n_heads, D] per sequence, at the last position of its context; zeros
    without one."""
    one_each = torch.arange(q.shape[0] + 1, dtype=torch.int32, device=q.device)
    return paged_prefill_attention_reference(q, kv, one_each, scale=scale, window_tokens=window_tokens)
