"""Sends requests when they are due, whatever became of the ones before: an open loop.

A server that falls behind therefore sees the queue it would see in production. The run is bounded: in
number by its plan, in time by the last arrival and a grace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from twolane.bench.client import PlannedRequest, Sample
from twolane.core.clock import Clock
from twolane.workload.latency import Outcome

Send = Callable[[PlannedRequest, float], Awaitable[Sample]]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class Counts:
    """How far a run is."""

    total: int
    sent: int = 0
    done: int = 0
    failed: int = 0


class Replay:
    """One run of a plan.

    Attributes:
        interrupted: whether the run was cancelled before its end; its samples then lack what was not sent.
    """

    def __init__(self, send: Send, clock: Clock, sleep: Sleep, on_change: Callable[[Counts], None]) -> None:
        """`send` measures one request; `on_change` hears of every request sent or ended."""
        self._send = send
        self._clock = clock
        self._sleep = sleep
        self._on_change = on_change
        self.interrupted = False

    async def run(self, plan: Sequence[PlannedRequest], grace_s: float) -> list[Sample]:
        """Samples in the order of the plan; what runs `grace_s` after the last arrival is cancelled."""
        counts = Counts(len(plan))
        start_s = self._clock()
        tasks: list[asyncio.Task[Sample]] = []
        try:
            for request in plan:
                await self._sleep(max(0.0, start_s + request.due_s - self._clock()))
                tasks.append(asyncio.create_task(self._measure(request, start_s, counts)))
                counts.sent += 1
                self._on_change(counts)
            await asyncio.wait(tasks, timeout=grace_s)
        except asyncio.CancelledError:
            # Ctrl-C: what was measured so far is worth a report.
            self.interrupted = True
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before its first step has sent nothing.
        failures = [end for end in ended if isinstance(end, Exception)]
        if failures:
            raise failures[0]
        return [end for end in ended if isinstance(end, Sample)]

    async def _measure(self, request: PlannedRequest, start_s: float, counts: Counts) -> Sample:
        sample = await self._send(request, start_s)
        if sample.outcome is Outcome.DONE:
            counts.done += 1
        else:
            counts.failed += 1
        self._on_change(counts)
        return sample
