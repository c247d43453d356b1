"""What holds for every prefill policy, and what each baseline is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policies.prefill_play import play
from tests.policies.prefill_views import ids, long, short, view
from twolane.core.errors import ConfigError
from twolane.core.request import Lane
from twolane.policies.packing import BatchLimits, pack, prepack
from twolane.policies.prefill import WaitingPrefill
from twolane.policies.registry import PREFILL_POLICIES, by_name
from twolane.policies.settings import PrefillSettings

SEPARATING = ("laps_fixed", "laps")

PROMPTS = st.lists(
    st.tuples(st.floats(0, 3), st.integers(1, 9000), st.integers(0, 5000), st.integers(0, 3)),
    min_size=1,
    max_size=40,
)


def _prompts(drawn: list[tuple[float, int, int, int]]) -> list[WaitingPrefill]:
    made = []
    for index, (arrival_s, tokens, cached, priority) in enumerate(drawn):
        build = short if tokens <= 256 else long
        deadline_s = arrival_s + (0.4 if tokens <= 256 else 2.0) if index % 2 else None
        more = {"cached_tokens": cached, "priority": priority, "deadline_s": deadline_s}
        made.append(build(str(index), arrival_s, tokens, **more))
    return made


@pytest.mark.parametrize("name", PREFILL_POLICIES)
@settings(max_examples=40, deadline=None)
@given(PROMPTS, st.dictionaries(st.integers(0, 39), st.floats(0, 4), max_size=10))
def test_each_request_leaves_exactly_once_under_random_aborts(
    name: str, drawn: list[tuple[float, int, int, int]], aborts: dict[int, float]
) -> None:
    """Computed or aborted, never both left behind, never twice; batches keep the token limit."""
    prompts = _prompts(drawn)
    played = play(by_name(name), prompts, {str(index): at_s for index, at_s in aborts.items()})
    for index, prompt in enumerate(prompts):
        assert prompt.request_id in played.finished_s or index in aborts


@pytest.mark.parametrize("name", SEPARATING)
@settings(max_examples=40, deadline=None)
@given(PROMPTS)
def test_no_batch_mixes_the_lanes(name: str, drawn: list[tuple[float, int, int, int]]) -> None:
    """A batch holds prompts of one lane."""
    prompts = _prompts(drawn)
    lanes = {prompt.request_id: prompt.lane for prompt in prompts}
    for _, _, lane, names in play(by_name(name), prompts).batches:
        assert {lanes[request] for request in names} == {lane}


@pytest.mark.parametrize("name", SEPARATING)
@settings(max_examples=40, deadline=None)
@given(PROMPTS)
def test_no_prompt_waits_beyond_the_window_on_an_idle_worker(
    name: str, drawn: list[tuple[float, int, int, int]]
) -> None:
    """A decision to wait ends within the window of the oldest short prompt, and only short ones wait."""
    for _, until_s, waiting in play(by_name(name), _prompts(drawn)).waits:
        shorts = [prompt for prompt in waiting if prompt.lane is Lane.SHORT]
        assert until_s <= min(prompt.arrival_s for prompt in shorts) + PrefillSettings().window_s + 1e-12


@pytest.mark.parametrize("name", PREFILL_POLICIES)
def test_a_batch_keeps_the_token_limits(name: str) -> None:
    """Each policy has its own, none above max_batch_tokens."""
    policy = by_name(name, PrefillSettings(max_batch_tokens=1000))
    prompts = [long(str(index), tokens=5000) for index in range(3)] + [
        short(f"s{index}") for index in range(60)
    ]
    limit = 2048 if name == "laps_fixed" else 1000
    assert sum(chunk.tokens for chunk in policy.decide(9.0, view(*prompts)).chunks) <= limit


def test_fcfs_keeps_the_order_and_nothing_overtakes_an_unfinished_prompt() -> None:
    """The chunk of a long prompt ends the batch."""
    found = by_name("fcfs").decide(0.0, view(short("a", 0.0), long("b", 0.1), short("c", 0.2)))
    assert [(chunk.request_id, chunk.tokens) for chunk in found.chunks] == [("a", 40), ("b", 2048)]


def test_sjf_takes_the_shortest_and_hrrn_the_most_delayed_for_its_size() -> None:
    """HRRN lets a long prompt through that waited long enough."""
    prompts = (long("old", 0.0, tokens=3000), short("new", 9.9, tokens=200))
    assert ids(by_name("sjf").decide(10.0, view(*prompts)).chunks)[0] == "new"
    assert ids(by_name("hrrn").decide(10.0, view(*prompts)).chunks)[0] == "old"
    fresh = (long("old", 9.8, tokens=3000), short("new", 9.9, tokens=20))
    assert ids(by_name("hrrn").decide(10.0, view(*fresh)).chunks)[0] == "new"


def test_chunked_fills_its_budget_with_the_oldest() -> None:
    """512 tokens: the rest of the first, the start of the second."""
    found = by_name("chunked").decide(0.0, view(long("a", 0.0, 300), long("b", 0.1, 5000)))
    assert [(chunk.request_id, chunk.tokens) for chunk in found.chunks] == [("a", 300), ("b", 212)]


def test_laps_fixed_waits_its_window_and_no_longer() -> None:
    """5 ms from the arrival of the head, or eight prompts."""
    policy = by_name("laps_fixed")
    waiting = policy.decide(1.001, view(short("a", 1.0)))
    assert waiting.chunks == ()
    assert waiting.wake_s == pytest.approx(1.005)
    assert ids(policy.decide(1.005, view(short("a", 1.0))).chunks) == ["a"]
    full = view(*(short(str(index), 1.0) for index in range(9)))
    assert len(policy.decide(1.0, full).chunks) == 8


def test_laps_fixed_serves_a_long_chunk_after_four_short_batches() -> None:
    """The anti-starvation rule of the public code."""
    policy = by_name("laps_fixed")
    memory, lanes = None, []
    for round_ in range(10):
        prompts = view(
            long("l", 0.0, 50_000), *(short(f"{round_}-{i}", 0.0) for i in range(8)), memory=memory
        )
        decision = policy.decide(1.0, prompts)
        memory = decision.memory
        lanes.append(decision.chunks[0].request_id == "l")
    assert lanes == [False] * 4 + [True] + [False] * 4 + [True]


def test_pack_stops_at_each_limit() -> None:
    """Tokens, prompts, tokens of a prompt, and the unfinished one."""
    prompts = [short("a", tokens=10), long("b", tokens=500), short("c", tokens=10)]
    assert ids(pack(prompts, BatchLimits(100))) == ["a", "b"]
    assert ids(pack(prompts, BatchLimits(1000, prompts=2))) == ["a", "b"]
    assert ids(pack(prompts, BatchLimits(1000, prompt_tokens=50))) == ["a", "b"]
    assert ids(pack(prompts, BatchLimits(1000, prompt_tokens=50, one_unfinished=False))) == ["a", "b", "c"]


@given(st.lists(st.integers(1, 64), max_size=60))
def test_prepacking_places_each_prompt_once_within_the_rows(lengths: list[int]) -> None:
    """No row overflows, and there are at most 11/9 of the fewest possible rows plus one."""
    rows = prepack(lengths, 64)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    assert all(sum(lengths[position] for position in row) <= 64 for row in rows)
    # Any two rows together exceed a row, or first fit would have merged the later into the earlier.
    assert len(rows) <= 2 * sum(lengths) / 64 + 1


def test_prepacking_refuses_a_prompt_longer_than_a_row() -> None:
    """The message says so."""
    with pytest.raises(ValueError, match="does not fit"):
        prepack([65], 64)


def test_unknown_policies_and_bad_settings_are_refused() -> None:
    """With the names and the numbers that would do."""
    with pytest.raises(ConfigError, match="fcfs"):
        by_name("clever")
    with pytest.raises(ConfigError, match="max_batch_tokens"):
        PrefillSettings(max_batch_tokens=0)
    with pytest.raises(ConfigError, match="window_s"):
        PrefillSettings(window_s=-1.0)
