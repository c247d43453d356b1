"""The engine's heartbeat: gather rows, compute, settle.

One task of the worker's event loop; the engine computes in a thread of its own, one step at a time, while
the loop goes on accepting requests, landing pages and sending tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from twolane.core.clock import Clock
from twolane.core.errors import Internal
from twolane.engine.engine import Engine
from twolane.engine.sequence import Row, Sampled, Sequence
from twolane.prefill.queue import PrefillBatch
from twolane.worker.cost_meter import CostMeter
from twolane.worker.layer_push import LayerPush
from twolane.worker.metrics import WorkerMetrics
from twolane.worker.step_log import StepLog
from twolane.worker.table import Parts, RequestTable

log = logging.getLogger(__name__)

MAX_FAILURES = 5


class StepLoop:
    """Runs engine steps as long as there is work.

    Args:
        engine: computes steps.
        parts: where rows come from.
        table: gets the tokens.
        now: clock of the policies.
        meter: fits what steps cost.
        metrics: step times and token counts.

    Attributes:
        hold_back: whether only prompts whose pages can't get stuck may be computed now; a wake follows when
            that changes.
        layers: sends layers ahead of the step's end; None: pages go after it.
        log: writes every step down; None: nobody wants to know.
    """

    def __init__(
        self,
        engine: Engine,
        parts: Parts,
        table: RequestTable,
        now: Clock,
        meter: CostMeter,
        metrics: WorkerMetrics,
    ) -> None:
        self._engine = engine
        self._parts = parts
        self._table = table
        self._now = now
        self._meter = meter
        self._metrics = metrics
        self.hold_back: Callable[[], bool] = lambda: False
        self.layers: LayerPush | None = None
        self.log: StepLog | None = None
        self._failures = 0
        # Ranks that hear nothing for their timeout take this one for stuck.
        self._idle_s = engine.ranks.timeout_s / 4 if engine.ranks is not None else None
        self._spoke_s = now()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def wake(self) -> None:
        """There may be work: a request came, pages were freed, a prompt landed."""
        self._wake.set()

    async def run(self) -> None:
        """Steps until cancelled."""
        try:
            while True:
                self._wake.clear()
                self._table.reserve_pages()
                decoding, preempted = self._parts.decode.rows()
                for sequence in preempted:
                    self._table.preempted(sequence)
                allowed = self._table.frees_itself if self.hold_back() else None
                batch = self._parts.prefill.next_batch(self._now(), allowed)
                if decoding or batch.chunks:
                    await self._step(decoding, batch)
                else:
                    await self._wait(batch.wake_s)
                    await self._keep_ranks()
        finally:
            self._thread.shutdown(wait=True)
            if self.log is not None:
                self.log.close()

    async def _keep_ranks(self) -> None:
        """Tells the other ranks, now and then, that there is nothing to do."""
        if self._idle_s is not None and self._now() - self._spoke_s >= self._idle_s:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._engine.keep_alive)
            self._spoke_s = self._now()

    async def _wait(self, wake_s: float | None) -> None:
        delay_s = None if wake_s is None else max(0.0, wake_s - self._now())
        if self._idle_s is not None:
            delay_s = self._idle_s if delay_s is None else min(delay_s, self._idle_s)
        try:
            async with asyncio.timeout(delay_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _step(self, decoding: list[Sequence], batch: PrefillBatch) -> None:
        chunks = [
            Row(prompt.sequence, tokens, sample=tokens == prompt.remaining_tokens)
            for prompt, tokens in batch.chunks
        ]
        rows = [Row(sequence, 1, sample=True) for sequence in decoding] + chunks
        request_ids = frozenset(row.sequence.request_id for row in rows)
        self._table.step_begins(request_ids)
        self._table.prompts_begun(batch.begun)
        if self.layers is not None:
            self.layers.begin(batch)
        began_s = self._now()
        try:
            loop = asyncio.get_running_loop()
            # Those of this batch wait no longer.
            queued = len(self._parts.prefill) - len(batch.chunks)
            results = await loop.run_in_executor(self._thread, self._engine.step, rows, queued)
        except Exception:
            log.exception("engine step failed")
            self._end_layers()
            if self._engine.ranks is not None:
                # Its requests see this worker go, not an error of theirs: they go on elsewhere.
                raise Internal(
                    "a step failed that ranks share: nobody knows where the others stand"
                ) from None
            self._table.step_failed(request_ids)
            self._table.step_ends()
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                # A device that fails every step would look idle and draw all traffic.
                raise Internal(f"{MAX_FAILURES} engine steps in a row failed: this worker ends") from None
            return
        self._failures = 0
        self._spoke_s = self._now()
        seconds = self._spoke_s - began_s
        self._end_layers()
        self._observe(decoding, batch, seconds)
        self._settle(decoding, batch, results, seconds)
        self._table.step_ends()

    def _end_layers(self) -> None:
        if self.layers is not None:
            self.layers.end()

    def _settle(
        self, decoding: list[Sequence], batch: PrefillBatch, results: list[Sampled | None], seconds: float
    ) -> None:
        for sequence, sampled in zip(decoding, results[: len(decoding)], strict=True):
            if sampled is not None:
                self._table.token(sequence, sampled)
        complete = {id(prompt) for prompt in self._parts.prefill.settle(batch, seconds)}
        for (prompt, _tokens), sampled in zip(batch.chunks, results[len(decoding) :], strict=True):
            if id(prompt) in complete and sampled is not None:
                self._table.prompt_complete(prompt, sampled)
            else:
                self._table.prompt_advanced(prompt)

    def _observe(self, decoding: list[Sequence], batch: PrefillBatch, seconds: float) -> None:
        self._meter.observe(decoding, batch, seconds)
        if self.log is not None:
            self.log.write(decoding, batch, seconds)
        kind = "mixed" if decoding and batch.chunks else "decode" if decoding else "prefill"
        self._metrics.step_seconds.labels(kind).observe(seconds)
        self._metrics.tokens.labels("decode").inc(len(decoding))
        self._metrics.tokens.labels("prefill").inc(sum(tokens for _prompt, tokens in batch.chunks))
