"""One layer's pages as the attention kernels take them, and what they check of queries and pages.

Called by the host wrappers of prefill and decode attention; the engine builds one ``KvPages`` per layer and
step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from twolane.kernels import launch

_MAX_HEAD_DIM = 256
_BATCH_BLOCK = 256


@dataclass(frozen=True)
class KvPages:
    """One layer's pages and where each sequence finds its own.

    k_pages, v_pages: [n_pages, n_kv_heads, page_tokens, D], equal strides, any page stride;
    page_table: [B, max_pages] int32, entries past a sequence's context are never read;
    context_lens: [B] int32, tokens of KV including the new ones, 0 for a padded row.
    """

    k_pages: torch.Tensor
    v_pages: torch.Tensor
    page_table: torch.Tensor
    context_lens: torch.Tensor


def validate_attention(op: str, q: torch.Tensor, kv: KvPages, window_tokens: int | None) -> None:
    """What decode and prefill attention both ask of queries and pages. Raises ValueError."""
    launch.require_runnable(op, q, kv.k_pages, kv.v_pages, kv.page_table, kv.context_lens)
    launch.require_shape(op, "q", q, (None, None, None))
    launch.require_dtype(op, "q", q, launch.FLOAT_DTYPES)
    launch.require_adjacent_heads(op, "q", q)
    n_heads, head_dim = q.shape[1:]
    if head_dim % 8 != 0 or not 8 <= head_dim <= _MAX_HEAD_DIM:
        raise ValueError(
            f"{op}: the head dimension must be a multiple of 8 up to {_MAX_HEAD_DIM}, got {head_dim}"
        )
    n_kv_heads = kv.k_pages.shape[1] if kv.k_pages.dim() == 4 else 0
    if n_kv_heads == 0 or n_heads % n_kv_heads != 0:
        raise ValueError(f"{op}: {n_heads} query heads aren't a multiple of {n_kv_heads} KV heads")
    launch.require_pages(op, kv.k_pages, kv.v_pages, n_kv_heads, q)
    launch.require_shape(op, "page_table", kv.page_table, (None, None))
    launch.require_dtype(op, "page_table", kv.page_table, (torch.int32,))
    launch.require_unit_stride(op, "page_table", kv.page_table)
    launch.require_vector(op, "context_lens", kv.context_lens, kv.page_table.shape[0], (torch.int32,))
    if window_tokens is not None and window_tokens < 1:
        raise ValueError(
            f"{op}: window_tokens must be at least 1, or None for no window, got {window_tokens}"
        )


def attention_result(op: str, q: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """Where attention leaves its result: `out`, checked to be like q, or fresh memory. Raises ValueError."""
    result = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    launch.require_shape(op, "out", result, q.shape)
    launch.require_dtype(op, "out", result, (q.dtype,))
    launch.require_adjacent_heads(op, "out", result)
    return result


def batch_block(n_sequences: int) -> int:
    """How many sequences' lengths a program reads at once.

    The same for all but huge batches, so that batches of different sizes share a compiled kernel; a loop over
    them would keep Triton from pipelining the loop behind it.
    """
    return max(_BATCH_BLOCK, launch.next_power_of_2(n_sequences))
