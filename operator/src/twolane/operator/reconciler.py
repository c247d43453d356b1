"""Looks at one ModelDeployment after the other: observe, plan, apply. Handlers tell it what changed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from twolane.operator.actions import Plan
from twolane.operator.apply import Applier
from twolane.operator.cluster import ClusterError
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.observed import Observed
from twolane.operator.queue import Key, WorkQueue

log = logging.getLogger(__name__)

Decide = Callable[[Observed], Plan]


@dataclass(frozen=True, slots=True)
class Looks:
    """Where observations come from, each by namespace and name.

    Attributes:
        observe: what is known; None when there is nothing any more.
        read_anew: makes what is known what the API server says now.
    """

    observe: Callable[[str, str], Awaitable[Observed | None]]
    read_anew: Callable[[str, str], Awaitable[None]]


class Reconciler:
    """A few tasks that share one queue; one object is never looked at twice at a time.

    Args:
        looks: where observations come from.
        applier: carries plans out.
        decide: the plan for an observation.
        metrics: counters.
        resync_s: how often an object is looked at though nothing happened.
    """

    def __init__(
        self, looks: Looks, applier: Applier, decide: Decide, metrics: OperatorMetrics, resync_s: float
    ) -> None:
        self._looks = looks
        self._applier = applier
        self._decide = decide
        self._metrics = metrics
        self._resync_s = resync_s
        self._queue = WorkQueue()
        self._stirred = asyncio.Event()

    def wake(self, key: Key) -> None:
        """Something about this object changed."""
        self._queue.add(key, _now())
        self._stirred.set()

    async def run(self, tasks: int) -> None:
        """Works until cancelled; what is asked for before it begins waits for it."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(tasks):
                    group.create_task(self._work())
        finally:
            # A look that was broken off is over: another term begins with everything to look at.
            self._queue = WorkQueue()

    async def _work(self) -> None:
        while True:
            key = await self._take()
            again_s = await self._look(key)
            if again_s is not None:
                self._queue.done(key, _now(), again_s)
            self._stirred.set()

    async def _take(self) -> Key:
        while (key := self._queue.take(_now())) is None:
            self._stirred.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._queue.next_due()):
                    await self._stirred.wait()
        self._metrics.waiting.set(len(self._queue))
        return key

    async def _look(self, key: Key) -> float | None:
        """One reconciliation; returns seconds until the next, or None when the queue knows already."""
        began = _now()
        try:
            again_s = await self._reconcile(key)
            self._metrics.reconciled.labels("done").inc()
        except ClusterError as error:
            self._failed(key, str(error), error.retry_after_s)
            return None
        except Exception:
            # A defect met by one object must not stop the others.
            log.exception("reconciliation failed", extra={"object": "/".join(key)})
            self._failed(key, "defect", 0.0)
            return None
        finally:
            self._metrics.reconcile_s.observe(_now() - began)
        return again_s

    async def _decided(self, key: Key) -> tuple[Observed, Plan] | None:
        """What is known of the object and what to do about it; None when there is nothing any more."""
        observed = await self._looks.observe(*key)
        return None if observed is None else (observed, self._decide(observed))

    async def _reconcile(self, key: Key) -> float | None:
        seen = await self._decided(key)
        if seen is not None and seen[1].is_final:
            await self._looks.read_anew(*key)
            seen = await self._decided(key)
        if seen is None:
            self._queue.forget(key)
            return None
        observed, made = seen
        if made.actions:
            names = [type(action).__name__ for action in made.actions]
            log.info("plan", extra={"object": "/".join(key), "actions": names})
        await self._applier.carry_out(observed, made)
        # Spread out, so that many objects are not looked at in one moment.
        resync_s = self._resync_s * random.uniform(0.8, 1.2)
        keepers = (observed.certificates, observed.planned)
        due_s = [kept.look_again_s for kept in keepers if kept is not None]
        return min(made.look_again_s or resync_s, *(again_s or resync_s for again_s in due_s), resync_s)

    def _failed(self, key: Key, reason: str, at_least_s: float) -> None:
        self._metrics.reconciled.labels("failed").inc()
        pause = self._queue.failed(key, _now(), at_least_s)
        log.warning("again later", extra={"object": "/".join(key), "reason": reason, "pause_s": pause})


def _now() -> float:
    return asyncio.get_running_loop().time()
