"""A broker that is killed, comes back empty, or has a second replica ends no request and strands no lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.state.redis_server import RedisServer
from tests.worker.brokers import BrokerProcess, until_true
from tests.worker.conftest import Oracle
from tests.worker.stack import Pair, RouterEnd, RunningWorker, until
from tests.worker.test_mixed import GREEDY, prompts
from twolane.cli.inspect import InspectConfig, audit
from twolane.core.request import Phase, SamplingParams
from twolane.rpc.channel import open_channel
from twolane.v1 import broker_pb2
from twolane.v1.broker_pb2_grpc import BrokerStub

LONG = SamplingParams(max_tokens=60, temperature=0.0)


@pytest.fixture
async def new_broker(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts brokers, killed at the end."""
    brokers: list[BrokerProcess] = []

    async def start(*flags: str) -> BrokerProcess:
        broker = BrokerProcess(tmp_path / f"broker-{len(brokers)}", *flags)
        brokers.append(broker)
        await broker.start()
        return broker

    yield start
    for broker in brokers:
        await broker.kill()


@pytest.fixture
async def pair_at(new_worker: Callable[..., Any], new_router: Callable[..., Any]) -> Callable[..., Any]:
    """Starts a prefill and a decode worker at a broker's address."""

    async def start(address: str) -> Pair:
        workers: list[RunningWorker] = []
        for role in ("prefill", "decode"):
            workers.append(await new_worker(role, address))
            await workers[-1].registered()
        sessions: list[RouterEnd] = [await new_router(worker) for worker in workers]
        return Pair(workers[0], workers[1], (sessions[0], sessions[1]))

    return start


def hold_prompts(pair: Pair) -> list[int]:
    """Takes every free page of the prefill worker: transfers stay open until they are given back."""
    pool = pair.prefill.engine.pool
    return pool.allocate(pool.free)


def let_prompts_go(pair: Pair, taken: list[int]) -> None:
    """Gives the pages back."""
    pair.prefill.engine.pool.release(taken)
    pair.prefill.process._wake()


def slow_down(worker: RunningWorker) -> None:
    """Makes each engine step last long enough for things to happen between two tokens."""
    step = worker.engine.step

    def slow_step(*arguments: Any) -> Any:
        time.sleep(0.03)
        return step(*arguments)

    worker.engine.step = slow_step  # type: ignore[method-assign, assignment]


async def test_requests_run_on_and_new_ones_begin_while_the_broker_is_gone(
    new_broker: Callable[..., Any], pair_at: Callable[..., Any], oracle: Oracle
) -> None:
    """Answers in the making, transfers in the making and new requests all end as they should, although the
    broker stays away for longer than a lease lasts."""
    broker: BrokerProcess = await new_broker()
    pair: Pair = await pair_at(broker.address)
    asked = prompts(4, seed=11)
    warm = await pair.ask("warm", asked[3])
    await until(lambda: warm[1].over)
    slow_down(pair.decode)
    running = await pair.ask("running", asked[0], LONG)
    await until(lambda: len(running[1].tokens) > 2)
    taken = hold_prompts(pair)
    held = await pair.ask("held", asked[1])
    await until(lambda: pair.decode.process._landing.lease_ids() != [])
    await broker.kill()
    fresh = await pair.ask("fresh", asked[2])
    await until(lambda: any("own-" in each for each in pair.decode.process._landing.lease_ids()))
    assert not running[1].over
    # The leases last one second: they are over twice.
    await asyncio.sleep(2.0)
    let_prompts_go(pair, taken)
    await until(lambda: all(second.over for _, second in (running, held, fresh)))
    tokens = [first.tokens + second.tokens for first, second in (running, held, fresh)]
    assert tokens == [
        oracle.answer(asked[0], 60),
        oracle.answer(asked[1], 12),
        oracle.answer(asked[2], 12),
    ]
    assert pair.held() == (0, 0)


async def test_a_broker_that_lost_its_books_learns_leases_and_incarnations_again(
    new_broker: Callable[..., Any], pair_at: Callable[..., Any], oracle: Oracle
) -> None:
    """It takes leases that it never granted over as they are; at the end every book is empty."""
    broker: BrokerProcess = await new_broker()
    pair: Pair = await pair_at(broker.address)
    before = {each.worker_id: each.incarnation for each in (await broker.books()).workers}
    asked = prompts(2, seed=12)
    taken = hold_prompts(pair)
    answers = [await pair.ask("granted", asked[0])]
    await until(lambda: len(pair.decode.process._landing.lease_ids()) == 1)
    await broker.kill()
    answers.append(await pair.ask("own", asked[1]))
    await until(lambda: len(pair.decode.process._landing.lease_ids()) == 2)
    await broker.start()
    out = sorted(pair.decode.process._landing.lease_ids())

    async def knows_all() -> bool:
        books = await broker.books()
        return len(books.workers) == 2 and sorted(lease.lease_id for lease in books.leases) == out

    await until_true(knows_all)
    assert {each.worker_id: each.incarnation for each in (await broker.books()).workers} == before
    let_prompts_go(pair, taken)
    await until(lambda: all(second.over for _, second in answers))
    assert [first.tokens + second.tokens for first, second in answers] == [
        oracle.answer(tokens, 12) for tokens in asked
    ]

    async def knows_none() -> bool:
        return not (await broker.books()).leases

    await until_true(knows_none)
    assert await audit(InspectConfig(broker=broker.address, settle_s=0.5)) == 0


async def test_leases_that_ended_without_a_broker_are_given_back_later(
    new_broker: Callable[..., Any], pair_at: Callable[..., Any], tmp_path: Path
) -> None:
    """The books are in Redis and outlive the broker: what ended meanwhile leaves them before it expires."""
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        broker: BrokerProcess = await new_broker("--redis-url", redis.url, "--lease-ttl-s", "600")
        pair: Pair = await pair_at(broker.address)
        taken = hold_prompts(pair)
        _, second = await pair.ask("r", [5] * 9)
        await until(lambda: len(pair.decode.process._landing.lease_ids()) == 1)
        await broker.kill()
        let_prompts_go(pair, taken)
        await until(lambda: second.over)
        await broker.start()

        async def knows_none() -> bool:
            return not (await broker.books()).leases

        await until_true(knows_none)
    finally:
        redis.stop()


async def test_a_second_replica_takes_over(
    new_broker: Callable[..., Any], pair_at: Callable[..., Any], oracle: Oracle, tmp_path: Path
) -> None:
    """Two brokers on one Redis: the first is killed, the second renews, grants and takes back."""
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        first: BrokerProcess = await new_broker("--redis-url", redis.url)
        second: BrokerProcess = await new_broker("--redis-url", redis.url)
        pair: Pair = await pair_at(f"{first.address},{second.address}")
        asked = prompts(2, seed=13)
        taken = hold_prompts(pair)
        answers = [await pair.ask("before", asked[0])]
        await until(lambda: len(pair.decode.process._landing.lease_ids()) == 1)
        await first.kill()
        answers.append(await pair.ask("after", asked[1]))
        await until(lambda: len(pair.decode.process._landing.lease_ids()) == 2)
        # Longer than a lease lasts unless it is renewed.
        await asyncio.sleep(1.5)
        books = await second.books()
        assert {lease.request_id for lease in books.leases} == {"before", "after"}
        let_prompts_go(pair, taken)
        await until(lambda: all(answer.over for _, answer in answers))
        assert [one.tokens + other.tokens for one, other in answers] == [
            oracle.answer(tokens, 12) for tokens in asked
        ]
    finally:
        redis.stop()


async def test_a_replaced_writer_can_not_land_late(
    new_broker: Callable[..., Any], pair_at: Callable[..., Any]
) -> None:
    """Another process takes the prefill worker's name: the owner closes the pages to the old one, whose
    pushes are refused from then on, and ends the request."""
    broker: BrokerProcess = await new_broker()
    pair: Pair = await pair_at(broker.address)
    taken = hold_prompts(pair)
    _, second = await pair.to_decode.submit("r", [5] * 9, Phase.DECODE, GREEDY, peer=pair.prefill.peer)
    _, first = await pair.to_prefill.submit("r", [5] * 9, Phase.PREFILL, GREEDY, peer=pair.decode.peer)
    await until(lambda: pair.prefill.process._sender.lease_ids() != [])
    (lease,) = pair.decode.process._landing.leases()
    info = pair.prefill.process._info()
    async with open_channel(broker.address) as channel:
        await BrokerStub(channel).Register(broker_pb2.RegisterRequest(worker=info))
    await until(lambda: second.over)
    assert second.error == "lease_invalid"
    assert lease.lease_id not in pair.decode.process._landing.lease_ids()
    let_prompts_go(pair, taken)
    await until(lambda: first.over)
    assert (first.error, first.handed_over) == ("lease_invalid", False)
    await until(lambda: pair.held() == (0, 0))


async def test_an_offer_of_another_layout_is_refused(
    new_broker: Callable[..., Any], pair_at: Callable[..., Any]
) -> None:
    """Such a lease has passed no registration: the writer compares, and says what differs."""
    broker: BrokerProcess = await new_broker()
    pair: Pair = await pair_at(broker.address)
    pair.decode.process._leases._fingerprint.kv_dtype = "float16"
    pair.decode.process._leases._fingerprint.page_tokens = 16
    _, second = await pair.ask("r", [5] * 9)
    await until(lambda: second.over)
    assert second.error == "incompatible"
    message = next(event.error.message for event in second.events if event.error.code)
    assert "kv_dtype 'float32' != 'float16'" in message
    assert "page_tokens 4 != 16" in message
