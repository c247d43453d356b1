"""Requests that end while something is under way for them: nothing of it reaches pages that are others' by now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.worker.stack import Pair, until
from tests.worker.test_mixed import GREEDY, prompts
from twolane.core.request import Phase


async def test_a_lease_that_comes_too_late_opens_nothing(
    new_pair: Callable[..., Any], monkeypatch: Any
) -> None:
    """The broker is slow, the request is cancelled and its pages go to another: the peer gets no offer."""
    pair: Pair = await new_pair()
    leases, pool = pair.decode.process._leases, pair.decode.engine.pool
    grant, asked, go_on = leases._broker.grant, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        lease = await grant(*arguments)
        asked.set()
        await go_on.wait()
        return lease

    opened: list[Any] = []
    monkeypatch.setattr(leases._broker, "grant", slow)
    monkeypatch.setattr(leases._landing, "expect", opened.append)
    tokens = prompts(1, seed=6)[0]
    number, _ = await pair.to_decode.submit("r", tokens, Phase.DECODE, GREEDY, peer=pair.prefill.peer)
    stream_id, first = await pair.to_prefill.submit("r", tokens, Phase.PREFILL, GREEDY, peer=pair.decode.peer)
    await until(lambda: asked.is_set() and bool(first.tokens))
    await pair.to_decode.cancel(number)
    await until(lambda: pool.held == 0)
    go_on.set()
    await until(lambda: not pair.decode.process._table._arrangements)
    assert opened == []
    assert not pair.prefill.process._sender.has_offer("r")
    await pair.to_prefill.cancel(stream_id)
    await until(lambda: pair.held() == (0, 0))
    await until(lambda: not leases._broker._returned)
