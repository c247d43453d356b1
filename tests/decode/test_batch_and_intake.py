"""Growing answers and arriving prompts share one pool: whoever has no page waits or is computed again."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from twolane.core.prefix import page_hashes
from twolane.core.request import SamplingParams
from twolane.decode.admission import Admission
from twolane.decode.batch import DecodeBatch, give_back
from twolane.decode.intake import Arriving, Intake
from twolane.engine.pages import PagePool
from twolane.engine.sequence import Sequence
from twolane.policies.decode import DecodeSettings, decode_by_name

PAGE_TOKENS = 4


def sequence(name: str, n_tokens: int, pool: PagePool | None = None) -> Sequence:
    """A sequence; with a pool, one whose prompt is computed and whose first token is drawn."""
    tokens = array("I", range(n_tokens))
    made = Sequence(name, tokens, n_tokens, SamplingParams(max_tokens=100))
    if pool is not None:
        made.page_ids = pool.allocate(-(-n_tokens // PAGE_TOKENS))
        made.n_computed = n_tokens
        made.tokens.append(0)
    return made


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), steps=st.integers(1, 30))
def test_every_row_has_room_and_books_balance(lengths: list[int], steps: int) -> None:
    """Whatever is preempted, rows of a step have a place for their token and pages are held once."""
    pool = PagePool(16, PAGE_TOKENS)
    batch = DecodeBatch(pool, max_rows=8)
    for index, length in enumerate(lengths):
        batch.join(sequence(f"r{index}", length, pool))
    alive = set(range(len(lengths)))
    for _ in range(steps):
        rows, preempted = batch.rows()
        alive -= {int(each.request_id[1:]) for each in preempted}
        assert {int(each.request_id[1:]) for each in rows} == alive
        for each in preempted:
            assert (each.page_ids, each.n_computed) == ([], 0)
        for each in rows:
            assert len(each.page_ids) * PAGE_TOKENS > each.n_computed
            each.n_computed += 1
            each.tokens.append(0)
        assert pool.held == sum(len(each.page_ids) for each in rows)
        pool.check()


def test_the_last_admitted_is_preempted_first() -> None:
    """The answer that is furthest keeps its pages."""
    pool = PagePool(2, PAGE_TOKENS)
    batch = DecodeBatch(pool, max_rows=8)
    first, second = sequence("first", 4, pool), sequence("second", 4, pool)
    batch.join(first)
    batch.join(second)
    rows, preempted = batch.rows()
    assert (rows, preempted) == ([first], [second])


def test_rows_are_bounded_and_the_others_wait_in_order() -> None:
    """max_rows bounds the step; a finished answer makes room for the next."""
    pool = PagePool(16, PAGE_TOKENS)
    batch = DecodeBatch(pool, max_rows=2)
    members = [sequence(f"r{index}", 4, pool) for index in range(3)]
    for member in members:
        batch.join(member)
    assert batch.rows()[0] == members[:2]
    batch.remove("r0")
    assert batch.rows()[0] == members[1:]
    assert len(batch) == 2


def test_given_back_pages_stay_as_prefix() -> None:
    """Full pages of prompt and answer can be reused; the rest is empty."""
    pool = PagePool(4, PAGE_TOKENS)
    ended = sequence("r", 10, pool)
    give_back(pool, ended)
    assert (pool.cached, pool.empty, pool.held) == (2, 2, 0)
    assert pool.peek(page_hashes(array("I", range(10)), PAGE_TOKENS)) == 2


def test_arriving_prompts_reserve_in_order_and_skip_what_is_cached() -> None:
    """One that does not fit holds back those behind it, so that it is not starved."""
    pool = PagePool(6, PAGE_TOKENS)
    give_back(pool, sequence("before", 8, pool))
    policy = decode_by_name("aggressive", DecodeSettings(use_limit=1.0))
    intake = Intake(pool, Admission(policy, pool, max_rows=8))
    cached, big, small = sequence("cached", 8), sequence("big", 20), sequence("small", 2)
    for each in (cached, big, small):
        intake.add(Arriving(each))
        intake.begin(0.0, "", each.request_id)
    (reserved,) = intake.reserve(0.0, [])
    assert (reserved.sequence, reserved.skip_tokens) == (cached, 8)
    # Two pages of the prompt and one for the first token to come.
    assert len(cached.page_ids) == 3
    assert (intake.waiting, len(intake)) == (2, 3)
    assert intake.remove("big") is not None
    assert [each.sequence for each in intake.reserve(0.0, [])] == [small]
    assert intake.remove("nobody") is None


def test_answers_that_may_outgrow_the_pool_wait_until_lengths_are_known() -> None:
    """Past-Future admits by predicted memory: pessimistic at first, by experience later."""
    pool = PagePool(10, PAGE_TOKENS)
    settings = DecodeSettings(max_output_tokens=100, reserve=0.0, window=200)
    intake = Intake(pool, Admission(decode_by_name("past_future", settings), pool, max_rows=8))
    for index in range(2):
        intake.add(Arriving(sequence(f"first{index}", 4)))
        intake.begin(0.0, "", f"first{index}")
    (first,) = intake.reserve(0.0, [])
    assert intake.reserve(0.0, []) == []
    for index in range(200):
        past = sequence(f"past{index}", 4)
        past.tokens.append(1)
        intake.admission.finished(past)
    assert [each.sequence.request_id for each in intake.reserve(0.0, [])] == ["first1"]
    assert first.sequence.request_id == "first0"
