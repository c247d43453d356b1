"""Storages that keep nothing, for a kopf that only hands events on.

kopf copies every object of every event to see what has changed for handlers that this operator has none
of: on ten thousand pods that was a quarter of its busy time. `handlers.settings` uses them.
"""

from __future__ import annotations

from collections.abc import Iterable

import kopf


class NoDifferences(kopf.DiffBaseStorage):
    """Sees no object as changed."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[object] | None = None) -> kopf.BodyEssence:
        """Nothing, whatever the object is."""
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing was ever kept."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Keeps nothing."""


class NoProgress(kopf.ProgressStorage):
    """Remembers no handler."""

    def fetch(self, *, key: str, body: kopf.Body) -> None:
        """Nothing was ever kept."""

    def store(self, *, key: str, record: object, body: kopf.Body, patch: kopf.Patch) -> None:
        """Keeps nothing."""

    def purge(self, *, key: str, body: kopf.Body, patch: kopf.Patch) -> None:
        """Has nothing."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Leaves objects alone."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Has nothing to take away, and so makes no copy."""
        return essence
