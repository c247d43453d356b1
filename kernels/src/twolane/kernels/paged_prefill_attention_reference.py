"""Plain-torch definition of ``paged_prefill_attention``, for tests and benches; decode is its one-query
case."""

from __future__ import annotations

import torch

from twolane.kernels.paged_kv import KvPages


def paged_prefill_attention_reference(
    q: torch.Tensor,
    kv: KvPages,
    cu_seqlens_q: torch.Tensor,
    *,
    scale: float | None = None,
    window_tokens: int | None = None,
) -> torch.Tensor:
    """Causal attention of packed queries [T, n_heads, D] over paged KV, one sequence after another, in
    float32.

    The last query of a sequence stands at its last context position (bottom-right alignment). Rows of no
    sequence and sequences without context give zeros.
    """
    out = torch.zeros_like(q)
    factor = q.shape[2] ** -0.5 if scale is None else scale
    starts = cu_seqlens_q.tolist()
    for index, context in enumerate(kv.context_lens.tolist()):
        first, last = starts[index], starts[index + 1]
        if context == 0 or first == last:
            continue
        keys = _rows(kv.k_pages, kv.page_table[index], context)
        values = _rows(kv.v_pages, kv.page_table[index], context)
        out[first:last] = _attend(q[first:last], keys, values, factor, window_tokens)
    return out


def _rows(pages: torch.Tensor, table: torch.Tensor, context: int) -> torch.Tensor:
    """The sequence's first ``context`` token rows as [n_kv_heads, context, D] float32."""
    page_tokens = pages.shape[2]
    n_pages = -(-context // page_tokens)
    picked = pages[table[:n_pages].long()].transpose(0, 1)
    return picked.reshape(pages.shape[1], n_pages * page_tokens, pages.shape[3])[:, :context].float()


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window_tokens: int | None
) -> torch.Tensor:
    n_queries, n_heads, _ = q.shape
    group, context = n_heads // keys.shape[0], keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=0), values.repeat_interleave(group, dim=0)
    scores = torch.einsum("thd,hnd->htn", q.float(), keys) * scale
    position = torch.arange(context - n_queries, context, device=q.device)[:, None]
    key_position = torch.arange(context, device=q.device)[None, :]
    visible = key_position <= position
    if window_tokens is not None:
        visible &= key_position > position - window_tokens
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("htn,hnd->thd", weights, values).to(q.dtype)
