"""Builders of small prefill views for the tests of policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twolane.core.request import Lane
from twolane.policies.prefill import PrefillView, WaitingPrefill


def short(name: str, arrival_s: float = 0.0, tokens: int = 40, **more: Any) -> WaitingPrefill:
    """A waiting short prompt."""
    return WaitingPrefill(name, arrival_s, tokens, more.pop("cached_tokens", 0), Lane.SHORT, **more)


def long(name: str, arrival_s: float = 0.0, tokens: int = 5000, **more: Any) -> WaitingPrefill:
    """A waiting long prompt."""
    return WaitingPrefill(name, arrival_s, tokens, more.pop("cached_tokens", 0), Lane.LONG, **more)


def view(*waiting: WaitingPrefill, memory: Any = None) -> PrefillView:
    """A view of these prompts in order of arrival."""
    return PrefillView(tuple(sorted(waiting, key=lambda prompt: prompt.arrival_s)), memory)


def ids(chunks: Sequence[Any]) -> list[str]:
    """The prompts of a batch."""
    return [chunk.request_id for chunk in chunks]
