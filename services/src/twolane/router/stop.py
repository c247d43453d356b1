"""Finds stop strings in a text that arrives in pieces.

Text that could be the beginning of a stop string is held back until the next piece decides. The
result does not depend on how the text is cut: the stop string that is complete first wins, the
longest one among those that end at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Follows one answer's text.

    Attributes:
        matched: the stop string that ended the text, or None.
    """

    __slots__ = ("_failures", "_first_chars", "_held", "_states", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty strings; longer ones first so that they win at the same end."""
        self._stops = sorted(stops, key=len, reverse=True)
        self._failures = [_failure_table(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)
        self._first_chars = frozenset(stop[0] for stop in self._stops)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Text that is safe to give out; after a match nothing more comes and `matched` is set."""
        # Most pieces contain no character that begins a stop string.
        if not self._held and self._first_chars.isdisjoint(text):
            return text
        buffer = self._held + text
        for place in range(len(self._held), len(buffer)):
            if self._advance(buffer[place]):
                self._held = ""
                end = place + 1
                return buffer[: end - len(self.matched or "")]
        held = max(self._states)
        self._held = buffer[len(buffer) - held :]
        return buffer[: len(buffer) - held]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> bool:
        """One step of Knuth, Morris and Pratt for every stop string; True when one is complete."""
        for index, stop in enumerate(self._stops):
            state = self._states[index]
            while state and stop[state] != char:
                state = self._failures[index][state - 1]
            if stop[state] == char:
                state += 1
            if state == len(stop):
                self.matched = stop
                return True
            self._states[index] = state
        return False


def _failure_table(pattern: str) -> list[int]:
    """For each prefix the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(pattern)
    length = 0
    for place in range(1, len(pattern)):
        while length and pattern[place] != pattern[length]:
            length = table[length - 1]
        if pattern[place] == pattern[length]:
            length += 1
        table[place] = length
    return table
