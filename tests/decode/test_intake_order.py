"""Who gets the pages of a decode worker: prompts in the order in which they begin to be computed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.decode.test_batch_and_intake import PAGE_TOKENS, sequence
from twolane.decode.admission import Admission
from twolane.decode.batch import give_back
from twolane.decode.intake import ANNOUNCED_S, Arriving, Intake
from twolane.engine.pages import PagePool
from twolane.policies.decode import DecodeSettings, decode_by_name


def intake_of(pool: PagePool, early_share: float = 0.25, longest: int = 8) -> Intake:
    """With a policy that looks at nothing but the pages in use."""
    policy = decode_by_name("aggressive", DecodeSettings(use_limit=1.0, early_share=early_share))
    return Intake(pool, Admission(policy, pool, 64, longest))


def names(reserved: list[Arriving]) -> list[str]:
    """Of those that got pages."""
    return [each.sequence.request_id for each in reserved]


def test_prompts_get_pages_as_they_begin() -> None:
    """Not as their requests came."""
    pool = PagePool(9, PAGE_TOKENS)
    intake = intake_of(pool, early_share=0.0)
    for name in "abcd":
        intake.add(Arriving(sequence(name, 11), "p"))
    assert intake.reserve(0.0, []) == []
    for name in "cadb":
        intake.begin(0.0, "p", name)
    assert names(intake.reserve(0.0, [])) == ["c", "a"]
    assert intake.waiting == 2


def test_with_room_for_all_pages_are_had_early() -> None:
    """Up to a share of the pool: then the lease is there before the prompt begins."""
    pool = PagePool(40, PAGE_TOKENS)
    intake = intake_of(pool)
    for name in "abc":
        intake.add(Arriving(sequence(name, 19), "p"))
    assert names(intake.reserve(0.0, [])) == ["a", "b"]
    assert (intake.waiting, len(intake)) == (0, 3)
    intake.begin(0.0, "p", "c")
    assert names(intake.reserve(0.0, [])) == ["c"]


def test_a_prompt_may_begin_before_its_request_is_known() -> None:
    """The router's message is late; it isn't remembered for ever, and counts for its worker alone."""
    pool = PagePool(9, PAGE_TOKENS)
    intake = intake_of(pool, early_share=0.0)
    intake.begin(0.0, "p", "a")
    intake.begin(0.0, "p", "b")
    intake.begin(ANNOUNCED_S, "p", "c")
    for name, writer in (("c", "p"), ("b", "p"), ("a", "other")):
        intake.add(Arriving(sequence(name, 4), writer))
    assert names(intake.reserve(0.0, [])) == ["c"]
    intake.begin(ANNOUNCED_S, "p", "a")
    assert intake.reserve(0.0, []) == []
    intake.begin(ANNOUNCED_S, "other", "a")
    assert names(intake.reserve(0.0, [])) == ["a"]


@given(
    lengths=st.lists(st.integers(1, 28), min_size=1, max_size=12),
    order=st.permutations(range(12)),
    gone=st.sets(st.integers(0, 11), max_size=5),
    share=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_all_that_begin_get_pages_once(
    lengths: list[int], order: list[int], gone: set[int], share: float
) -> None:
    """Whatever comes early, begins late or goes away: each gets its turn, and pages come back."""
    pool = PagePool(16, PAGE_TOKENS)
    intake = intake_of(pool, share, longest=28)
    for index, length in enumerate(lengths):
        intake.add(Arriving(sequence(f"r{index}", length), "p"))
    served: list[str] = []
    holding: dict[str, Arriving] = {}

    def reserve() -> None:
        for each in intake.reserve(0.0, []):
            holding[each.sequence.request_id] = each
            served.append(each.sequence.request_id)

    def end(name: str) -> None:
        if (arriving := intake.remove(name)) is not None:
            holding.pop(name, None)
            give_back(pool, arriving.sequence)

    reserve()
    begun = [f"r{index}" for index in order if index < len(lengths)]
    for name in begun:
        if int(name[1:]) in gone:
            end(name)
            continue
        intake.begin(0.0, "p", name)
        reserve()
        # The oldest that is computed ends when there is no room for this one.
        while intake.waiting:
            end(next(each for each in begun if each in holding and begun.index(each) < begun.index(name)))
            reserve()
    assert len(served) == len(set(served))
    assert set(begun) - {f"r{index}" for index in gone} <= set(served)
    for name in list(holding):
        end(name)
    assert (pool.held, len(intake)) == (0, 0)
    pool.check()
