"""A term that ends in the middle of a look leaves nothing undone for the next one."""

from __future__ import annotations

import asyncio
from typing import cast

from prometheus_client import CollectorRegistry

from tests.operator.objects import NOW, model_deployment
from twolane.operator.actions import Plan
from twolane.operator.apply import Applier
from twolane.operator.metrics import OperatorMetrics
from twolane.operator.observed import Observed
from twolane.operator.reconciler import Looks, Reconciler

KEY = ("team", "demo")
DEADLINE_S = 10.0


class _Applier:
    """Takes no action."""

    async def carry_out(self, observed: Observed, plan: Plan) -> None:
        """Nothing to do."""


async def test_a_look_that_was_broken_off_is_made_again_in_the_next_term() -> None:
    """As when the lease is lost: the object must not count as looked at for ever."""
    began, looks = asyncio.Event(), asyncio.Semaphore(0)
    stuck = True

    async def observe(namespace: str, name: str) -> Observed:
        began.set()
        if stuck:
            await asyncio.Event().wait()
        looks.release()
        return Observed(model_deployment(), {}, (), NOW)

    async def read_anew(namespace: str, name: str) -> None:
        raise AssertionError

    metrics = OperatorMetrics(CollectorRegistry())
    applier = cast(Applier, _Applier())
    reconciler = Reconciler(Looks(observe, read_anew), applier, lambda _: Plan(()), metrics, 300.0)
    async with asyncio.timeout(DEADLINE_S):
        for stuck in (True, False):
            reconciler.wake(KEY)
            term = asyncio.create_task(reconciler.run(2))
            await (began.wait() if stuck else looks.acquire())
            term.cancel()
            await asyncio.gather(term, return_exceptions=True)
