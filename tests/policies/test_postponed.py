"""The budget of late long prompts: how many, which, and that nobody waits beyond the stated bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.prefill_play import Played, play
from tests.policies.prefill_views import ids, long, view
from tests.policies.test_laps import KNOWN, SETTINGS
from twolane.policies.fcfs import Fcfs
from twolane.policies.fcfs_clock import FcfsClock
from twolane.policies.laps import Laps
from twolane.policies.laps_moment import LapsMemory
from twolane.policies.measured import MeasuredCost
from twolane.policies.postponed import Postponed, credit_most
from twolane.policies.prefill import PrefillDecision, PrefillView, WaitingPrefill
from twolane.policies.recent import Recent
from twolane.policies.settings import PrefillSettings

SHARE = SETTINGS.postpone_share


def _memory(credit: float = 0.0) -> LapsMemory:
    return LapsMemory(MeasuredCost(KNOWN), 256, postponed=Postponed(credit=credit))


class _Known(Laps):
    """The policy with a cost that is known from the start; keeps all prompts that it ever postponed."""

    gone: set[str]

    def __init__(self, settings: PrefillSettings) -> None:
        super().__init__(settings)
        object.__setattr__(self, "gone", set())

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        decision = super().decide(now_s, view if view.memory else replace(view, memory=_memory()))
        self.gone.update(decision.memory.postponed.gone_ids)
        return decision


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=60),
    st.floats(0.001, 0.3),
)
def test_the_budget_is_never_overdrawn(steps: list[tuple[int, int]], share: float) -> None:
    """Of the first n prompts at most share · n are postponed, of any n in a row a window's worth more."""
    postponed, count, spent = Postponed(), 0, [(0, 0)]
    for at_s, (arrive, wanted) in enumerate(steps):
        longs = [long(f"{count + i}", at_s + i / 10) for i in range(arrive)]
        count += arrive
        postponed = postponed.after(longs, [1.0 + i for i in range(arrive)], share)
        able = postponed.candidates(longs, [1.0 + i for i in range(arrive)], share)
        postponed = postponed.postpone([longs[position].request_id for position in able[:wanted]])
        spent.append((count, len(able[:wanted])))
    total = 0
    for end, (n, _) in enumerate(spent):
        total += spent[end][1]
        assert total <= share * n + 1e-9
        for begin in range(end):
            between = sum(one for _, one in spent[begin + 1 : end + 1])
            assert between <= credit_most(share) + share * (n - spent[begin][0]) + 1e-9


def _overload(count: int) -> list[WaitingPrefill]:
    """A queue that grows for eight seconds, of equal prompts with a giant among every twenty."""
    sizes = [16_000 if i % 20 == 7 else 1500 for i in range(count)]
    return [
        long(f"l{i}", 0.045 * i, size, deadline_s=0.045 * i + max(1.0, 5 * 25e-6 * size))
        for i, size in enumerate(sizes)
    ]


def _late(played: Played, prompts: list[WaitingPrefill]) -> int:
    return sum(played.finished_s[one.request_id] > (one.deadline_s or 0.0) for one in prompts)


def test_one_in_a_hundred_postponed_keeps_many_deadlines_and_the_tail_of_the_others() -> None:
    """Few prompts, all of them giants, end later than fcfs's slowest, and none beyond its factor."""
    prompts = _overload(600)
    policy = _Known(SETTINGS)
    ours, fcfs = play(policy, prompts), play(Fcfs(SETTINGS), prompts)
    none = play(_Known(replace(SETTINGS, postpone_share=0.0)), prompts)
    assert 2 <= len(policy.gone) <= SHARE * len(prompts)
    assert {one.uncached_tokens for one in prompts if one.request_id in policy.gone} == {16_000}
    assert _late(ours, prompts) <= 0.9 * _late(none, prompts)
    slowest_s = max(fcfs.finished_s[one.request_id] - one.arrival_s for one in prompts)
    chunk_s = SETTINGS.long_chunk_target_s + 0.01
    for one in prompts:
        factor = SETTINGS.postpone_factor if one.request_id in policy.gone else 1.1
        assert ours.finished_s[one.request_id] - one.arrival_s <= factor * slowest_s + chunk_s


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 12), st.integers(257, 20_000), st.floats(0.1, 9)), min_size=20, max_size=120
    )
)
def test_a_postponed_prompt_is_overtaken_by_none_that_came_its_limit_later(
    arrivals: list[tuple[float, int, float]],
) -> None:
    """And the others by none that came long_age_limit_s later, whatever sizes, deadlines and budget."""
    limits = replace(SETTINGS, long_age_limit_s=1.0, postpone_limit_s=3.0, postpone_share=0.3)
    prompts = [long(f"l{i}", at, size, deadline_s=at + limit) for i, (at, size, limit) in enumerate(arrivals)]
    policy = _Known(limits)
    played = play(policy, prompts)
    first_s: dict[str, float] = {}
    last_s: dict[str, float] = {}
    for start_s, _, _, names in played.batches:
        for name in names:
            first_s.setdefault(name, start_s)
            last_s[name] = start_s
    for one in prompts:
        limit_s = limits.postpone_limit_s if one.request_id in policy.gone else limits.long_age_limit_s
        for other in prompts:
            if other.arrival_s > one.arrival_s + limit_s:
                assert first_s[other.request_id] >= last_s[one.request_id]


def test_only_the_largest_of_late_that_have_not_begun_are_postponed() -> None:
    """A started prompt holds pages: put aside, it would keep others from beginning."""
    services = Recent().after([0.01 * i for i in range(200)])
    postponed = Postponed(credit=2.5, services=services)
    longs = [long(name) for name in "abcd"]
    assert postponed.candidates(longs, [1.95, 1.99, 1.97, 0.5], SHARE) == [1, 2]
    assert postponed.started(["b"]).candidates(longs, [1.95, 1.99, 1.97, 0.5], SHARE) == [2, 0]
    assert postponed.postpone(["b"]).candidates(longs, [1.95, 1.99, 1.97, 0.5], SHARE) == [2]
    assert postponed.postpone(["b", "c"]).candidates(longs, [1.95, 1.99, 1.97, 0.5], SHARE) == []


def test_what_was_postponed_is_remembered_while_out_of_sight() -> None:
    """A decision may see only the prompts with pages; the next sees all again."""
    postponed = Postponed(credit=1.0).postpone(["a"])
    postponed = postponed.after([long("b", 1.0)], [0.1], SHARE)
    assert postponed.gone_ids == {"a"}
    assert postponed.credit == pytest.approx(SHARE)


def test_a_giant_past_its_date_lets_all_others_go_first() -> None:
    """With credit; without, it is the first."""
    giant, small = long("giant", 0.0, 60_000, deadline_s=9.0), long("small", 9.0, 2000, deadline_s=30.0)
    clock = FcfsClock(seen_s=9.5, dates_s={"giant": 10.0, "small": 12.0})
    policy = Laps(SETTINGS)

    def first(credit: float) -> str:
        memory = replace(_memory(credit), clock=clock)
        return ids(policy.decide(20.0, view(giant, small, memory=memory)).chunks)[0]

    assert first(0.0) == "giant"
    assert first(1.0) == "small"


@pytest.mark.parametrize("off", [{"postpone_share": 0.0}, {"reorder_long": False}])
def test_without_postponing_nothing_is_remembered_of_started_prompts(off: dict[str, float]) -> None:
    """A worker lives for weeks."""
    policy, memory = Laps(replace(SETTINGS, **off)), _memory()  # type: ignore[arg-type]
    for number in range(200):
        decision = policy.decide(float(number), view(long(str(number), float(number)), memory=memory))
        memory = decision.memory
    assert ids(decision.chunks) == ["199"]
    assert not memory.postponed.started_ids
