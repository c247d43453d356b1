"""LAPS as in its authors' public code (arXiv 2601.11589): fixed window, fixed boundary, short first.

A baseline: the window is waited whatever it brings, and ageing is a fixed count of short batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from twolane.core.request import Lane
from twolane.policies.packing import BatchLimits, pack
from twolane.policies.prefill import PrefillDecision, PrefillView
from twolane.policies.settings import PrefillSettings


@dataclass(frozen=True, slots=True)
class LapsFixed:
    """Uses window_s, max_short_batch, short_batches_per_long, long_chunk_tokens, max_batch_tokens.

    Its memory is the number of short batches since the last long one. Between two chunks of long
    prompts at most short_batches_per_long short batches run.
    """

    settings: PrefillSettings
    name: str = "laps_fixed"

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """Short batch when it is full or its window is over; a long chunk when no short prompt waits."""
        settings = self.settings
        short_run: int = view.memory or 0
        shorts = [prompt for prompt in view.waiting if prompt.lane is Lane.SHORT]
        longs = [prompt for prompt in view.waiting if prompt.lane is Lane.LONG]
        if longs and (not shorts or short_run >= settings.short_batches_per_long):
            return PrefillDecision(pack(longs[:1], BatchLimits(settings.long_chunk_tokens)), memory=0)
        if not shorts:
            return PrefillDecision(memory=short_run)
        due_s = shorts[0].arrival_s + settings.window_s
        if len(shorts) < settings.max_short_batch and now_s < due_s:
            return PrefillDecision(wake_s=due_s, memory=short_run)
        limits = BatchLimits(settings.max_batch_tokens, prompts=settings.max_short_batch)
        return PrefillDecision(pack(shorts, limits), memory=short_run + 1)
