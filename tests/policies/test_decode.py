"""Decode admission: the predicted peak, the sampler, and no row lost or starved."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twolane.core.errors import ConfigError
from twolane.policies.decode import (
    DECODE_POLICIES,
    DecodePolicy,
    DecodeRow,
    DecodeSettings,
    DecodeView,
    FinishedAnswer,
    decode_by_name,
    future_peak,
)
from twolane.policies.lengths import LengthHistory

ROWS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 200)), max_size=12)


def _brute_force(rows: list[tuple[int, int]]) -> int:
    """Plays every token: a row holds one more per step until its last token, then nothing."""
    peak = sum(held for held, _ in rows)
    for step in range(max((left for _, left in rows), default=0) + 1):
        peak = max(peak, sum(held + step for held, left in rows if left >= step))
    return peak


@pytest.mark.parametrize(
    ("rows", "peak"),
    [
        ([(10, 5), (20, 2), (4, 8)], 40),
        ([(100, 50), (100, 50), (100, 1)], 303),
        ([], 0),
        ([(7, 0)], 7),
    ],
)
def test_the_peak_of_known_vectors(rows: list[tuple[int, int]], peak: int) -> None:
    """Two vectors of the notes, nothing, and a row about to end."""
    assert future_peak(rows) == peak


@given(ROWS)
def test_the_peak_is_that_of_playing_every_token(rows: list[tuple[int, int]]) -> None:
    """The formula equals brute force, b = 0 included."""
    assert future_peak(rows) == _brute_force(rows)


def _history(*lengths: int, window: int = 200) -> LengthHistory:
    history = LengthHistory(window, (), ())
    for length in lengths:
        history = history.observe(length)
    return history


def test_the_sampler_is_the_conditional_distribution() -> None:
    """Given more than 25 tokens, lengths 30 and 50 remain: a polygon through 25, 30, 50 and the limit."""
    history = _history(10, 20, 30, 50)
    drawn = [history.conditional(25, 100, draw) for draw in (0.0, 1 / 3, 2 / 3, 5 / 6, 1.0)]
    assert drawn == [25, 30, 50, 75, 100]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=50), st.integers(0, 600), st.floats(0, 1))
def test_a_prediction_never_lies_below_what_is_generated(lengths: list[int], done: int, draw: float) -> None:
    """Nor above the longest known length or the limit; it never falls as the draw rises."""
    history = _history(*lengths)
    found = history.conditional(done, 400, draw)
    assert done <= found <= max(400, *lengths, done)
    assert history.conditional(done, 400, min(1.0, draw + 0.1)) >= found


def test_the_window_forgets_the_oldest() -> None:
    """Only the newest lengths count."""
    assert _history(1000, 5, 6, 7, window=3).ordered == (5, 6, 7)


def test_an_answer_cut_off_counts_as_longer() -> None:
    """It takes the median of the known lengths above it."""
    history = _history(10, 200, 300).observe(100, cut_off=True)
    assert history.recent[-1] > 100


def _row(name: str, held: int, done: int = 0, limit: int = 100, draw: float = 0.5) -> DecodeRow:
    return DecodeRow(name, held, done, limit, draw)


def test_past_future_admits_more_than_conservative_once_answers_are_short() -> None:
    """After many answers of 10 tokens a limit of 1,000 no longer reserves 1,000."""
    policies = {
        name: decode_by_name(name, DecodeSettings(max_output_tokens=1000)) for name in DECODE_POLICIES
    }
    waiting = tuple(_row(str(index), 100, limit=10) for index in range(40))
    finished = tuple(FinishedAnswer(10) for _ in range(400))
    admitted = {}
    for name, policy in policies.items():
        wide = tuple(DecodeRow(row.request_id, 100, 0, 1000, row.draw) for row in waiting)
        first = policy.decide(0.0, DecodeView((), (), 3000, 64, finished=finished))
        found = policy.decide(0.0, DecodeView((), wide, 3000, 64, memory=first.memory))
        admitted[name] = len(found.admit)
    assert admitted["conservative"] == 2
    assert admitted["conservative"] < admitted["past_future"] <= admitted["aggressive"]


@pytest.mark.parametrize("name", DECODE_POLICIES)
def test_a_request_alone_is_always_admitted(name: str) -> None:
    """Even when its limit exceeds the capacity, or it would wait for ever."""
    policy = decode_by_name(name, DecodeSettings(max_output_tokens=10_000))
    view = DecodeView((), (_row("a", 90, limit=10_000),), 100, 4)
    assert policy.decide(0.0, view).admit == ("a",)


@pytest.mark.parametrize("name", DECODE_POLICIES)
def test_overflow_preempts_the_latest_and_keeps_one(name: str) -> None:
    """Just as many as needed leave, the last admitted first."""
    policy = decode_by_name(name)
    rows = (_row("a", 50), _row("b", 30), _row("c", 30))
    assert policy.decide(0.0, DecodeView(rows, (), 110, 8)).preempt == ("c",)
    assert policy.decide(0.0, DecodeView(rows[:1], (), 10, 8)).preempt == ()


@pytest.mark.parametrize("name", DECODE_POLICIES)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.floats(0, 0.99)), min_size=1, max_size=15)
)
def test_all_answers_end_and_memory_is_kept(name: str, requests: list[tuple[int, int, float]]) -> None:
    """Played to the end, each request ends once and pages never exceed the capacity."""
    policy = decode_by_name(name, DecodeSettings(max_output_tokens=40))
    _play(policy, requests, capacity=110)


def _play(policy: DecodePolicy, requests: list[tuple[int, int, float]], capacity: int) -> None:
    outputs = {str(index): output for index, (_, output, _) in enumerate(requests)}
    waiting = [_row(str(i), prompt + 1, 1, 40, draw) for i, (prompt, _, draw) in enumerate(requests)]
    rows: list[DecodeRow] = []
    ended: list[str] = []
    finished: list[FinishedAnswer] = []
    memory = None
    for step in range(5000):
        view = DecodeView(tuple(rows), tuple(waiting), capacity, 8, finished=tuple(finished), memory=memory)
        decision = policy.decide(float(step), view)
        memory = decision.memory
        finished.clear()
        for name in decision.preempt:
            row = next(row for row in rows if row.request_id == name)
            rows.remove(row)
            waiting.insert(0, row)
        assert not (decision.preempt and decision.admit)
        for name in decision.admit:
            assert waiting[0].request_id == name
            rows.append(waiting.pop(0))
        assert sum(row.held_tokens for row in rows) <= capacity
        grown = []
        for row in rows:
            if row.generated_tokens >= outputs[row.request_id]:
                ended.append(row.request_id)
                finished.append(FinishedAnswer(row.generated_tokens))
            else:
                grown.append(
                    _row(row.request_id, row.held_tokens + 1, row.generated_tokens + 1, 40, row.draw)
                )
        rows = grown
        if not rows and not waiting:
            break
    assert sorted(ended) == sorted(outputs)


@pytest.mark.parametrize("name", DECODE_POLICIES)
@given(
    rows=st.lists(st.integers(1, 60), max_size=6),
    early=st.integers(0, 6),
    begun=st.lists(st.integers(1, 60), max_size=4),
    queued=st.lists(st.integers(1, 60), max_size=6),
    share=st.floats(0.01, 1.0),
)
def test_whoever_is_early_leaves_room_for_the_longest(
    name: str, rows: list[int], early: int, begun: list[int], queued: list[int], share: float
) -> None:
    """Those not begun come last and stop below their share; beside them alone a begun one always fits."""
    policy = decode_by_name(name, DecodeSettings(max_output_tokens=40, early_share=share))
    waiting = [*begun, *queued]
    view = DecodeView(
        tuple(_row(f"row{index}", held, limit=40) for index, held in enumerate(rows)),
        tuple(_row(str(index), held, limit=40) for index, held in enumerate(waiting)),
        200,
        8,
        begun=len(begun),
        early_rows=min(early, len(rows)),
        longest_tokens=60,
    )
    admitted = policy.decide(0.0, view).admit
    assert admitted == tuple(str(index) for index in range(len(admitted)))
    if len(admitted) > len(begun):
        assert sum(rows) + sum(waiting[: len(admitted)]) <= min(share * 200, 140)
    if begun and early >= len(rows) and sum(rows) <= 140:
        assert admitted


@pytest.mark.parametrize("name", DECODE_POLICIES)
def test_rows_that_are_early_take_no_place_of_the_begun(name: str) -> None:
    """All rows of a batch are taken by requests that nobody computes yet: one that is computed joins."""
    policy = decode_by_name(name, DecodeSettings(max_output_tokens=4))
    rows = tuple(_row(f"row{index}", 1, limit=4) for index in range(8))
    waiting = (_row("a", 1, limit=4), _row("b", 1, limit=4))
    view = DecodeView(rows, waiting, 1000, 8, begun=1, early_rows=2, longest_tokens=100)
    assert policy.decide(0.0, view).admit == ("a",)


def test_decisions_repeat_for_equal_draws() -> None:
    """The policy draws nothing itself."""
    policy = decode_by_name("past_future")
    view = DecodeView((_row("a", 50, 5),), (_row("b", 50), _row("c", 900)), 1000, 8)
    assert policy.decide(0.0, view) == policy.decide(99.0, view)


def test_an_unknown_name_lists_the_known_ones() -> None:
    """The message helps."""
    with pytest.raises(ConfigError, match="past_future"):
        decode_by_name("clever")
