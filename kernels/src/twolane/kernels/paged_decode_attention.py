"""Attention of one new query token per sequence over its pages, the KV split among programs and merged.

Called by the engine in every layer of a decode step. The grid depends on the batch and the table's width
only, never on lengths, so a captured graph stays valid while sequences grow; the lengths are read on the
device, where each sequence gets as many splits as its share of the batch's KV is worth. Limit: the bytes of
KV.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from twolane.kernels import launch, tuning
from twolane.kernels.paged_kv import KvPages, attention_result, batch_block, validate_attention
from twolane.kernels.tuning import LaunchConfig, config

_OP = "paged_decode_attention"
_MAX_SPLITS = 64
# Tensor cores multiply at least 16 rows: a KV head's query group is padded to that.
_MIN_GROUP_ROWS = 16
_MERGE = config(4)
# What differs from step to step must not make the compiler's work differ: each new form stalls serving.
_ANY_VALUE = ["n_sequences", "programs_per_kv_head", "n_splits", "stride_table", "block_tokens"]
_ANY_ADDRESS = ["page_table_ptr", "context_lens_ptr"]


@triton.jit
def _tokens_per_split(
    context_lens_ptr,
    length,
    n_sequences,
    programs_per_kv_head,
    n_splits,
    block_tokens,
    WINDOW: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    """How many of this sequence's tokens one program takes: an equal share of the batch, at most n_splits
    parts."""
    rows = tl.arange(0, BLOCK_BATCH)
    lengths = tl.load(context_lens_ptr + rows, mask=rows < n_sequences, other=0).to(tl.int32)
    if WINDOW > 0:
        lengths = tl.minimum(lengths, WINDOW)
    share = tl.cdiv(tl.sum(lengths, axis=0), programs_per_kv_head)
    share = tl.maximum(tl.maximum(share, tl.cdiv(length, n_splits)), 1)
    # Equal parts: a share that just misses the length would leave a program with a handful of tokens.
    n_parts = tl.maximum(tl.cdiv(length, share), 1)
    return tl.maximum(tl.cdiv(tl.cdiv(length, n_parts), block_tokens), 1) * block_tokens


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_ADDRESS)
def _decode_split_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    page_table_ptr,
    context_lens_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    n_sequences,
    programs_per_kv_head,
    n_splits,
    scale_log2,
    stride_q,
    stride_out,
    stride_page,
    stride_page_head,
    stride_table,
    N_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
):
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    context = tl.load(context_lens_ptr + sequence).to(tl.int32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(context - WINDOW, 0)
    length = context - first
    start = first
    end = context
    if SPLIT:
        tokens = _tokens_per_split(
            context_lens_ptr,
            length,
            n_sequences,
            programs_per_kv_head,
            n_splits,
            BLOCK_N,
            WINDOW,
            BLOCK_BATCH,
        )
        start = first + split * tokens
        end = tl.minimum(start + tokens, context)
        # An empty split writes nothing; the merge knows how many there are.
        if start >= end:
            return

    group = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    heads = kv_head * GROUP + group
    in_group = group < GROUP
    in_dim = dims < D
    q_mask = in_group[:, None] & in_dim[None, :]
    q = tl.load(q_ptr + sequence * stride_q + heads[:, None] * D + dims[None, :], mask=q_mask, other=0.0)
    if UPCAST_DOT:
        q = q.to(tl.float32)

    peak = tl.full([BLOCK_GROUP], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_GROUP], tl.float32)
    acc = tl.zeros([BLOCK_GROUP, BLOCK_D], tl.float32)
    table = page_table_ptr + sequence * stride_table
    head_offset = kv_head * stride_page_head
    # Page numbers are read one block ahead: were they read where they're used, the loads of K and V would
    # hang on them and could be pipelined by one stage less.
    token = start + columns
    page = tl.load(table + token // PAGE_TOKENS, mask=token < end, other=0).to(tl.int64)
    for block in tl.range(start, end, BLOCK_N):
        token = block + columns
        valid = token < end
        row = page * stride_page + head_offset + token % PAGE_TOKENS * D
        ahead = token + BLOCK_N
        page = tl.load(table + ahead // PAGE_TOKENS, mask=ahead < end, other=0).to(tl.int64)
        offset = row[:, None] + dims[None, :]
        mask = valid[:, None] & in_dim[None, :]
        k = tl.load(k_pages_ptr + offset, mask=mask, other=0.0)
        v = tl.load(v_pages_ptr + offset, mask=mask, other=0.0)
        if UPCAST_DOT:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(valid[None, :], scores, float("-inf"))
        # Every block of a split has a valid token, so the peak is finite from here on.
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_peak[:, None])
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = new_peak

    if SPLIT:
        acc = acc / total[:, None]
        part = (sequence * N_KV_HEADS * GROUP + heads) * n_splits + split
        tl.store(partial_ptr + part[:, None] * D + dims[None, :], acc, mask=q_mask)
        tl.store(lse_ptr + part, peak + tl.log2(total), mask=in_group)
    else:
        # A padded row of the batch has no context: it gets zeros, not 0/0.
        acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
        out_at = out_ptr + sequence * stride_out + heads[:, None] * D + dims[None, :]
        tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=q_mask)


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_ADDRESS)
def _decode_merge_kernel(
    partial_ptr,
    lse_ptr,
    context_lens_ptr,
    out_ptr,
    n_sequences,
    programs_per_kv_head,
    n_splits,
    block_tokens,
    stride_out,
    N_HEADS: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    length = tl.load(context_lens_ptr + sequence).to(tl.int32)
    if WINDOW > 0:
        length = tl.minimum(length, WINDOW)
    tokens = _tokens_per_split(
        context_lens_ptr,
        length,
        n_sequences,
        programs_per_kv_head,
        n_splits,
        block_tokens,
        WINDOW,
        BLOCK_BATCH,
    )
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, BLOCK_D)
    live = splits < tl.cdiv(length, tokens)
    part = (sequence * N_HEADS + head) * n_splits + splits
    lse = tl.load(lse_ptr + part, mask=live, other=float("-inf")).to(tl.float32)
    # With no split at all (a padded row) the peak would be -inf, and -inf minus -inf is NaN.
    peak = tl.maximum(tl.max(lse, axis=0), -1e30)
    weights = tl.exp2(lse - peak)
    mask = live[:, None] & (dims < D)[None, :]
    partial = tl.load(partial_ptr + part[:, None] * D + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(weights, axis=0)
    out = tl.sum(partial * weights[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    out_at = out_ptr + sequence * stride_out + head * D + dims
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=dims < D)


def paged_decode_attention(
    q: torch.Tensor,
    kv: KvPages,
    *,
    scale: float | None = None,
    window_tokens: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(q·K) V for one query token per sequence, at the last position of its context.

    q, out: [B, n_heads, D], heads adjacent, n_heads a multiple of n_kv_heads, D at most 256 and a multiple
    of 8; ``scale`` defaults to D**-0.5; ``window_tokens`` attends to the last so many tokens only. Padded
    rows give zeros. Allocates [B, n_heads, splits, D] float32 for partial results when KV is split. Raises
    ValueError on bad input.
    """
    validate_attention(_OP, q, kv, window_tokens)
    launch.require_shape(_OP, "q", q, (kv.page_table.shape[0], None, None))
    result = attention_result(_OP, q, out)
    if q.shape[0] == 0:
        return result
    factor = q.shape[2] ** -0.5 if scale is None else scale
    window = window_tokens or 0

    def make_trial() -> tuning.Trial:
        return lambda chosen: _launch(chosen, q, kv, factor, window, result)

    group = q.shape[1] // kv.k_pages.shape[1]
    context_class = launch.next_power_of_2(kv.page_table.shape[1] * kv.k_pages.shape[2])
    shape_class = (
        launch.next_power_of_2(q.shape[0]),
        kv.k_pages.shape[1],
        group,
        q.shape[2],
        q.dtype,
        context_class,
        window,
    )
    chosen = tuning.choose(_OP, shape_class, candidates(q.shape[2], q.element_size()), make_trial, q.device)
    _launch(chosen, q, kv, factor, window, result)
    return result


def candidates(head_dim: int, element_bytes: int) -> list[LaunchConfig]:
    """Launch configurations worth measuring, the default first.

    WAVES is how many programs per multiprocessor share the batch's KV: more balance, more partial results.
    """
    if head_dim * element_bytes > 256:
        return [
            config(4, 2, BLOCK_N=32, WAVES=4),
            config(4, 3, BLOCK_N=32, WAVES=4),
            config(4, 2, BLOCK_N=64, WAVES=2),
        ]
    tuples = [
        (64, 4, 3, 4),
        (64, 4, 4, 4),
        (32, 4, 4, 8),
        (128, 4, 2, 4),
        (128, 8, 3, 2),
        (64, 4, 3, 8),
    ]
    return [config(warps, stages, BLOCK_N=n, WAVES=waves) for n, warps, stages, waves in tuples]


def max_splits(n_programs: int, kv_heads_of_batch: int, max_context_tokens: int, block_n: int) -> int:
    """Splits per sequence the grid has room for: a power of two.

    Twice the programs that an even batch needs, so that one long sequence among short ones can take more
    than its equal share; empty programs end at once. No more than there are blocks of tokens.
    """
    room = math.ceil(2 * n_programs / kv_heads_of_batch)
    blocks = math.ceil(max_context_tokens / block_n)
    return min(launch.next_power_of_2(min(room, blocks)), _MAX_SPLITS)


@dataclass(frozen=True)
class _Plan:
    """How a launch splits the KV: splits per sequence at most, programs that share a KV head's tokens, tokens
    of a block."""

    splits: int
    programs_per_kv_head: int
    block_tokens: int


def _plan(chosen: LaunchConfig, kv: KvPages, window: int, device: torch.device) -> _Plan:
    _, n_kv_heads, page_tokens, _ = kv.k_pages.shape
    n_sequences, max_pages = kv.page_table.shape
    n_programs = launch.sm_count(device) * chosen.blocks["WAVES"]
    longest = max_pages * page_tokens
    if window:
        longest = min(longest, window)
    block_tokens = chosen.blocks["BLOCK_N"]
    splits = max_splits(n_programs, n_sequences * n_kv_heads, longest, block_tokens)
    return _Plan(splits, max(1, n_programs // n_kv_heads), block_tokens)


def _launch(
    chosen: LaunchConfig, q: torch.Tensor, kv: KvPages, scale: float, window: int, out: torch.Tensor
) -> None:
    n_sequences, n_heads, head_dim = q.shape
    _, n_kv_heads, page_tokens, _ = kv.k_pages.shape
    plan = _plan(chosen, kv, window, q.device)
    partial = lse = out
    if plan.splits > 1:
        shape = (n_sequences, n_heads, plan.splits)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    _decode_split_kernel[(n_kv_heads, plan.splits, n_sequences)](
        q,
        kv.k_pages,
        kv.v_pages,
        kv.page_table,
        kv.context_lens,
        out,
        partial,
        lse,
        n_sequences,
        plan.programs_per_kv_head,
        plan.splits,
        scale * math.log2(math.e),
        q.stride(0),
        out.stride(0),
        kv.k_pages.stride(0),
        kv.k_pages.stride(1),
        kv.page_table.stride(0),
        N_KV_HEADS=n_kv_heads,
        GROUP=n_heads // n_kv_heads,
        D=head_dim,
        PAGE_TOKENS=page_tokens,
        WINDOW=window,
        SPLIT=plan.splits > 1,
        BLOCK_BATCH=batch_block(n_sequences),
        BLOCK_GROUP=max(_MIN_GROUP_ROWS, launch.next_power_of_2(n_heads // n_kv_heads)),
        BLOCK_D=launch.next_power_of_2(max(head_dim, 16)),
        BLOCK_N=chosen.blocks["BLOCK_N"],
        UPCAST_DOT=launch.INTERPRETED,
        **chosen.compile_options(),
    )
    if plan.splits > 1:
        _merge((partial, lse), kv.context_lens, out, plan, window)


def _merge(
    parts: tuple[torch.Tensor, torch.Tensor],
    context_lens: torch.Tensor,
    out: torch.Tensor,
    plan: _Plan,
    window: int,
) -> None:
    n_sequences, n_heads, head_dim = out.shape
    _decode_merge_kernel[(n_heads, n_sequences)](
        *parts,
        context_lens,
        out,
        n_sequences,
        plan.programs_per_kv_head,
        plan.splits,
        plan.block_tokens,
        out.stride(0),
        N_HEADS=n_heads,
        D=head_dim,
        WINDOW=window,
        BLOCK_BATCH=batch_block(n_sequences),
        BLOCK_SPLITS=_MAX_SPLITS,
        BLOCK_D=launch.next_power_of_2(head_dim),
        **_MERGE.compile_options(),
    )
