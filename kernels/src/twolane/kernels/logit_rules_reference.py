"""Plain-torch definition of ``apply_logit_rules``, for tests and benches; also a usable path on any
device."""

from __future__ import annotations

import torch

from twolane.kernels.logit_rules import Penalties


def logit_rules_reference(
    logits: torch.Tensor, *, penalties: Penalties | None = None, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """The logits after the rules, in their dtype; the input is left as it is."""
    out = logits.float().clone()
    if penalties is not None:
        slot = penalties.slot.long()
        known = ((slot >= 0) & (slot < penalties.in_prompt.shape[0]))[:, None]
        slot = slot.clamp(0, penalties.in_prompt.shape[0] - 1)
        counts = torch.where(known, penalties.output_counts[slot], 0)
        seen = known & ((penalties.in_prompt[slot] != 0) | (counts > 0))
        repetition = penalties.repetition[:, None]
        out = torch.where(seen, torch.where(out > 0, out / repetition, out * repetition), out)
        out = out - penalties.frequency[:, None] * counts - penalties.presence[:, None] * (counts > 0)
    if allowed is not None:
        columns = torch.arange(logits.shape[1], device=logits.device)
        admitted = (allowed[:, columns // 32] >> (columns % 32)) & 1
        out = out.masked_fill(admitted == 0, float("-inf"))
    return out.to(logits.dtype)
