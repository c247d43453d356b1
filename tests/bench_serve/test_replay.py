"""The loop is open: requests leave when they are due, in virtual time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable

from twolane.bench.client import PlannedRequest, Sample
from twolane.bench.replay import Counts, Replay
from twolane.workload.latency import Outcome


class VirtualTime:
    """A clock that jumps to the next sleeper's time whenever everybody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = 0

    def clock(self) -> float:
        """Seconds since the start."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Sleeps in virtual time."""
        self._number += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, self._number, future))
        await future

    async def drive(self, work: Awaitable[list[Sample]]) -> list[Sample]:
        """Runs `work` to its end, moving time on when nothing else can happen."""
        task = asyncio.ensure_future(work)
        while not task.done():
            # Several turns: what a wake-up sets off must settle before time moves.
            for _ in range(10):
                await asyncio.sleep(0)
            if self._sleepers and not task.done():
                self.now_s, _, future = heapq.heappop(self._sleepers)
                if not future.done():
                    future.set_result(None)
        return await task


def _plan(*due_s: float) -> list[PlannedRequest]:
    return [PlannedRequest(index, due, "short", 8, b"{}") for index, due in enumerate(due_s)]


def _server(
    time: VirtualTime, answer_s: float, outcome: Outcome = Outcome.DONE
) -> Callable[[PlannedRequest, float], Awaitable[Sample]]:
    async def send(request: PlannedRequest, start_s: float) -> Sample:
        sample = Sample(request.index, request.length_class, request.due_s, time.clock() - start_s)
        await time.sleep(answer_s)
        sample.outcome = outcome
        sample.last_s = time.clock() - start_s
        return sample

    return send


async def test_requests_leave_when_due_however_slow_the_server_is() -> None:
    """An answer of 100 s delays no arrival."""
    time = VirtualTime()
    replay = Replay(_server(time, 100.0), time.clock, time.sleep, lambda counts: None)
    samples = await time.drive(replay.run(_plan(0.0, 1.0, 1.0, 5.0), grace_s=1000.0))
    assert [sample.sent_s for sample in samples] == [0.0, 1.0, 1.0, 5.0]
    assert [sample.last_s for sample in samples] == [100.0, 101.0, 101.0, 105.0]


async def test_progress_counts_every_request_once() -> None:
    """Sent, done and failed add up at the end."""
    time = VirtualTime()
    seen: list[tuple[int, int, int]] = []

    def note(counts: Counts) -> None:
        seen.append((counts.sent, counts.done, counts.failed))

    replay = Replay(_server(time, 2.5, Outcome.FAILED), time.clock, time.sleep, note)
    await time.drive(replay.run(_plan(0.0, 1.0, 2.0), grace_s=1000.0))
    assert seen[-1] == (3, 0, 3)
    assert len(seen) == 6


async def test_a_run_ends_after_its_grace_and_keeps_what_was_cut_off() -> None:
    """A server that never answers can't hold the run; its requests stay in the report."""

    async def never(request: PlannedRequest, start_s: float) -> Sample:
        sample = Sample(request.index, "short", request.due_s, 0.0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            sample.outcome = Outcome.CANCELLED
        return sample

    time = VirtualTime()
    replay = Replay(never, time.clock, time.sleep, lambda counts: None)
    samples = await time.drive(replay.run(_plan(0.0, 0.0), grace_s=0.01))
    assert [sample.outcome for sample in samples] == [Outcome.CANCELLED, Outcome.CANCELLED]


async def test_ctrl_c_keeps_what_was_measured() -> None:
    """Answers that came are reported, those under way as cancelled, those not sent not at all."""
    time = VirtualTime()

    async def send(request: PlannedRequest, start_s: float) -> Sample:
        sample = Sample(request.index, "short", request.due_s, 0.0)
        try:
            await time.sleep(10.0 if request.index == 0 else 1000.0)
            sample.outcome = Outcome.DONE
        except asyncio.CancelledError:
            sample.outcome = Outcome.CANCELLED
        return sample

    def press(counts: Counts) -> None:
        if counts.done == 1 and counts.failed == 0:
            run.cancel()

    replay = Replay(send, time.clock, time.sleep, press)
    run = asyncio.ensure_future(replay.run(_plan(0.0, 5.0, 5000.0), grace_s=1.0))
    samples = await time.drive(run)
    assert replay.interrupted
    assert [sample.outcome for sample in samples] == [Outcome.DONE, Outcome.CANCELLED]
