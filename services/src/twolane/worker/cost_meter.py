"""Fits what this worker's steps cost, and counts the work it has done in seconds.

The step loop tells it of every step; load reports carry the result to routers and to the broker, which
place requests and size the pools by it.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed

from twolane.core.request import Lane
from twolane.engine.sequence import Sequence
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.prefill.queue import PrefillBatch
from twolane.v1 import worker_pb2

# A decode step is shared by about this many rows when a worker is well used.
SHARED_ROWS = 64
# Decode steps change little from one to the next: fitting some of them is enough.
FIT_EVERY = 8
MIN_SAMPLES = 32


class CostMeter:
    """Costs of one worker, from its own steps.

    Attributes:
        prefill: fitted from steps without decode rows.
        decode: fitted from steps without prefill chunks.
    """

    def __init__(self) -> None:
        self.prefill = PrefillCost()
        self.decode = DecodeCost()
        self._done_s = dict.fromkeys(Lane, 0.0)
        self._decode_s = 0.0
        self._steps = 0

    def observe(self, decoding: Listed[Sequence], batch: PrefillBatch, seconds: float) -> None:
        """Takes a step that has just been computed."""
        work = [(tokens, prompt.sequence.n_computed - tokens) for prompt, tokens in batch.chunks]
        held = sum(sequence.n_computed for sequence in decoding)
        for (prompt, _tokens), (new, cached) in zip(batch.chunks, work, strict=True):
            self._done_s[prompt.lane] += self.prefill.marginal_s(new, cached)
        if decoding:
            self._decode_s += self._shared_s(held, len(decoding))
        if work and not decoding:
            self.prefill = self.prefill.update(work, seconds)
        elif decoding and not work:
            self._steps += 1
            if self._steps % FIT_EVERY == 0:
                self.decode = self.decode.update(held, len(decoding), seconds)

    def fill(self, load: worker_pb2.Load) -> None:
        """Adds costs and work done to a load report; costs only once they can be trusted."""
        load.done.short_prefill_s = self._done_s[Lane.SHORT]
        load.done.long_prefill_s = self._done_s[Lane.LONG]
        load.done.decode_s = self._decode_s
        if self.prefill.trusted(MIN_SAMPLES):
            load.costs.prefill_constant_s = self.prefill.constant_s
            load.costs.prefill_attention_s = self.prefill.attention_s
            load.costs.prefill_token_s = self.prefill.token_s
            load.costs.prefill_cached_token_s = self.prefill.cached_token_s
        if self.decode.fit.samples >= MIN_SAMPLES:
            load.costs.decode_constant_s = self.decode.step_s(0, 0)
            load.costs.decode_held_token_s = self.decode.step_s(1, 0) - self.decode.step_s(0, 0)
            load.costs.decode_row_s = self.decode.step_s(0, 1) - self.decode.step_s(0, 0)

    def _shared_s(self, held_tokens: int, rows: int) -> float:
        """Seconds that the rows of a step take of a well filled one, in which each has as many tokens."""
        shared_tokens = int(held_tokens / rows * SHARED_ROWS)
        return rows * self.decode.step_s(shared_tokens, SHARED_ROWS) / SHARED_ROWS
