"""Stop strings are found wherever they are cut, and nothing else is held back for good."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.router.stop import StopMatcher

LETTERS = st.text(alphabet="ab\n", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), min_size=1, max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition, slowly: the first end wins, then the longest stop string."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end - len(stop)], stop
    return text, None


def pieces(text: str, cuts: list[int]) -> list[str]:
    """`text` cut at the given places."""
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 100), max_size=8))
def test_any_cut_gives_the_text_before_the_stop_string_that_ends_first(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    """However the text arrives, what comes out is the text before the first complete stop string."""
    matcher = StopMatcher(stops)
    given_out = ""
    for piece in pieces(text, cuts):
        given_out += matcher.feed(piece)
        if matcher.matched is not None:
            break
    else:
        given_out += matcher.finish()
    assert (given_out, matcher.matched) == expected(text, stops)


@given(text=LETTERS, stops=STOPS)
def test_only_a_beginning_of_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    """After every piece the text not yet given out is a proper beginning of some stop string."""
    matcher = StopMatcher(stops)
    given_out = ""
    for place, char in enumerate(text):
        given_out += matcher.feed(char)
        if matcher.matched is not None:
            return
        held = text[len(given_out) : place + 1]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize(
    ("stops", "fed", "out"),
    [
        (["\n\n"], ["one\n", "\ntwo"], "one"),
        (["END"], ["the E", "N", "emy"], "the ENemy"),
        (["aab"], ["aaab"], "a"),
        (["日本"], ["今日", "日", "本語"], "今日"),
    ],
)
def test_stop_strings_split_across_pieces_are_found(stops: list[str], fed: list[str], out: str) -> None:
    """A stop string split over tokens ends the text; a false start comes out in full."""
    matcher = StopMatcher(stops)
    assert "".join(matcher.feed(piece) for piece in fed) + matcher.finish() == out
