"""Chunked prefill with a token budget per step, first come first served (SARATHI, arXiv 2403.02310).

On a prefill worker no decode shares the step, so the whole budget goes to prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

from twolane.policies.packing import BatchLimits, pack
from twolane.policies.prefill import PrefillDecision, PrefillView
from twolane.policies.settings import PrefillSettings


@dataclass(frozen=True, slots=True)
class Chunked:
    """Uses chunk_budget_tokens; keeps no memory; ignores lane, deadline and priority."""

    settings: PrefillSettings
    name: str = "chunked"

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """Fills the budget from the oldest prompts."""
        del now_s
        return PrefillDecision(chunks=pack(view.waiting, BatchLimits(self.settings.chunk_budget_tokens)))
