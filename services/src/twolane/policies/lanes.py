"""Which lane a prompt travels in: by the tokens that must be computed, never by the prompt's length.

The router and the prefill worker ask at arrival; the lane stays with the request. The boundary is where
a prefill step stops being limited by reading weights, found from the fitted cost of steps.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from twolane.core.request import Lane
from twolane.policies.cost import PrefillCost
from twolane.policies.prefill import PrefillPolicy
from twolane.policies.settings import PrefillSettings

# Up to this many times the knee a prompt is short: it then holds others up for three constant parts of a
# step at most, which is little beside a chunk of a long prompt. More would make the lane's own waits long.
KNEE_FACTOR = 1.4
# A new boundary must differ by this share before it replaces the old one.
HYSTERESIS = 0.15


@runtime_checkable
class FitsBoundary(Protocol):
    """A policy that finds the boundary of the lanes from measured steps."""

    def boundary_tokens(self, memory: Any) -> int:
        """The boundary as of this memory (the policy's own, None at the start)."""
        ...


def boundary_tokens(policy: PrefillPolicy, memory: Any, settings: PrefillSettings) -> int:
    """The boundary to give to `lane_of` at an arrival: the policy's fitted one, else the configured."""
    if isinstance(policy, FitsBoundary):
        return policy.boundary_tokens(memory)
    return settings.short_max_uncached_tokens


def lane_of(uncached_tokens: int, boundary_tokens: int) -> Lane:
    """Short up to and including the boundary, else long.

    A follow-up turn with thousands of cached and 40 new tokens is short.
    """
    return Lane.SHORT if uncached_tokens <= boundary_tokens else Lane.LONG


def knee_tokens(cost: PrefillCost, cached_tokens: int = 0) -> float:
    """New tokens at which computing takes as long as what the step costs anyway (LAPS, section 3).

    The positive root of aL² + (2aH + b)L − (T0 + gH) = 0 for history H; inf when computing is free.
    """
    constant_s = cost.constant_s + cost.cached_token_s * cached_tokens
    linear_s = cost.token_s + 2.0 * cost.attention_s * cached_tokens
    if cost.attention_s <= 0.0:
        return constant_s / linear_s if linear_s > 0.0 else math.inf
    root = math.sqrt(linear_s * linear_s + 4.0 * cost.attention_s * constant_s)
    return (root - linear_s) / (2.0 * cost.attention_s)


def fitted_boundary(cost: PrefillCost, current_tokens: int, settings: PrefillSettings) -> int:
    """The boundary to use from now on.

    It stays where it is until the cost is known from light and heavy batches, and while the knee moves
    by less than the hysteresis; it never leaves the bounds of the settings.
    """
    if not cost.trusted(settings.fit_min_samples):
        return current_tokens
    low, high = settings.boundary_min_tokens, settings.boundary_max_tokens
    knee = min(max(KNEE_FACTOR * knee_tokens(cost), low), high)
    if abs(knee - current_tokens) <= HYSTERESIS * current_tokens:
        return current_tokens
    return round(knee)
