"""Applies an answer's rules to its row of logits, in place: grammar mask, repetition, presence and frequency
penalties.

Called by the engine before ``sampling``, only for batches in which some row has a rule. Counts live in slots
that stay put while rows come and go. Limit: one pass over the logits and the counts.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from twolane.kernels import launch, tuning
from twolane.kernels.tuning import LaunchConfig, config

_OP = "logit_rules"


# Rows of parameters lie at any address: a form for each alignment would stall serving with compilation.
@triton.jit(
    do_not_specialize=["n_slots"],
    do_not_specialize_on_alignment=["slot_ptr", "repetition_ptr", "presence_ptr", "frequency_ptr"],
)
def _logit_rules_kernel(
    logits_ptr,
    slot_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    in_prompt_ptr,
    output_counts_ptr,
    allowed_ptr,
    n_slots,
    n_vocab,
    stride_logits,
    stride_in_prompt,
    stride_counts,
    stride_allowed,
    HAS_PENALTIES: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_vocab
    at = logits_ptr + row * stride_logits + columns
    logits = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if HAS_PENALTIES:
        slot = tl.load(slot_ptr + row).to(tl.int64)
        # A slot out of range has no counts: it isn't read, and the row keeps its logits.
        counted = columns < tl.where((slot >= 0) & (slot < n_slots), n_vocab, 0)
        count = tl.load(output_counts_ptr + slot * stride_counts + columns, mask=counted, other=0).to(
            tl.float32
        )
        in_prompt = tl.load(in_prompt_ptr + slot * stride_in_prompt + columns, mask=counted, other=0).to(
            tl.int32
        )
        repetition = tl.load(repetition_ptr + row).to(tl.float32)
        presence = tl.load(presence_ptr + row).to(tl.float32)
        frequency = tl.load(frequency_ptr + row).to(tl.float32)
        used = count > 0.0
        factor = tl.where(logits > 0.0, 1.0 / repetition, repetition)
        logits = tl.where(used | (in_prompt != 0), logits * factor, logits)
        logits -= frequency * count + tl.where(used, presence, 0.0)
    if HAS_MASK:
        word = tl.load(allowed_ptr + row * stride_allowed + columns // 32, mask=inside, other=0).to(tl.int32)
        logits = tl.where(((word >> (columns % 32)) & 1) == 1, logits, float("-inf"))
    tl.store(at, logits.to(logits_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Penalties:
    """Penalties per row, and per slot what was said so far.

    slot: [B] int32 or int64, a row's slot, negative for none; repetition (1 is off), presence, frequency (0
    is off): [B] float32; in_prompt: [n_slots, V] uint8, 1 where a token occurs in the prompt; output_counts:
    [n_slots, V] int32, how often each token was generated.
    """

    slot: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    in_prompt: torch.Tensor
    output_counts: torch.Tensor


def apply_logit_rules(
    logits: torch.Tensor, *, penalties: Penalties | None = None, allowed: torch.Tensor | None = None
) -> None:
    """Change logits [B, V] (float32, float16 or bfloat16) in place; without any rule nothing happens.

    Repetition divides positive logits and multiplies negative ones, for tokens of prompt or answer (Keskar
    et al., 2019); presence and frequency subtract for tokens of the answer, as in the OpenAI API.
    ``allowed``: [B, ceil(V/32)] int32, bit j of word i admits token 32i + j (the layout of xgrammar and
    llguidance). Raises ValueError.
    """
    _validate(logits, penalties, allowed)
    if logits.shape[0] == 0 or (penalties is None and allowed is None):
        return

    def make_trial() -> tuning.Trial:
        scratch = logits.clone()
        return lambda chosen: _launch(chosen, scratch, penalties, allowed)

    shape_class = (launch.next_power_of_2(logits.shape[1]), logits.dtype, penalties is None, allowed is None)
    chosen = tuning.choose(_OP, shape_class, candidates(), make_trial, logits.device)
    _launch(chosen, logits, penalties, allowed)


def candidates() -> list[LaunchConfig]:
    """Launch configurations worth measuring, the default first."""
    return [config(warps, BLOCK=block) for block, warps in [(1024, 4), (2048, 4), (2048, 8), (512, 4)]]


def _launch(
    chosen: LaunchConfig, logits: torch.Tensor, penalties: Penalties | None, allowed: torch.Tensor | None
) -> None:
    n_rows, n_vocab = logits.shape
    p = penalties
    _logit_rules_kernel[(n_rows, triton.cdiv(n_vocab, chosen.blocks["BLOCK"]))](
        logits,
        None if p is None else p.slot,
        None if p is None else p.repetition,
        None if p is None else p.presence,
        None if p is None else p.frequency,
        None if p is None else p.in_prompt,
        None if p is None else p.output_counts,
        allowed,
        0 if p is None else p.in_prompt.shape[0],
        n_vocab,
        logits.stride(0),
        0 if p is None else p.in_prompt.stride(0),
        0 if p is None else p.output_counts.stride(0),
        0 if allowed is None else allowed.stride(0),
        HAS_PENALTIES=p is not None,
        HAS_MASK=allowed is not None,
        **chosen.options(),
    )


def _validate(logits: torch.Tensor, penalties: Penalties | None, allowed: torch.Tensor | None) -> None:
    launch.require_runnable(_OP, logits, allowed)
    launch.require_shape(_OP, "logits", logits, (None, None))
    launch.require_dtype(_OP, "logits", logits, launch.FLOAT_DTYPES)
    launch.require_unit_stride(_OP, "logits", logits)
    n_rows, n_vocab = logits.shape
    if allowed is not None:
        launch.require_shape(_OP, "allowed", allowed, (n_rows, (n_vocab + 31) // 32))
        launch.require_dtype(_OP, "allowed", allowed, (torch.int32,))
        launch.require_unit_stride(_OP, "allowed", allowed)
    if penalties is None:
        return
    launch.require_runnable(_OP, logits, penalties.slot, penalties.in_prompt, penalties.output_counts)
    launch.require_vector(_OP, "slot", penalties.slot, n_rows, launch.INDEX_DTYPES)
    for name in ("repetition", "presence", "frequency"):
        launch.require_vector(_OP, name, getattr(penalties, name), n_rows, (torch.float32,))
    n_slots = penalties.in_prompt.shape[0]
    for name, table, dtype in (
        ("in_prompt", penalties.in_prompt, torch.uint8),
        ("output_counts", penalties.output_counts, torch.int32),
    ):
        launch.require_shape(_OP, name, table, (n_slots, n_vocab))
        launch.require_dtype(_OP, name, table, (dtype,))
        launch.require_unit_stride(_OP, name, table)
