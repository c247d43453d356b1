"""Requests that end while something is under way for them: nothing of it reaches what is others' now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.worker.conftest import Oracle
from tests.worker.stack import Pair, until
from tests.worker.test_mixed import GREEDY, prompts
from twolane.core.request import Phase
from twolane.v1 import transfer_pb2


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


async def test_pages_that_changed_before_they_were_read_become_nobodys_prefix(
    new_pair: Callable[..., Any], oracle: Oracle, monkeypatch: Any
) -> None:
    """The client goes away; the prefill worker reuses its pages before the decode worker has read them."""
    pair: Pair = await new_pair()
    # The first run between two workers has a checksum, most others have none.
    _, warm = await pair.ask("warm", [9, 8, 7])
    await until(lambda: warm.over)
    landing = pair.decode.process._landing
    take, came, go_on = landing.take, asyncio.Event(), asyncio.Event()

    async def slow(push: Any) -> Any:
        came.set()
        await go_on.wait()
        return await take(push)

    monkeypatch.setattr(landing, "take", slow)
    tokens = prompts(1, seed=6)[0]
    number, _ = await pair.to_decode.submit("r", tokens, Phase.DECODE, GREEDY, peer=pair.prefill.peer)
    stream_id, first = await pair.to_prefill.submit("r", tokens, Phase.PREFILL, GREEDY, peer=pair.decode.peer)
    await until(lambda: came.is_set() and bool(first.tokens))
    await pair.to_prefill.cancel(stream_id)
    await until(lambda: pair.prefill.engine.pool.held == 0)
    pair.prefill.engine.kv.fill_(3.0)
    landed = pair.decode.process._transfers.landed_bytes.labels("shared_memory")._value
    before = landed.get()
    go_on.set()
    await until(lambda: landed.get() > before)
    await pair.to_decode.cancel(number)
    await until(lambda: pair.held() == (0, 0))
    _, again = await pair.to_decode.submit("again", tokens, Phase.BOTH, GREEDY)
    await until(lambda: again.over)
    assert again.tokens == oracle.answer(tokens, 12)


async def test_a_request_that_is_refused_while_it_is_placed_leaves_no_timer(
    new_worker: Callable[..., Any], new_router: Callable[..., Any]
) -> None:
    """Its peer's offer, here before it, asks for a transport that this worker lacks."""
    worker = await new_worker("prefill")
    router = await new_router(worker)
    table = worker.process._table
    lease = transfer_pb2.Lease(request_id="r", ttl_ms=10_000, transport=transfer_pb2.TRANSPORT_NIXL)
    table.offered(transfer_pb2.PageOffer(lease=lease))
    _, answer = await router.submit("r", [5] * 8, Phase.PREFILL, GREEDY, peer=worker.peer)
    await until(lambda: answer.over)
    assert answer.error == "incompatible"
    loop: Any = asyncio.get_running_loop()
    timers = [each for each in loop._scheduled if not each.cancelled()]
    assert not [each for each in timers if each._callback == table._expire]


async def test_a_prompt_that_nobody_begins_ends_by_its_deadline(new_pair: Callable[..., Any]) -> None:
    """Its prefill worker never hears of it: the decode half keeps no page and no place."""
    pair: Pair = await new_pair()
    pool = pair.decode.engine.pool
    taken = pool.allocate(pool.free)
    peer = pair.prefill.peer
    _, second = await pair.to_decode.submit("r", [5] * 8, Phase.DECODE, GREEDY, peer=peer, timeout_ms=150)
    await until(lambda: second.over)
    assert second.error == "deadline_exceeded"
    assert (len(pair.decode.process._parts.intake), pool.held) == (0, len(taken))


async def test_a_push_that_is_never_taken_ends_by_its_deadline(
    new_pair: Callable[..., Any], monkeypatch: Any
) -> None:
    """The decode worker lives but takes no page: both halves end in time and keep no page and no lease."""
    pair: Pair = await new_pair()
    came, go_on = asyncio.Event(), asyncio.Event()

    async def stuck(push: Any) -> Any:
        came.set()
        await go_on.wait()
        return transfer_pb2.PagePushAck()

    monkeypatch.setattr(pair.decode.process._landing, "take", stuck)
    tokens, limit = prompts(1, seed=6)[0], {"timeout_ms": 600}
    _, second = await pair.to_decode.submit(
        "r", tokens, Phase.DECODE, GREEDY, peer=pair.prefill.peer, **limit
    )
    _, first = await pair.to_prefill.submit(
        "r", tokens, Phase.PREFILL, GREEDY, peer=pair.decode.peer, **limit
    )
    await until(came.is_set)
    assert pair.held() != (0, 0)
    await until(lambda: first.over and second.over)
    assert (first.error, second.error) == ("deadline_exceeded", "deadline_exceeded")
    await until(lambda: pair.held() == (0, 0))
    leases = pair.decode.process._leases
    await until(lambda: not leases._broker._returned)
    assert list((await pair.to_decode.inspect()).leases) == []
    assert list((await pair.to_prefill.inspect()).leases) == []
    go_on.set()


async def test_requests_that_end_in_the_queue_for_pages_let_the_next_have_them(
    new_pair: Callable[..., Any], oracle: Oracle
) -> None:
    """Of three that are computed the first goes away, the second's time is up: the third gets the room."""
    pair: Pair = await new_pair()
    pool, asked = pair.decode.engine.pool, prompts(3, seed=6)
    taken = pool.allocate(pool.free)
    halves = []
    for index, tokens in enumerate(asked):
        limit = {"timeout_ms": 2000} if index == 1 else {}
        name, peers = f"r{index}", (pair.decode.peer, pair.prefill.peer)
        number, second = await pair.to_decode.submit(
            name, tokens, Phase.DECODE, GREEDY, peer=peers[1], **limit
        )
        _, first = await pair.to_prefill.submit(name, tokens, Phase.PREFILL, GREEDY, peer=peers[0])
        halves.append((number, first, second))
        await until(lambda: bool(halves[-1][1].tokens))
    intake = pair.decode.process._parts.intake
    await until(lambda: intake.waiting == 3)
    gauge = pair.decode.process._metrics.waiting_for_pages._value
    await until(lambda: gauge.get() == 3)
    await pair.to_decode.cancel(halves[0][0])
    await until(lambda: halves[1][2].over)
    assert halves[1][2].error == "deadline_exceeded"
    await until(lambda: intake.waiting == 1)
    pool.release(taken)
    # Pages of requests are given back where it is seen; these were nobody's.
    pair.decode.process._wake()
    _, first, second = halves[2]
    await until(lambda: second.over)
    assert first.tokens + second.tokens == oracle.answer(asked[2], 12)
    assert pool.held == 0
