"""An engine that fails once costs the requests of that step; one that always fails ends the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.worker.conftest import Oracle
from tests.worker.stack import DEADLINE_S, RouterEnd, RunningWorker, until
from tests.worker.test_mixed import GREEDY
from twolane.core.errors import Internal
from twolane.core.request import Phase
from twolane.worker.step_loop import MAX_FAILURES


def fail_next(worker: RunningWorker, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next `count` steps raise."""
    step, left = worker.engine.step, [count]

    def failing(*arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("device lost")
        return step(*arguments)

    monkeypatch.setattr(worker.engine, "step", failing)


async def test_a_single_failure_ends_its_requests_only(
    new_worker: Callable[..., Any],
    new_router: Callable[..., Any],
    oracle: Oracle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next request is answered, and no page is lost."""
    worker: RunningWorker = await new_worker("mixed")
    router: RouterEnd = await new_router(worker)
    fail_next(worker, 1, monkeypatch)
    _, failed = await router.submit("bad", [5, 6, 7], Phase.BOTH, GREEDY)
    await until(lambda: failed.over)
    _, answered = await router.submit("good", [5, 6, 7], Phase.BOTH, GREEDY)
    await until(lambda: answered.over)
    assert failed.error == "internal"
    assert answered.tokens == oracle.answer([5, 6, 7], 12)
    assert worker.engine.pool.held == 0


async def test_an_engine_that_always_fails_ends_the_worker(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look idle and draw all traffic; whoever runs it starts a new one."""
    worker = RunningWorker(oracle.folder, "127.0.0.1:1", "mixed")
    await worker.start()
    router = RouterEnd(worker)
    await router.open()
    fail_next(worker, MAX_FAILURES, monkeypatch)
    for index in range(MAX_FAILURES):
        _, answer = await router.submit(f"r{index}", [5, 6, 7], Phase.BOTH, GREEDY)
        await until(partial(getattr, answer, "over"))
    with pytest.raises(Internal, match="in a row"):
        await worker.close_when_ended()
    await router.close()


@pytest.mark.parametrize("stopping", [False, True])
async def test_a_step_that_fails_among_ranks_ends_the_worker_and_no_request(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, stopping: bool
) -> None:
    """Another rank is gone: requests are told nothing, and routers take them elsewhere as after a crash."""
    worker = RunningWorker(oracle.folder, "127.0.0.1:1", "mixed")
    await worker.start()
    router = RouterEnd(worker)
    await router.open()
    monkeypatch.setattr(worker.engine, "ranks", object())
    fail_next(worker, 1, monkeypatch)
    _, answer = await router.submit("r", [5, 6, 7], Phase.BOTH, GREEDY)
    if stopping:
        worker.stop.set()
    with pytest.raises(Internal, match="ranks share"):
        async with asyncio.timeout(DEADLINE_S):
            await worker.close_when_ended()
    await router.close()
    assert (answer.over, answer.error) == (False, "")
