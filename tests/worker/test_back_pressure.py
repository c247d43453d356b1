"""A decode worker that takes no more holds prefill back, and prefill's queue the routers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from tests.worker.conftest import Oracle
from tests.worker.stack import GREEDY, Answer, Pair, until
from twolane.core.request import Phase

WAITING, BEYOND = 5, 2


async def test_prompts_wait_while_transfers_hold_too_many_pages(
    new_pair: Callable[..., Any], oracle: Oracle
) -> None:
    """Prefill stops at its share of pages, shows its queue, refuses what is beyond, and goes on later."""
    pair: Pair = await new_pair(max_pinned_share=0.25, max_waiting=WAITING)
    sender, pools = pair.prefill.process._sender, [pair.prefill.engine.pool, pair.decode.engine.pool]
    taken = pools[1].allocate(pools[1].n_pages)
    limit, length = 0.25 * pools[0].n_pages, 80

    async def ask(number: int) -> tuple[Any, Any]:
        tokens = [(number * 7 + i * (number + 3)) % 190 + 3 for i in range(length)]
        _, first = await pair.to_prefill.submit(
            f"r{number}", tokens, Phase.PREFILL, GREEDY, peer=pair.decode.peer
        )
        return tokens, first

    prompts: list[list[int]] = []
    answers: list[Any] = []
    while sender.waiting_pages() <= limit:
        tokens, first = await ask(len(prompts))
        prompts.append(tokens)
        answers.append(first)
        await until(lambda: bool(answers[-1].events))
    computed = len(prompts)
    for _ in range(WAITING + BEYOND):
        tokens, first = await ask(len(prompts))
        prompts.append(tokens)
        answers.append(first)
    await until(lambda: sum(each.error == "overloaded" for each in answers) == BEYOND)
    load = pair.prefill.process._load()
    assert load.waiting_short + load.waiting_long == WAITING
    assert sum(bool(each.tokens) for each in answers) == computed
    pools[1].release(taken)
    rest = []
    for number, tokens in enumerate(prompts[: computed + WAITING]):
        _, second = await pair.to_decode.submit(
            f"r{number}", tokens, Phase.DECODE, GREEDY, peer=pair.prefill.peer
        )
        rest.append(second)
        # The decode worker's own queue is as short.
        await until(lambda: rest[-1].over)
    assert [first.tokens + second.tokens for first, second in zip(answers, rest, strict=False)] == [
        oracle.answer(tokens, 12) for tokens in prompts[: computed + WAITING]
    ]
    await until(lambda: pair.held() == (0, 0))


def _prompts(pair: Pair, length: int = 80) -> list[list[int]]:
    """As many as a prefill worker at a share of 0.25 computes before it holds back, and two more."""
    count = int(0.25 * pair.prefill.engine.pool.n_pages) // (length // 4) + 2
    return [[(number * 7 + i * (number + 3)) % 190 + 3 for i in range(length)] for number in range(count)]


async def _decode(pair: Pair, number: int, tokens: list[int]) -> Answer:
    name, peer = f"r{number}", pair.prefill.peer
    return (await pair.to_decode.submit(name, tokens, Phase.DECODE, GREEDY, peer=peer))[1]


async def _prefill(pair: Pair, number: int, tokens: list[int]) -> Answer:
    name, peer = f"r{number}", pair.decode.peer
    return (await pair.to_prefill.submit(name, tokens, Phase.PREFILL, GREEDY, peer=peer))[1]


async def test_a_prompt_whose_peer_has_room_is_not_held_back(
    new_pair: Callable[..., Any], oracle: Oracle
) -> None:
    """It holds the room that the others wait for, so all would wait for it for ever."""
    pair: Pair = await new_pair(max_pinned_share=0.25)
    sender, pools = pair.prefill.process._sender, [pair.prefill.engine.pool, pair.decode.engine.pool]
    prompts = _prompts(pair)
    # With room for all, the first has its pages early; then there is none for another.
    seconds = [await _decode(pair, 0, prompts[0])]
    await until(lambda: pair.decode.process._table.states() == {"r0": "receiving"})
    pools[1].allocate(pools[1].free - 4)
    seconds += [await _decode(pair, n, tokens) for n, tokens in [*enumerate(prompts)][1:]]
    firsts = [await _prefill(pair, n, tokens) for n, tokens in [*enumerate(prompts)][1:]]
    await until(lambda: all(first.tokens for first in firsts))
    assert sender.waiting_pages() > 0.25 * pools[0].n_pages
    late = await _prefill(pair, 0, prompts[0])
    await until(lambda: all(second.over for second in seconds))
    answers = [first.tokens + second.tokens for first, second in zip([late, *firsts], seconds, strict=True)]
    assert answers == [oracle.answer(tokens, 12) for tokens in prompts]


async def test_room_goes_to_prompts_in_the_order_in_which_they_are_computed(
    new_pair: Callable[..., Any], oracle: Oracle
) -> None:
    """The request that came first is computed last: it keeps no page from the others meanwhile."""
    pair: Pair = await new_pair(max_pinned_share=0.25)
    pool, prompts = pair.decode.engine.pool, _prompts(pair)
    # Room for one of them.
    taken = pool.allocate(pool.n_pages - len(prompts[0]) // 4 - 4)
    seconds = [await _decode(pair, n, tokens) for n, tokens in enumerate(prompts)]
    firsts = [await _prefill(pair, n, tokens) for n, tokens in [*enumerate(prompts)][1:]]
    await until(lambda: all(second.over for second in seconds[1:]))
    assert pair.decode.process._table.states() == {"r0": "reserving"}
    firsts.insert(0, await _prefill(pair, 0, prompts[0]))
    await until(lambda: seconds[0].over)
    answers = [first.tokens + second.tokens for first, second in zip(firsts, seconds, strict=True)]
    assert answers == [oracle.answer(tokens, 12) for tokens in prompts]
    await until(lambda: pair.held() == (0, len(taken)))


async def test_prompts_that_begin_before_their_requests_are_known_keep_their_order(
    new_pair: Callable[..., Any], oracle: Oracle
) -> None:
    """A router's message to the decode worker is late: what has begun counts when it comes."""
    pair: Pair = await new_pair()
    pool, prompts = pair.decode.engine.pool, _prompts(pair)[:3]
    taken = pool.allocate(pool.free)
    firsts = [await _prefill(pair, n, tokens) for n, tokens in enumerate(prompts[:2])]
    await until(lambda: all(first.tokens for first in firsts))
    seconds = [await _decode(pair, n, tokens) for n, tokens in reversed([*enumerate(prompts)])]
    seconds.reverse()
    await until(lambda: len(pair.decode.process._table.states()) == 3)
    assert pair.decode.process._parts.intake.waiting == 2
    pool.release(taken)
    firsts.append(await _prefill(pair, 2, prompts[2]))
    await until(lambda: all(second.over for second in seconds))
    answers = [first.tokens + second.tokens for first, second in zip(firsts, seconds, strict=True)]
    assert answers == [oracle.answer(tokens, 12) for tokens in prompts]


async def test_a_decode_worker_that_cannot_be_told_ends_the_request(new_pair: Callable[..., Any]) -> None:
    """Its peer is gone when the prompt begins: an error that names the peer, and no page is kept."""
    pair: Pair = await new_pair()
    gone = pair.decode.peer
    gone.address = "127.0.0.1:1"
    _, first = await pair.to_prefill.submit("r", [5] * 8, Phase.PREFILL, GREEDY, peer=gone)
    await until(lambda: first.over)
    assert first.events[-1].error.code == "unavailable"
    assert first.events[-1].error.param == "peer"
    await until(lambda: pair.held() == (0, 0))


async def test_a_decode_worker_of_an_older_version_needs_no_telling(
    new_pair: Callable[..., Any], oracle: Oracle, monkeypatch: Any
) -> None:
    """It lacks the call and reserves when the request comes: the answer is complete all the same."""
    asked: list[Any] = []

    async def unknown(self: Any, request: Any, context: Any) -> None:
        asked.append(request)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    monkeypatch.setattr("twolane.worker.service.PageTransferService.Want", unknown)
    pair: Pair = await new_pair()
    tokens = _prompts(pair)[0]
    first, second = await pair.ask("r", tokens)
    await until(lambda: second.over)
    assert first.tokens + second.tokens == oracle.answer(tokens, 12)
    assert [list(each.request_ids) for each in asked] == [["r"]]
