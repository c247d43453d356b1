"""Who waits for pages at a simulated decode worker, in order: as `decode.intake` keeps it.

First those whose prompts have begun to be computed, in that order, then the others as they came.
"""

from __future__ import annotations

from collections.abc import Iterator

from twolane.sim.request import SimRequest


class PageQueue:
    """Requests without pages, and which of those with pages have them early.

    Attributes:
        begun: their prompts have begun, in that order.
        early: their prompts have not, as they came.
        held_early: names of those that have pages though their prompts have not begun.
        owed: names of answers that lost their pages: nobody else gets any before them.
    """

    __slots__ = ("begun", "early", "held_early", "owed")

    def __init__(self) -> None:
        self.begun: dict[str, SimRequest] = {}
        self.early: dict[str, SimRequest] = {}
        self.held_early: set[str] = set()
        self.owed: set[str] = set()

    def __len__(self) -> int:
        return len(self.begun) + len(self.early)

    def __iter__(self) -> Iterator[SimRequest]:
        yield from self.begun.values()
        yield from self.early.values()

    def wants(self, *, has_room: bool) -> bool:
        """Whether the policy may have somebody to admit, with or without room for early ones."""
        return not self.owed and bool(self.begun or (has_room and self.early))

    def begin(self, request: SimRequest) -> bool:
        """Its prompt begins; whether it waits for pages."""
        name = request.name
        self.held_early.discard(name)
        if self.early.pop(name, None) is None:
            return False
        self.begun[name] = request
        return True

    def pop(self, name: str) -> SimRequest:
        """Takes out the first, which gets pages.

        Raises:
            RuntimeError: another one is first.
        """
        waiting = self.begun or self.early
        if next(iter(waiting)) != name:
            raise RuntimeError(f"request {name} was admitted out of order")
        if waiting is self.early:
            self.held_early.add(name)
        return waiting.pop(name)

    def remove(self, name: str) -> bool:
        """Takes a request out that has no pages; whether it waited for some."""
        if name in self.owed:
            self.owed.remove(name)
            return True
        return self.begun.pop(name, None) is not None or self.early.pop(name, None) is not None

    def clear(self) -> None:
        """All are gone."""
        for kept in (self.begun, self.early, self.held_early, self.owed):
            kept.clear()
