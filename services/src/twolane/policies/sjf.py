"""Shortest job first over both lanes: the least mean wait, and no protection for long prompts.

A baseline. The order is by tokens still to compute, so a started prompt gains on others as it advances.
"""

from __future__ import annotations

from dataclasses import dataclass

from twolane.policies.packing import BatchLimits, pack
from twolane.policies.prefill import PrefillDecision, PrefillView
from twolane.policies.settings import PrefillSettings


@dataclass(frozen=True, slots=True)
class Sjf:
    """Uses max_batch_tokens and long_chunk_tokens; keeps no memory; can starve long prompts."""

    settings: PrefillSettings
    name: str = "sjf"

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """Packs the prompts with the fewest tokens left."""
        del now_s
        limits = BatchLimits(self.settings.max_batch_tokens, prompt_tokens=self.settings.long_chunk_tokens)
        ordered = sorted(view.waiting, key=lambda prompt: prompt.uncached_tokens)
        return PrefillDecision(chunks=pack(ordered, limits))
