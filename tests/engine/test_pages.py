"""The books of the page pool, by example and by a state machine that mirrors them."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from twolane.engine.pages import OutOfPages, PagePool


def names(*letters: str) -> list[bytes]:
    """Short page names."""
    return [letter.encode() for letter in letters]


def published(pool: PagePool, *letters: str) -> list[int]:
    """Takes pages and names them."""
    page_ids = pool.allocate(len(letters))
    for page_id, name in zip(page_ids, names(*letters), strict=True):
        pool.publish(page_id, name)
    return page_ids


def test_a_shortage_takes_nothing() -> None:
    """A refused allocation leaves the pool as it was."""
    pool = PagePool(3, 16)
    pool.allocate(2)
    with pytest.raises(OutOfPages, match="2 pages wanted, 1 free"):
        pool.allocate(2)
    assert (pool.empty, pool.cached, pool.held, pool.free) == (1, 0, 2, 1)


def test_a_released_prefix_is_found_again() -> None:
    """Named pages stay findable after their holder went, and a match holds them."""
    pool = PagePool(4, 16)
    pages = published(pool, "a", "b", "c")
    pool.release(pages)
    assert pool.cached == 3
    assert pool.peek(names("a", "b", "x", "c")) == 2
    assert pool.match(names("a", "b", "x", "c")) == pages[:2]
    assert (pool.held, pool.cached) == (2, 1)


def test_shared_pages_are_held_until_the_last_holder_goes() -> None:
    """Each match adds a reference."""
    pool = PagePool(2, 16)
    pages = published(pool, "a")
    assert pool.match(names("a")) == pages
    pool.release(pages)
    assert pool.held == 1
    pool.release(pages)
    assert (pool.held, pool.cached) == (0, 1)


def test_eviction_takes_the_least_recently_released_tail_first() -> None:
    """Empty pages go first, then the oldest prefix from its end."""
    pool = PagePool(4, 16)
    old, new = published(pool, "a", "b"), published(pool, "c")
    pool.release(old)
    pool.release(new)
    pool.allocate(2)
    assert pool.names() == names("a", "c")
    pool.allocate(1)
    assert pool.names() == names("c")


def test_a_match_refreshes_the_age_of_a_prefix() -> None:
    """A prefix used again outlives one that was not."""
    pool = PagePool(2, 16)
    pool.release(published(pool, "a"))
    pool.release(published(pool, "b"))
    pool.release(pool.match(names("a")))
    pool.allocate(1)
    assert pool.names() == names("a")


def test_a_duplicate_name_stays_with_the_first_page() -> None:
    """Two requests that computed the same page at once: the second copy becomes empty on release."""
    pool = PagePool(3, 16)
    first, second = published(pool, "a"), published(pool, "a")
    pool.release(second)
    assert (pool.empty, pool.cached) == (2, 0)
    assert pool.match(names("a")) == first


def test_changes_are_net() -> None:
    """A name that came and went between two looks is not reported."""
    pool = PagePool(1, 16)
    pool.release(published(pool, "a"))
    assert pool.drain_changes() == (names("a"), [])
    pool.release(published(pool, "b"))
    pool.release(published(pool, "c"))
    assert pool.drain_changes() == (names("c"), names("a"))
    assert pool.drain_changes() == ([], [])


MISUSE: dict[str, Callable[[PagePool], object]] = {
    "release twice": lambda pool: pool.release([0, 0]),
    "release unheld": lambda pool: pool.release([1]),
    "publish unheld": lambda pool: pool.publish(1, b"b"),
    "rename": lambda pool: pool.publish(0, b"b"),
    "negative": lambda pool: pool.allocate(-1),
}


@pytest.mark.parametrize("act", MISUSE)
def test_misuse_is_refused(act: str) -> None:
    """Calls that would corrupt the books raise and change nothing."""
    pool = PagePool(3, 16)
    assert published(pool, "a") == [0]
    with pytest.raises(ValueError, match="page"):
        MISUSE[act](pool)
    pool.check()
    assert pool.held == 1


N_PAGES = 6
LETTERS = st.lists(st.integers(0, 7).map(lambda n: bytes([n])), max_size=4)


class PoolMachine(RuleBasedStateMachine):
    """Random use of a small pool beside a model that knows only holders and names."""

    holdings = Bundle("holdings")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(N_PAGES, 16)
        self.references = [0] * N_PAGES
        self.seen: set[bytes] = set()

    @rule(target=holdings, n=st.integers(0, N_PAGES + 1))
    def allocate(self, n: int) -> object:
        """Takes n pages, or all is refused."""
        free = self.pool.free
        try:
            page_ids = self.pool.allocate(n)
        except OutOfPages:
            assert n > free
            return multiple()
        assert len(set(page_ids)) == n <= free
        for page_id in page_ids:
            assert self.references[page_id] == 0
            self.references[page_id] = 1
        return page_ids

    @rule(target=holdings, hashes=LETTERS)
    def match(self, hashes: list[bytes]) -> object:
        """Takes what peek promised."""
        expected = self.pool.peek(hashes)
        page_ids = self.pool.match(hashes)
        assert len(page_ids) == expected
        assert set(hashes[:expected]) <= set(self.pool.names())
        assert expected == len(hashes) or hashes[expected] not in self.pool.names()
        for page_id in page_ids:
            self.references[page_id] += 1
        return page_ids

    @rule(page_ids=consumes(holdings))
    def release(self, page_ids: list[int]) -> None:
        """Gives a holding back."""
        self.pool.release(page_ids)
        for page_id in page_ids:
            self.references[page_id] -= 1

    @rule(page_ids=holdings, name=st.integers(0, 7).map(lambda n: bytes([n])))
    def publish(self, page_ids: list[int], name: bytes) -> None:
        """Names a page unless it has a name."""
        for page_id in page_ids:
            try:
                self.pool.publish(page_id, name)
            except ValueError:
                continue
            assert name in self.pool.names()

    @rule()
    def drain(self) -> None:
        """Names known from changes alone equal the pool's names."""
        added, removed = self.pool.drain_changes()
        assert self.seen.isdisjoint(added)
        assert self.seen.issuperset(removed)
        self.seen = (self.seen | set(added)) - set(removed)
        assert self.seen == set(self.pool.names())

    @invariant()
    def books_agree(self) -> None:
        """Every page is empty, cached or held, as often as the model says."""
        self.pool.check()
        assert self.pool.held == sum(count > 0 for count in self.references)
        assert self.pool.empty + self.pool.cached + self.pool.held == N_PAGES


PoolMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
