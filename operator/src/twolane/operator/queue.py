"""Which ModelDeployment to look at next: each at most once at a time, and never faster than it should.

The reconciler asks it with the time of the event loop; it has no clock and no tasks of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Key = tuple[str, str]
"""Namespace and name."""

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0


@dataclass
class WorkQueue:
    """Due times by key.

    Attributes:
        spacing_s: least time between two looks at one key, so that a burst of events is one look.
    """

    spacing_s: float = 0.5
    _due: dict[Key, float] = field(default_factory=dict)
    _busy: set[Key] = field(default_factory=set)
    _looked: dict[Key, float] = field(default_factory=dict)
    _failures: dict[Key, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, now: float, delay_s: float = 0.0) -> None:
        """Asks for a look after `delay_s`; an earlier wish stays."""
        earliest = self._looked.get(key, now - self.spacing_s) + self.spacing_s
        due = max(now + delay_s, earliest)
        self._due[key] = min(due, self._due.get(key, due))

    def next_due(self) -> float | None:
        """When the next key can be taken; None while none waits that is not being looked at."""
        return min((due for key, due in self._due.items() if key not in self._busy), default=None)

    def take(self, now: float) -> Key | None:
        """A key that is due, the one that waited longest; it is busy until `done` or `failed`."""
        ready = [(due, key) for key, due in self._due.items() if due <= now and key not in self._busy]
        if not ready:
            return None
        _, key = min(ready)
        del self._due[key]
        self._busy.add(key)
        self._looked[key] = now
        return key

    def done(self, key: Key, now: float, again_s: float) -> None:
        """The look succeeded; the next is due after `again_s` unless something happens."""
        self._busy.discard(key)
        self._failures.pop(key, None)
        self.add(key, now, again_s)

    def failed(self, key: Key, now: float, at_least_s: float = 0.0) -> float:
        """The look failed; returns the pause before the next, which doubles with each failure."""
        self._busy.discard(key)
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        # Events must not shorten the pause: a full API server would never recover.
        doubled: float = FIRST_BACKOFF_S * 2 ** min(count, 16)
        pause = max(min(doubled, LONGEST_BACKOFF_S), at_least_s)
        self._looked[key] = now + pause - self.spacing_s
        self._due[key] = now + pause
        return pause

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._busy.discard(key)
        for memory in (self._due, self._looked, self._failures):
            memory.pop(key, None)
