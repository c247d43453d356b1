"""A prefill and a decode worker with a real broker: exact answers, early first tokens, nothing leaked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.conftest import Oracle
from tests.worker.stack import Pair, RunningWorker, until
from tests.worker.test_mixed import GREEDY, prompts
from twolane.core.errors import Incompatible
from twolane.core.request import FinishReason, Phase, SamplingParams
from twolane.transfer.transports import InlineCodec
from twolane.v1 import transfer_pb2


async def test_greedy_answers_equal_transformers(new_pair: Callable[..., Any], oracle: Oracle) -> None:
    """Ten requests through both workers: the first token from one, the rest from the other, all the same."""
    pair: Pair = await new_pair(long_chunk_tokens=16, short_max_uncached_tokens=24)
    asked = prompts(10, seed=4)
    answers = [await pair.ask(f"r{index}", tokens) for index, tokens in enumerate(asked)]
    await until(lambda: all(first.over and second.over for first, second in answers))
    assert [first.tokens + second.tokens for first, second in answers] == [
        oracle.answer(tokens, 12) for tokens in asked
    ]
    assert all(len(first.tokens) == 1 and first.handed_over for first, _ in answers)
    assert {second.finish for _, second in answers} == {FinishReason.LENGTH}
    assert pair.held() == (0, 0)
    assert list((await pair.to_decode.inspect()).lease_ids) == []
    for worker in (pair.prefill, pair.decode):
        worker.engine.pool.check()


async def test_the_first_token_does_not_wait_for_the_transfer(
    new_pair: Callable[..., Any], oracle: Oracle
) -> None:
    """The decode worker has no page to offer: the first token is there, the rest follows when it has."""
    pair: Pair = await new_pair()
    pool = pair.decode.engine.pool
    taken = pool.allocate(pool.n_pages)
    tokens = prompts(1, seed=5)[0]
    first, second = await pair.ask("r", tokens)
    await until(lambda: len(first.tokens) == 1)
    assert second.events == []
    assert not first.handed_over
    pool.release(taken)
    pair.decode.process._wake()
    await until(lambda: second.over)
    assert first.tokens + second.tokens == oracle.answer(tokens, 12)


async def test_only_pages_the_decode_worker_lacks_travel(
    new_pair: Callable[..., Any], oracle: Oracle
) -> None:
    """The second turn sends its own tail, not the conversation."""
    pair: Pair = await new_pair()
    landed = pair.decode.process._transfers.landed_bytes.labels("shared_memory")
    tokens = list(range(10, 50))
    first, second = await pair.ask("one", tokens)
    await until(lambda: second.over)
    once = landed._value.get()
    turn = tokens + first.tokens + second.tokens + [5, 6, 7]
    again, rest = await pair.ask("two", turn)
    await until(lambda: rest.over)
    assert again.tokens + rest.tokens == oracle.answer(turn, 12)
    assert landed._value.get() - once < once / 2


async def test_an_answer_of_one_token_needs_no_transfer(new_pair: Callable[..., Any]) -> None:
    """The prefill worker finishes it; the router frees the decode worker by Cancel."""
    pair: Pair = await new_pair()
    stream_id, second = await pair.to_decode.submit(
        "r", [5, 6, 7], Phase.DECODE, GREEDY, peer=pair.prefill.peer
    )
    one = SamplingParams(max_tokens=1, temperature=0.0)
    _, first = await pair.to_prefill.submit("r", [5, 6, 7], Phase.PREFILL, one, peer=pair.decode.peer)
    await until(lambda: first.over)
    assert (first.finish, len(first.tokens)) == (FinishReason.LENGTH, 1)
    await pair.to_decode.cancel(stream_id)
    await until(lambda: pair.held() == (0, 0))
    assert second.events == []


@pytest.mark.parametrize("transport", ["shared_memory", "nixl", "tcp", "grpc"])
async def test_bytes_travel_by_the_transport_that_both_have(
    new_pair: Callable[..., Any], oracle: Oracle, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that can't share memory send the same pages by a stream, or inside messages."""
    if transport != "shared_memory":
        names = iter(f"host-{index}" for index in range(10_000))
        monkeypatch.setattr("twolane.worker.process.host_id", lambda: next(names))
    if transport == "grpc":
        monkeypatch.setattr(
            "twolane.worker.process.codecs", lambda store: {transfer_pb2.TRANSPORT_GRPC: InlineCodec(store)}
        )
    pair: Pair = await new_pair(nixl=transport == "nixl")
    tokens = prompts(1, seed=6)[0]
    first, second = await pair.ask("r", tokens)
    await until(lambda: second.over)
    assert first.tokens + second.tokens == oracle.answer(tokens, 12)
    for side, name in ((pair.decode, "landed_bytes"), (pair.prefill, "transfer_bytes")):
        assert getattr(side.process._transfers, name).labels(transport)._value.get() > 0


@pytest.mark.parametrize("transport", ["shared_memory", "tcp"])
async def test_layers_go_ahead_of_the_step(
    new_pair: Callable[..., Any], oracle: Oracle, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no least size each layer goes when it is computed, in chunks, past skipped pages."""
    if transport == "tcp":
        names = iter(f"host-{index}" for index in range(10_000))
        monkeypatch.setattr("twolane.worker.process.host_id", lambda: next(names))
    pair: Pair = await new_pair(
        layer_push_mib=1e-6, long_chunk_tokens=16, short_max_uncached_tokens=24, max_batch_tokens=40
    )
    ahead: list[int] = []
    advance = pair.prefill.process._sender.advance_layers

    def spy(request_id: str, page_ids: Any, tokens: int, layers: int) -> None:
        ahead.append(layers)
        advance(request_id, page_ids, tokens, layers)

    monkeypatch.setattr(pair.prefill.process._sender, "advance_layers", spy)
    asked = prompts(10, seed=21)
    answers = [await pair.ask(f"r{index}", tokens) for index, tokens in enumerate(asked)]
    await until(lambda: all(second.over for _, second in answers))
    assert [first.tokens + second.tokens for first, second in answers] == [
        oracle.answer(tokens, 12) for tokens in asked
    ]
    assert set(ahead) == set(range(1, pair.prefill.engine.spec.n_layers))
    assert pair.held() == (0, 0)


@pytest.mark.parametrize("when", ["waiting for pages", "before the handover", "decoding"])
async def test_a_cancelled_request_frees_both_sides(new_pair: Callable[..., Any], when: str) -> None:
    """Pages and leases are back on both workers, wherever the request was."""
    pair: Pair = await new_pair()
    pools = [pair.prefill.engine.pool, pair.decode.engine.pool]
    taken: list[list[int]] = [[], []]
    if when == "waiting for pages":
        taken = [pool.allocate(pool.n_pages) for pool in pools]
    elif when == "before the handover":
        taken[0] = pools[0].allocate(pools[0].n_pages)
    endless = SamplingParams(max_tokens=100, temperature=0.0)
    d_id, second = await pair.to_decode.submit("r", [5] * 20, Phase.DECODE, endless, peer=pair.prefill.peer)
    p_id, _ = await pair.to_prefill.submit("r", [5] * 20, Phase.PREFILL, endless, peer=pair.decode.peer)
    if when == "decoding":
        await until(lambda: len(second.tokens) > 2)
    elif when == "before the handover":
        await until(lambda: len(pair.prefill.process._sender.lease_ids()) == 1)
    await pair.to_prefill.cancel(p_id)
    await pair.to_decode.cancel(d_id)
    await until(lambda: pair.held() == (len(taken[0]), len(taken[1])))
    books = [await pair.to_prefill.inspect(), await pair.to_decode.inspect()]
    assert [(dict(each.requests), list(each.lease_ids)) for each in books] == [({}, []), ({}, [])]


async def test_a_lost_prefill_worker_does_not_hang_the_decode_worker(
    new_pair: Callable[..., Any],
) -> None:
    """Its peer is gone before the offer: the decode half ends with a retryable error."""
    pair: Pair = await new_pair()
    gone = pair.prefill.peer
    gone.address = "127.0.0.1:1"
    _, second = await pair.to_decode.submit("r", [5] * 8, Phase.DECODE, GREEDY, peer=gone)
    await until(lambda: second.over)
    assert second.error == "unavailable"
    assert pair.decode.engine.pool.held == 0


async def test_a_replaced_writer_gets_no_lease(new_pair: Callable[..., Any]) -> None:
    """The router still names an incarnation that has ended: refused before a page is written."""
    pair: Pair = await new_pair()
    old = pair.prefill.peer
    old.incarnation += 1000
    _, second = await pair.to_decode.submit("r", [5] * 8, Phase.DECODE, GREEDY, peer=old)
    await until(lambda: second.over)
    assert second.error == "lease_invalid"


async def test_another_vocabulary_is_refused_at_registration(
    new_worker: Callable[..., Any], broker: str, tmp_path: Any
) -> None:
    """Two models under one name never pair: the second worker ends with the differing field."""
    from tests.engine.conftest import save_model

    first: RunningWorker = await new_worker("prefill", broker, served_model_name="m")
    await first.registered()
    save_model(tmp_path / "other", "llama", vocab_size=211)
    second = RunningWorker(tmp_path / "other", broker, "decode", served_model_name="m")
    await second.start()
    with pytest.raises(Incompatible, match="vocab_size"):
        await asyncio.wait_for(second.close_when_ended(), 20)
