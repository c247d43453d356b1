"""First come, first served over both lanes: the baseline of prefill–decode disaggregation.

As in DistServe, whole prompts are packed up to a token limit; a prompt above the chunk size advances
chunk by chunk and nothing overtakes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from twolane.policies.packing import BatchLimits, pack
from twolane.policies.prefill import PrefillDecision, PrefillView
from twolane.policies.settings import PrefillSettings


@dataclass(frozen=True, slots=True)
class Fcfs:
    """Uses max_batch_tokens and long_chunk_tokens; keeps no memory; ignores lane, deadline, priority."""

    settings: PrefillSettings
    name: str = "fcfs"

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """Packs the oldest prompts."""
        del now_s
        limits = BatchLimits(self.settings.max_batch_tokens, prompt_tokens=self.settings.long_chunk_tokens)
        return PrefillDecision(chunks=pack(view.waiting, limits))
