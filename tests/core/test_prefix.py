"""Names of prefixes: equal exactly when salt and all tokens up to the page's end are equal."""

from __future__ import annotations

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from twolane.core.prefix import HASH_BYTES, page_hashes

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)
PAGE = st.integers(1, 9)


@given(tokens=TOKENS, page_tokens=PAGE)
def test_every_full_page_has_one_name(tokens: list[int], page_tokens: int) -> None:
    """The rest that fills no page has none."""
    names = page_hashes(tokens, page_tokens)
    assert len(names) == len(tokens) // page_tokens
    assert all(len(name) == HASH_BYTES for name in names)


@given(tokens=TOKENS, more=TOKENS, page_tokens=PAGE)
def test_a_longer_prompt_keeps_the_names_of_its_beginning(
    tokens: list[int], more: list[int], page_tokens: int
) -> None:
    """That is what makes a prefix reusable."""
    short = page_hashes(tokens, page_tokens)
    assert page_hashes(tokens + more, page_tokens)[: len(short)] == short


@given(tokens=st.lists(st.integers(0, 1000), min_size=8, max_size=40), at=st.integers(0, 39))
def test_another_token_changes_its_page_and_all_behind(tokens: list[int], at: int) -> None:
    """And no page before."""
    at %= len(tokens)
    changed = [*tokens[:at], tokens[at] + 1, *tokens[at + 1 :]]
    pairs = list(zip(page_hashes(tokens, 4), page_hashes(changed, 4), strict=True))
    assert [mine == theirs for mine, theirs in pairs] == [number < at // 4 for number in range(len(pairs))]


@given(tokens=st.lists(st.integers(0, 1000), min_size=8, max_size=20), salt=st.text(min_size=1))
def test_a_salt_shares_nothing(tokens: list[int], salt: str) -> None:
    """One tenant can't learn what another asked."""
    assert set(page_hashes(tokens, 4)) & set(page_hashes(tokens, 4, salt)) == set()


def test_names_are_the_same_in_every_process_and_release() -> None:
    """Router and workers of different versions meet during an upgrade."""
    root = hashlib.blake2b(b"tenant", digest_size=16).digest()
    first = hashlib.blake2b(root + struct.pack("<4I", 1, 2, 3, 70_000), digest_size=16).digest()
    second = hashlib.blake2b(first + struct.pack("<4I", 5, 6, 7, 8), digest_size=16).digest()
    assert page_hashes([1, 2, 3, 70_000, 5, 6, 7, 8, 9], 4, "tenant") == [first, second]
