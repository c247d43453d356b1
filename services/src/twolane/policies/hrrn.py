"""Highest response ratio next over both lanes: short first, but waiting raises every prompt's rank.

A baseline, offered for prefill queues by LightLLM among others. Service times come from the cost model
fitted to the worker's own batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from twolane.policies.measured import MeasuredCost
from twolane.policies.packing import BatchLimits, pack
from twolane.policies.prefill import PrefillDecision, PrefillView
from twolane.policies.settings import PrefillSettings


@dataclass(frozen=True, slots=True)
class Hrrn:
    """Uses max_batch_tokens and long_chunk_tokens; its memory is a MeasuredCost."""

    settings: PrefillSettings
    name: str = "hrrn"

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """Packs the prompts with the highest (wait + service) / service."""
        memory: MeasuredCost = view.memory or MeasuredCost()
        measured = memory.after(view.last_batch_s)
        cost = measured.cost
        limits = BatchLimits(self.settings.max_batch_tokens, prompt_tokens=self.settings.long_chunk_tokens)
        ordered = sorted(
            view.waiting,
            key=lambda prompt: (
                -(now_s - prompt.arrival_s) / cost.prompt_s(prompt.uncached_tokens, prompt.cached_tokens)
            ),
        )
        chunks = pack(ordered, limits)
        return PrefillDecision(chunks=chunks, memory=measured.dispatched(chunks, view.waiting))
