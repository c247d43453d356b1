"""Samples one token per row of logits: temperature, top-k, top-p, min-p and Gumbel noise in one kernel, no
sort.

Called by the engine once per step, after ``logit_rules``. The noise of token i of an answer depends on
(seed, i) alone, so batching, preemption and replay don't change the text. Limit: reads of the logits, a
handful of passes.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from twolane.kernels import launch, tuning
from twolane.kernels.tuning import LaunchConfig, config

_OP = "sampling"
# Bisection steps on values in registers: they only have to come near, the exact search follows.
_BOUND_STEPS = tl.constexpr(14)
_NO_TOKEN = tl.constexpr(2**31 - 1)
_PER_ROW = ("temperature", "top_k", "top_p", "min_p", "seed", "position", "token", "logprob")


@triton.jit
def _scaled(row_ptr, columns, n_vocab, anchor, inverse_temperature):
    """Logits relative to the row's largest, divided by the temperature: at most 0, -inf past the end."""
    logits = tl.load(row_ptr + columns, mask=columns < n_vocab, other=float("-inf")).to(tl.float32)
    return (logits - anchor) * inverse_temperature


@triton.jit
def _lane_statistics(row_ptr, n_vocab, BLOCK: tl.constexpr):
    """Per lane (column modulo BLOCK): the largest logit, its first column, and the smallest finite logit."""
    lanes = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    column_of = tl.full([BLOCK], _NO_TOKEN, tl.int32)
    smallest = tl.full([BLOCK], float("inf"), tl.float32)
    for start in tl.range(0, n_vocab, BLOCK):
        columns = start + lanes
        logits = tl.load(row_ptr + columns, mask=columns < n_vocab, other=float("-inf")).to(tl.float32)
        higher = logits > largest
        largest = tl.where(higher, logits, largest)
        column_of = tl.where(higher, columns, column_of)
        smallest = tl.minimum(smallest, tl.where(logits == float("-inf"), float("inf"), logits))
    return largest, column_of, smallest


@triton.jit
def _mass(row_ptr, n_vocab, anchor, inverse_temperature, floor, BLOCK: tl.constexpr):
    """Sum of exp(z) over the values z of at least ``floor``."""
    mass = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, n_vocab, BLOCK):
        z = _scaled(row_ptr, start + tl.arange(0, BLOCK), n_vocab, anchor, inverse_temperature)
        mass += tl.where(z >= floor, tl.exp(z), 0.0)
    return tl.sum(mass, axis=0)


@triton.jit
def _lane_bound(lane_z, lane_weight, target, lowest):
    """A value whose upper set has at least the target weight, from the lanes' largest values alone.

    The lanes are a subset of the row, so what they reach the whole row reaches. Costs no pass over the row.
    """
    low = lowest
    high = low * 0.0
    for _ in tl.range(0, _BOUND_STEPS):
        middle = (low + high) * 0.5
        enough = tl.sum(tl.where(lane_z >= middle, lane_weight, 0.0), axis=0) >= target
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    snapped = tl.min(tl.where(lane_z >= low, lane_z, float("inf")), axis=0)
    return tl.where(low > lowest, snapped, lowest)


@triton.jit
def _threshold(
    row_ptr,
    n_vocab,
    anchor,
    inverse_temperature,
    floor,
    target,
    low,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest value t of the row for which the values of at least t weigh ``target`` or more.

    A value weighs 1 with COUNT (top-k), else exp(z) (top-p); values below ``floor`` weigh nothing. ``low``
    is a value of the row known to be at most t. Every pass tries the next value above ``low`` and the middle
    of what is left, and moves both ends to values that occur, so it ends exactly, usually after one or two
    passes.
    """
    lanes = tl.arange(0, BLOCK)
    high = low * 0.0
    while low < high:
        middle = low + (high - low) * 0.5
        above_mass = tl.zeros([BLOCK], tl.float32)
        above_least = tl.full([BLOCK], float("inf"), tl.float32)
        upper_mass = tl.zeros([BLOCK], tl.float32)
        upper_least = tl.full([BLOCK], float("inf"), tl.float32)
        lower_most = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in tl.range(0, n_vocab, BLOCK):
            z = _scaled(row_ptr, start + lanes, n_vocab, anchor, inverse_temperature)
            weight = tl.where(z >= floor, 1.0, 0.0)
            if not COUNT:
                weight = weight * tl.exp(z)
            above = z > low
            above_mass += tl.where(above, weight, 0.0)
            above_least = tl.minimum(above_least, tl.where(above, z, float("inf")))
            upper = z >= middle
            upper_mass += tl.where(upper, weight, 0.0)
            upper_least = tl.minimum(upper_least, tl.where(upper, z, float("inf")))
            lower_most = tl.maximum(lower_most, tl.where(upper, float("-inf"), z))
        following = tl.min(above_least, axis=0)
        if tl.sum(above_mass, axis=0) < target:
            high = low
        elif tl.sum(upper_mass, axis=0) >= target:
            low = tl.maximum(following, tl.min(upper_least, axis=0))
        else:
            low = following
            high = tl.maximum(tl.max(lower_most, axis=0), low)
    return low


@triton.jit
def _gumbel(seed, position, start, BLOCK: tl.constexpr):
    """Standard Gumbel noise for BLOCK adjacent columns, four from each philox counter (column // 4,
    position)."""
    counter = start // 4 + tl.arange(0, BLOCK // 4)
    low = (position & 0xFFFFFFFF).to(tl.uint32) + tl.zeros([BLOCK // 4], tl.uint32)
    high = (position >> 32).to(tl.uint32) + tl.zeros([BLOCK // 4], tl.uint32)
    r0, r1, r2, r3 = tl.philox(seed, counter.to(tl.uint32), low, high, high * 0)
    bits = tl.reshape(tl.join(tl.join(r0, r2), tl.join(r1, r3)), [BLOCK])
    # An exponential variate -log(1 - u) decides by its small values, so those keep all 32 bits: a series
    # near 0.
    u = bits.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    near = u * (1.0 + u * (0.5 + u * 0.3333333333))
    exponential = tl.where(u < 0.00390625, near, -tl.log(tl.maximum(1.0 - u, 5.9604645e-8)))
    return -tl.log(exponential)


@triton.jit
def _noisy_argmax(row_ptr, n_vocab, anchor, inverse_temperature, cut, seed, position, BLOCK: tl.constexpr):
    """Column of the largest z + noise among the values of at least ``cut``; blocks without one draw no
    noise."""
    lanes = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    column_of = tl.full([BLOCK], _NO_TOKEN, tl.int32)
    for start in tl.range(0, n_vocab, BLOCK):
        columns = start + lanes
        z = _scaled(row_ptr, columns, n_vocab, anchor, inverse_temperature)
        kept = (z >= cut) & (z > float("-inf"))
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            score = tl.where(kept, z + _gumbel(seed, position, start, BLOCK), float("-inf"))
            higher = score > best
            best = tl.where(higher, score, best)
            column_of = tl.where(higher, columns, column_of)
    return tl.min(tl.where(best == tl.max(best, axis=0), column_of, _NO_TOKEN), axis=0)


@triton.jit
def _cut(
    row_ptr, n_vocab, anchor, inverse_temperature, lane_z, lowest, top_k, top_p, min_p, BLOCK: tl.constexpr
):
    """The smallest z that top-k, then top-p among what top-k kept, and min-p all leave in."""
    cut = lowest
    if (top_k > 0) & (top_k < n_vocab):
        target = top_k.to(tl.float32)
        low = _lane_bound(lane_z, tl.full([BLOCK], 1.0, tl.float32), target, lowest)
        cut = _threshold(row_ptr, n_vocab, anchor, inverse_temperature, lowest, target, low, True, BLOCK)
    if top_p < 1.0:
        target = top_p * _mass(row_ptr, n_vocab, anchor, inverse_temperature, cut, BLOCK)
        low = tl.maximum(_lane_bound(lane_z, tl.exp(lane_z), target, lowest), cut)
        cut = _threshold(row_ptr, n_vocab, anchor, inverse_temperature, cut, target, low, False, BLOCK)
    if min_p > 0.0:
        cut = tl.maximum(cut, tl.log(min_p))
    return cut


# Rows of parameters lie at any address: a form for each alignment would stall serving with compilation.
@triton.jit(do_not_specialize_on_alignment=[f"{name}_ptr" for name in _PER_ROW])
def _sampling_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    token_ptr,
    logprob_ptr,
    n_vocab,
    stride_logits,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits
    largest, column_of, smallest = _lane_statistics(row_ptr, n_vocab, BLOCK)
    anchor = tl.max(largest, axis=0)
    if anchor == float("-inf"):
        # Nothing is allowed: a defined answer, which the engine treats as an error of the grammar.
        tl.store(token_ptr + row, tl.full([], 0, tl.int64))
        tl.store(logprob_ptr + row, anchor)
        return
    token = tl.min(tl.where(largest == anchor, column_of, _NO_TOKEN), axis=0)
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    if temperature > 0.0:
        inverse_temperature = 1.0 / temperature
        lane_z = (largest - anchor) * inverse_temperature
        lowest = (tl.min(smallest, axis=0) - anchor) * inverse_temperature
        top_k = tl.load(top_k_ptr + row).to(tl.int32)
        top_p = tl.load(top_p_ptr + row).to(tl.float32)
        min_p = tl.load(min_p_ptr + row).to(tl.float32)
        cut = _cut(row_ptr, n_vocab, anchor, inverse_temperature, lane_z, lowest, top_k, top_p, min_p, BLOCK)
        seed = tl.load(seed_ptr + row).to(tl.int64)
        position = tl.load(position_ptr + row).to(tl.int64)
        token = _noisy_argmax(row_ptr, n_vocab, anchor, inverse_temperature, cut, seed, position, BLOCK)
    chosen = tl.load(row_ptr + token).to(tl.float32)
    mass = _mass(row_ptr, n_vocab, anchor, 1.0, float("-inf"), BLOCK)
    tl.store(token_ptr + row, token.to(tl.int64))
    tl.store(logprob_ptr + row, chosen - anchor - tl.log(mass))


@dataclass(frozen=True)
class SamplingRows:
    """Sampling parameters, one entry per row of logits, all on its device.

    temperature: [B] float32, 0 takes the largest logit; top_k: [B] int32, 0 is off; top_p: [B] float32, 1 is
    off; min_p: [B] float32, 0 is off; seed, position: [B] int64, position = number of the token within its
    answer.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor


def sample(logits: torch.Tensor, rows: SamplingRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens [B] int64 and their log-probabilities [B] float32.

    logits: [B, V] float32, float16 or bfloat16, last dimension contiguous; -inf excludes a token. Top-k
    keeps the k largest, top-p of those the fewest that reach its share, min-p those of at least its part of
    the largest; equal logits are kept or dropped together. The largest logit's first column wins at
    temperature 0. The log-probability is that of the given logits, before temperature and truncation. A row
    of only -inf gives token 0 and -inf. Raises ValueError on bad shapes and dtypes; values are the caller's
    to check.
    """
    _validate(logits, rows)
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    if logits.shape[0] == 0:
        return tokens, logprobs

    def make_trial() -> tuning.Trial:
        return lambda chosen: _launch(chosen, logits, rows, tokens, logprobs)

    shape_class = (launch.next_power_of_2(logits.shape[1]), logits.dtype)
    chosen = tuning.choose(_OP, shape_class, candidates(logits.shape[1]), make_trial, logits.device)
    _launch(chosen, logits, rows, tokens, logprobs)
    return tokens, logprobs


def candidates(n_vocab: int) -> list[LaunchConfig]:
    """Launch configurations worth measuring for a vocabulary, the default first."""
    widest = max(64, launch.next_power_of_2(n_vocab))
    pairs = [(4096, 16), (8192, 16), (4096, 8), (2048, 8)]
    return [config(warps, BLOCK=min(block, widest)) for block, warps in pairs]


def _launch(
    chosen: LaunchConfig,
    logits: torch.Tensor,
    rows: SamplingRows,
    tokens: torch.Tensor,
    logprobs: torch.Tensor,
) -> None:
    _sampling_kernel[(logits.shape[0],)](
        logits,
        rows.temperature,
        rows.top_k,
        rows.top_p,
        rows.min_p,
        rows.seed,
        rows.position,
        tokens,
        logprobs,
        logits.shape[1],
        logits.stride(0),
        **chosen.options(),
    )


def _validate(logits: torch.Tensor, rows: SamplingRows) -> None:
    kinds = {
        "temperature": torch.float32,
        "top_k": torch.int32,
        "top_p": torch.float32,
        "min_p": torch.float32,
        "seed": torch.int64,
        "position": torch.int64,
    }
    launch.require_runnable(_OP, logits, *(getattr(rows, name) for name in kinds))
    launch.require_shape(_OP, "logits", logits, (None, None))
    launch.require_dtype(_OP, "logits", logits, launch.FLOAT_DTYPES)
    launch.require_unit_stride(_OP, "logits", logits)
    if logits.shape[1] == 0:
        raise ValueError(f"{_OP}: logits have no columns")
    for name, dtype in kinds.items():
        launch.require_vector(_OP, name, getattr(rows, name), logits.shape[0], (dtype,))
