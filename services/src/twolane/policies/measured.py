"""Keeps a policy's cost model in step with its batches: what was dispatched, then how long it took.

Policies hold one in their memory; they call `after` at the start of a decision and `dispatched` at
its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from twolane.policies.cost import PrefillCost, Work
from twolane.policies.prefill import Chunk, WaitingPrefill


@dataclass(frozen=True, slots=True)
class MeasuredCost:
    """A fitted cost and the batch whose time is not known yet.

    Attributes:
        cost: the model.
        running: (new, cached) tokens of the batch dispatched last, empty when its time was taken.
    """

    cost: PrefillCost = field(default_factory=PrefillCost)
    running: tuple[Work, ...] = ()

    def after(self, last_batch_s: float | None) -> MeasuredCost:
        """With the time of the batch dispatched last, once."""
        if not self.running or last_batch_s is None:
            return self
        return MeasuredCost(self.cost.update(self.running, last_batch_s))

    def dispatched(self, chunks: Sequence[Chunk], waiting: Sequence[WaitingPrefill]) -> MeasuredCost:
        """With a batch whose time the next view tells; unchanged when it is empty."""
        if not chunks:
            return self
        wanted = {chunk.request_id: chunk.tokens for chunk in chunks}
        work = [
            (wanted[prompt.request_id], prompt.cached_tokens)
            for prompt in waiting
            if prompt.request_id in wanted
        ]
        return MeasuredCost(self.cost, tuple(work))
