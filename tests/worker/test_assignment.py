"""A worker changes its role while requests run: nothing is lost, and the broker's watchers see it at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.worker.conftest import Oracle
from tests.worker.stack import RouterEnd, RunningWorker, until
from tests.worker.test_mixed import prompts
from twolane.broker.role_control import assign
from twolane.core.request import Lane, Phase, Role, SamplingParams
from twolane.rpc.channel import open_channel
from twolane.v1 import broker_pb2
from twolane.v1.broker_pb2_grpc import BrokerStub
from twolane.v1.types_pb2 import LANE_LONG, ROLE_PREFILL


async def test_a_decode_worker_becomes_a_prefill_worker_under_load(
    new_worker: Callable[..., Any], new_router: Callable[..., Any], oracle: Oracle, broker: str
) -> None:
    """Answers that run there end there, with the right words; the new role is announced within a moment."""
    prefill: RunningWorker = await new_worker("prefill", broker)
    decode: RunningWorker = await new_worker("decode", broker)
    for worker in (prefill, decode):
        await worker.registered()
    to_prefill: RouterEnd = await new_router(prefill)
    to_decode: RouterEnd = await new_router(decode)
    asked = prompts(4, seed=9)
    sampling = SamplingParams(max_tokens=30, temperature=0.0)
    halves = []
    for index, tokens in enumerate(asked):
        _, second = await to_decode.submit(f"r{index}", tokens, Phase.DECODE, sampling, peer=prefill.peer)
        _, first = await to_prefill.submit(f"r{index}", tokens, Phase.PREFILL, sampling, peer=decode.peer)
        halves.append((first, second))
    await until(lambda: any(second.tokens for _, second in halves))
    await assign(decode.address, Role.PREFILL, Lane.LONG)
    await until(lambda: all(first.over and second.over for first, second in halves))
    assert [first.tokens + second.tokens for first, second in halves] == [
        oracle.answer(tokens, 30) for tokens in asked
    ]
    async with open_channel(broker) as channel:
        books = await BrokerStub(channel).Inspect(broker_pb2.BrokerInspectRequest(), timeout=10)
    roles = {worker.worker_id: (worker.role, worker.lane) for worker in books.workers}
    assert roles[decode.process.identity.worker_id] == (ROLE_PREFILL, LANE_LONG)
    # And it serves its new pool.
    _, answer = await to_decode.submit("new", asked[0], Phase.BOTH, sampling)
    await until(lambda: answer.over)
    assert answer.tokens == oracle.answer(asked[0], 30)
