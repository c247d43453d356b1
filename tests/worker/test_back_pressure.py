"""A decode worker that takes no more holds prefill back, and prefill's queue the routers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.worker.conftest import Oracle
from tests.worker.stack import GREEDY, Pair, until
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


async def test_a_prompt_whose_peer_has_room_is_not_held_back(
    new_pair: Callable[..., Any], oracle: Oracle
) -> None:
    """It holds the room that the others wait for, so all would wait for it for ever."""
    pair: Pair = await new_pair(max_pinned_share=0.25)
    sender, pools = pair.prefill.process._sender, [pair.prefill.engine.pool, pair.decode.engine.pool]
    length = 80
    prompts = [
        [(number * 7 + i * (number + 3)) % 190 + 3 for i in range(length)]
        for number in range(int(0.25 * pools[0].n_pages) // (length // 4) + 2)
    ]
    # Room for one of them.
    pools[1].allocate(pools[1].n_pages - length // 4 - 4)
    seconds = [
        (await pair.to_decode.submit(f"r{n}", tokens, Phase.DECODE, GREEDY, peer=pair.prefill.peer))[1]
        for n, tokens in enumerate(prompts)
    ]
    # The first one's pages are offered, but the others are computed before it comes.
    firsts = []
    for n, tokens in [*enumerate(prompts)][1:]:
        peer = pair.decode.peer
        firsts.append((await pair.to_prefill.submit(f"r{n}", tokens, Phase.PREFILL, GREEDY, peer=peer))[1])
    await until(lambda: all(first.tokens for first in firsts))
    assert sender.waiting_pages() > 0.25 * pools[0].n_pages
    _, late = await pair.to_prefill.submit("r0", prompts[0], Phase.PREFILL, GREEDY, peer=pair.decode.peer)
    await until(lambda: all(second.over for second in seconds))
    answers = [first.tokens + second.tokens for first, second in zip([late, *firsts], seconds, strict=True)]
    assert answers == [oracle.answer(tokens, 12) for tokens in prompts]
