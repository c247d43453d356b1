"""Causal attention of packed new tokens over their sequences' pages: cached prefix and the new tokens alike.

Called by the engine in every layer of a prefill step, after ``rotary_page_write``. All query heads of a KV
head share a program, so that a short new turn over a long cached prefix reads its KV once. The grid depends
on the number of tokens and sequences only. Limit: tensor-core FLOPs for long prompts.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from twolane.kernels import launch, tuning
from twolane.kernels.paged_kv import KvPages, attention_result, batch_block, validate_attention
from twolane.kernels.tuning import LaunchConfig, config

_OP = "paged_prefill_attention"
# From this context on, blocks of 128 keys are the default.
_WIDE_CONTEXT_TOKENS = 1024
# What differs from step to step must not make the compiler's work differ: each new form stalls serving.
_ANY_VALUE = ["n_sequences", "stride_table"]
_ANY_ADDRESS = ["page_table_ptr", "context_lens_ptr", "cu_seqlens_ptr"]


@triton.jit
def _attend_range(
    acc,
    total,
    peak,
    q,
    position,
    begin,
    end,
    k_pages_ptr,
    v_pages_ptr,
    table,
    kv_head,
    stride_page,
    stride_page_head,
    scale_log2,
    D: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    BY_DESCRIPTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
):
    """One online-softmax pass over the tokens [begin, end); without MASKED all of them are visible to all
    rows."""
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_N)
    in_dim = dims < D
    # Page numbers are read one block ahead: were they read where they're used, the loads of K and V would
    # hang on them and could be pipelined by one stage less.
    if BY_DESCRIPTOR:
        page = tl.load(table + begin // PAGE_TOKENS, mask=begin < end, other=0).to(tl.int32)
    else:
        page = tl.load(table + (begin + columns) // PAGE_TOKENS, mask=begin + columns < end, other=0).to(
            tl.int32
        )
    for block in tl.range(begin, end, BLOCK_N):
        token = block + columns
        if BY_DESCRIPTOR:
            # A block lies in one page. What the page holds past the context may be anything, NaN included.
            at = block % PAGE_TOKENS
            k = tl.reshape(k_pages_ptr.load([page, kv_head, at, 0]), [BLOCK_N, BLOCK_D])
            v = tl.reshape(v_pages_ptr.load([page, kv_head, at, 0]), [BLOCK_N, BLOCK_D])
            ahead = block + BLOCK_N
            page = tl.load(table + ahead // PAGE_TOKENS, mask=ahead < end, other=0).to(tl.int32)
        else:
            # Offsets in large pools need 64 bits; what is carried along is narrower, to save registers.
            row = page.to(tl.int64) * stride_page + kv_head * stride_page_head + token % PAGE_TOKENS * D
            ahead = token + BLOCK_N
            page = tl.load(table + ahead // PAGE_TOKENS, mask=ahead < end, other=0).to(tl.int32)
            offset = row[:, None] + dims[None, :]
            if MASKED:
                mask = (token < end)[:, None] & in_dim[None, :]
                k = tl.load(k_pages_ptr + offset, mask=mask, other=0.0)
                v = tl.load(v_pages_ptr + offset, mask=mask, other=0.0)
            elif BLOCK_D != D:
                k = tl.load(k_pages_ptr + offset, mask=in_dim[None, :], other=0.0)
                v = tl.load(v_pages_ptr + offset, mask=in_dim[None, :], other=0.0)
            else:
                k = tl.load(k_pages_ptr + offset)
                v = tl.load(v_pages_ptr + offset)
        if UPCAST_DOT:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        if BY_DESCRIPTOR and MASKED:
            # A weight of zero doesn't silence NaN.
            v = tl.where((token < end)[:, None], v, 0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            visible = token[None, :] <= position[:, None]
            if WINDOW > 0:
                visible = visible & (token[None, :] > position[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1) * scale_log2)
        anchor = new_peak
        if MASKED:
            # A row that has seen nothing yet keeps a peak of -inf, and -inf minus -inf is NaN.
            anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores * scale_log2 - anchor[:, None])
        decay = tl.exp2(peak - anchor)
        total = total * decay + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = new_peak
    return acc, total, peak


@triton.jit
def _locate_block(cu_seqlens_ptr, n_sequences, block, BLOCK_Q: tl.constexpr, BLOCK_BATCH: tl.constexpr):
    """Sequence and block within it of a flat block number, where sequence b starts at cu[b] // BLOCK_Q +
    b."""
    rows = tl.arange(0, BLOCK_BATCH)
    starts = tl.load(cu_seqlens_ptr + rows, mask=rows < n_sequences, other=0).to(tl.int32) // BLOCK_Q + rows
    begun = (starts <= block) & (rows < n_sequences)
    sequence = tl.sum(begun.to(tl.int32), axis=0) - 1
    within = block - tl.max(tl.where(begun, starts, 0), axis=0)
    return sequence.to(tl.int64), within


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_ADDRESS)
def _prefill_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    page_table_ptr,
    context_lens_ptr,
    cu_seqlens_ptr,
    out_ptr,
    n_sequences,
    scale_log2,
    stride_q,
    stride_out,
    stride_page,
    stride_page_head,
    stride_table,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BY_DESCRIPTOR: tl.constexpr,
    UPCAST_DOT: tl.constexpr,
):
    # A block holds BLOCK_Q tokens, each with the GROUP query heads of one KV head.
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    sequence, within = _locate_block(cu_seqlens_ptr, n_sequences, tl.program_id(0), BLOCK_Q, BLOCK_BATCH)
    kv_head = tl.program_id(1)
    q_start = tl.load(cu_seqlens_ptr + sequence).to(tl.int32)
    q_length = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int32) - q_start
    n_blocks = tl.cdiv(q_length, BLOCK_Q)
    if within >= n_blocks:
        return
    # The last tokens see most: start them first, so that the long programs don't trail at the end.
    first_token = (n_blocks - 1 - within) * BLOCK_Q
    context = tl.load(context_lens_ptr + sequence).to(tl.int32)
    first_position = context - q_length + first_token
    last_position = tl.minimum(first_position + BLOCK_Q, context) - 1

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    token = first_token + rows // GROUP
    real = (rows < BLOCK_Q * GROUP) & (token < q_length)
    position = context - q_length + token
    offset = (kv_head * GROUP + rows % GROUP)[:, None] * D + dims[None, :]
    mask = real[:, None] & (dims < D)[None, :]
    packed = (q_start + token).to(tl.int64)[:, None]
    q = tl.load(q_ptr + packed * stride_q + offset, mask=mask, other=0.0)
    if UPCAST_DOT:
        q = q.to(tl.float32)

    # Blocks of tokens below ``full_end`` lie in every row's past; from ``full_begin`` on, in every row's
    # window.
    end = last_position + 1
    full_end = (first_position + 1) // BLOCK_N * BLOCK_N
    begin = 0
    full_begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        full_begin = tl.cdiv(tl.maximum(last_position - WINDOW + 1, 0), BLOCK_N) * BLOCK_N
        full_end = tl.maximum(full_end, begin)
        full_begin = tl.minimum(full_begin, full_end)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    table = page_table_ptr + sequence * stride_table
    if WINDOW > 0:
        acc, total, peak = _attend_range(
            acc, total, peak, q, position, begin, full_begin, k_pages_ptr, v_pages_ptr, table, kv_head,
            stride_page, stride_page_head, scale_log2, D, PAGE_TOKENS, WINDOW, True, BY_DESCRIPTOR, BLOCK_D,
        BLOCK_N, UPCAST_DOT,
        )  # fmt: skip
    acc, total, peak = _attend_range(
        acc, total, peak, q, position, full_begin, full_end, k_pages_ptr, v_pages_ptr, table, kv_head,
        stride_page, stride_page_head, scale_log2, D, PAGE_TOKENS, WINDOW, False, BY_DESCRIPTOR, BLOCK_D,
        BLOCK_N, UPCAST_DOT,
    )  # fmt: skip
    acc, total, peak = _attend_range(
        acc, total, peak, q, position, full_end, end, k_pages_ptr, v_pages_ptr, table, kv_head,
        stride_page, stride_page_head, scale_log2, D, PAGE_TOKENS, WINDOW, True, BY_DESCRIPTOR, BLOCK_D,
        BLOCK_N, UPCAST_DOT,
    )  # fmt: skip

    # Rows that hold no token may have seen nothing; they aren't stored.
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out_ptr + packed * stride_out + offset, acc.to(out_ptr.dtype.element_ty), mask=mask)


def paged_prefill_attention(
    q: torch.Tensor,
    kv: KvPages,
    cu_seqlens_q: torch.Tensor,
    *,
    scale: float | None = None,
    window_tokens: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return causal softmax(q·K) V of packed queries, each sequence's last query at its last context
    position.

    q, out: [T, n_heads, D], heads adjacent, n_heads a multiple of n_kv_heads (at most 64 times), D at most
    256 and a multiple of 8; cu_seqlens_q: [B+1] int32, first row of each sequence, ascending from 0; T may
    exceed its last entry (a padded bucket): rows of no sequence are left unwritten. The new tokens' keys and
    values must already be in their pages. ``scale`` defaults to D**-0.5; ``window_tokens`` lets a token see
    the last so many, itself included. Raises ValueError on bad input.
    """
    validate_attention(_OP, q, kv, window_tokens)
    n_sequences = kv.page_table.shape[0]
    launch.require_vector(_OP, "cu_seqlens_q", cu_seqlens_q, n_sequences + 1, (torch.int32,))
    launch.require_runnable(_OP, q, cu_seqlens_q, out)
    group = q.shape[1] // kv.k_pages.shape[1]
    if group > 64:
        raise ValueError(f"{_OP}: at most 64 query heads can share a KV head, got {group}")
    result = attention_result(_OP, q, out)
    if q.shape[0] == 0 or n_sequences == 0:
        return result
    factor = q.shape[2] ** -0.5 if scale is None else scale
    window = window_tokens or 0

    def make_trial() -> tuning.Trial:
        return lambda chosen: _launch(chosen, q, kv, cu_seqlens_q, (factor, window), result)

    tokens = launch.next_power_of_2(q.shape[0])
    per_sequence = launch.next_power_of_2(q.shape[0] // n_sequences)
    longest = kv.page_table.shape[1] * kv.k_pages.shape[2]
    wide = longest >= _WIDE_CONTEXT_TOKENS and not window
    shape_class = (
        tokens,
        per_sequence,
        kv.k_pages.shape[1],
        group,
        q.shape[2],
        kv.k_pages.shape[2],
        q.dtype,
        window,
        wide,
    )
    capability = launch.compute_capability(q.device)
    options = candidates(q.shape[2], q.element_size(), per_sequence * group, capability, wide=wide)
    if _describable(kv):
        options = by_descriptor(options, kv.k_pages.shape[2]) + options
    chosen = tuning.choose(_OP, shape_class, options, make_trial, q.device)
    _launch(chosen, q, kv, cu_seqlens_q, (factor, window), result)
    return result


def candidates(
    head_dim: int, element_bytes: int, rows_per_sequence: int, capability: int, *, wide: bool = False
) -> list[LaunchConfig]:
    """Launch configurations worth measuring, the default first; few rows per sequence prefer small blocks.

    From sm_90 on products read both operands from shared memory; before, queries live in registers, and
    blocks of 64 keys spill. Where contexts may be ``wide``, blocks of 128 keys come first: they take a fifth
    fewer instructions a key, and what they compute beyond the diagonal weighs little.
    """
    if head_dim * element_bytes > 256:
        return [config(4, 2, BLOCK_M=64, BLOCK_N=32), config(8, 2, BLOCK_M=128, BLOCK_N=32)]
    if capability < 90:
        small = [config(4, 3, BLOCK_M=64, BLOCK_N=32), config(8, 2, BLOCK_M=64, BLOCK_N=64)]
        large = [config(8, 3, BLOCK_M=128, BLOCK_N=32), config(8, 4, BLOCK_M=128, BLOCK_N=32)]
    else:
        small = [config(4, 3, BLOCK_M=64, BLOCK_N=64), config(4, 4, BLOCK_M=64, BLOCK_N=64)]
        large = [
            config(8, 3, BLOCK_M=128, BLOCK_N=64),
            config(8, 2, BLOCK_M=128, BLOCK_N=64),
            config(8, 4, BLOCK_M=128, BLOCK_N=64),
        ]
        large.insert(0 if wide else 1, config(8, 2, BLOCK_M=128, BLOCK_N=128))
    return small + large if rows_per_sequence <= 64 else large + small


def by_descriptor(options: list[LaunchConfig], page_tokens: int) -> list[LaunchConfig]:
    """The same configurations with blocks of keys fetched by the tensor memory unit, where a block fits a
    page."""
    return [
        LaunchConfig(option.num_warps, option.num_stages, {**option.blocks, "BY_DESCRIPTOR": 1})
        for option in options
        if page_tokens % option.blocks["BLOCK_N"] == 0
    ]


def _describable(kv: KvPages) -> bool:
    """Whether a hardware descriptor can address these pages: Hopper, heads of a power of two, 16-byte
    strides."""
    pages = kv.k_pages
    head_dim = pages.shape[3]
    aligned = all(stride * pages.element_size() % 16 == 0 for stride in pages.stride()[:3])
    aligned = aligned and kv.k_pages.data_ptr() % 16 == 0 and kv.v_pages.data_ptr() % 16 == 0
    hopper = launch.INTERPRETED or launch.compute_capability(pages.device) >= 90
    return hopper and aligned and head_dim >= 16 and head_dim == launch.next_power_of_2(head_dim)


def _launch(
    chosen: LaunchConfig,
    q: torch.Tensor,
    kv: KvPages,
    cu_seqlens_q: torch.Tensor,
    scale_and_window: tuple[float, int],
    out: torch.Tensor,
) -> None:
    n_tokens, n_heads, head_dim = q.shape
    _, n_kv_heads, page_tokens, _ = kv.k_pages.shape
    n_sequences, group = kv.page_table.shape[0], n_heads // n_kv_heads
    scale, window = scale_and_window
    k_source, v_source = kv.k_pages, kv.v_pages
    if chosen.blocks.get("BY_DESCRIPTOR", 0):
        block = [1, 1, chosen.blocks["BLOCK_N"], head_dim]
        k_source, v_source = (TensorDescriptor.from_tensor(pages, block) for pages in (k_source, v_source))
    # Every sequence has at most one block more than its tokens fill.
    n_blocks = n_tokens // (chosen.blocks["BLOCK_M"] // group) + n_sequences
    _prefill_kernel[(n_blocks, n_kv_heads)](
        q,
        k_source,
        v_source,
        kv.page_table,
        kv.context_lens,
        cu_seqlens_q,
        out,
        n_sequences,
        scale * math.log2(math.e),
        q.stride(0),
        out.stride(0),
        kv.k_pages.stride(0),
        kv.k_pages.stride(1),
        kv.page_table.stride(0),
        GROUP=group,
        D=head_dim,
        PAGE_TOKENS=page_tokens,
        WINDOW=window,
        BLOCK_BATCH=batch_block(n_sequences),
        BLOCK_D=launch.next_power_of_2(max(head_dim, 16)),
        UPCAST_DOT=launch.INTERPRETED,
        **{"BY_DESCRIPTOR": 0, **chosen.options()},
    )
