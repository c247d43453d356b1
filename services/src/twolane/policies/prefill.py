"""What every prefill scheduling policy sees and says.

The prefill worker builds the view from its queue, the simulator from its model; both run the same
policy objects (fcfs, laps_fixed, …) and carry `memory`, the policy's own frozen state, from one
decision to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from twolane.core.request import Lane


@dataclass(frozen=True, slots=True)
class WaitingPrefill:
    """A prompt that waits, or one that is partly computed.

    Attributes:
        request_id: the request.
        arrival_s: when it reached the worker, on the clock of `now_s`.
        uncached_tokens: prompt tokens still to compute; falls as chunks are done.
        cached_tokens: prompt tokens whose KV is present (prefix cache and finished chunks).
        lane: fixed at arrival by the uncached length then.
        deadline_s: when the first token is due, or None.
        priority: higher goes first among equals.
    """

    request_id: str
    arrival_s: float
    uncached_tokens: int
    cached_tokens: int
    lane: Lane
    deadline_s: float | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class PrefillView:
    """What a policy may look at.

    Attributes:
        waiting: prompts in order of arrival, a started one included.
        memory: the policy's state as it returned it last; None at the start.
        last_batch_s: seconds the last prefill batch took, or None.
        last_batch_lane: lane of that batch, or None.
    """

    waiting: tuple[WaitingPrefill, ...]
    memory: Any = None
    last_batch_s: float | None = None
    last_batch_lane: Lane | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute the next `tokens` uncached tokens of a prompt."""

    request_id: str
    tokens: int


@dataclass(frozen=True, slots=True)
class PrefillDecision:
    """What to do now.

    Attributes:
        chunks: the batch to run at once; empty to wait.
        wake_s: with no chunks: decide again at this time at the latest; None: on the next arrival.
        memory: the policy's state, to be passed in the next view.
    """

    chunks: tuple[Chunk, ...] = ()
    wake_s: float | None = None
    memory: Any = None


class PrefillPolicy(Protocol):
    """Chooses the next prefill batch."""

    @property
    def name(self) -> str:
        """The name under which `registry.by_name` builds it."""
        ...

    def decide(self, now_s: float, view: PrefillView) -> PrefillDecision:
        """Returns the batch to run now, or how long to wait; never both empty with work that is due."""
        ...
