"""What a scaler may look at and what it answers: the words that all scaling policies share.

The operator fills the view from the metrics of routers and workers, the simulator from its own books;
planner.py and the baselines in planner_baselines.py decide with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from twolane.core.request import Lane
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.roles import Move


class PoolKind(Enum):
    """A pool by what its workers do."""

    PREFILL = "prefill"
    SHORT = "prefill-short"
    LONG = "prefill-long"
    DECODE = "decode"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class LaneTraffic:
    """Requests of one lane that arrived since the last view.

    Attributes:
        requests: how many.
        prompt_tokens: tokens of their prompts.
        uncached_tokens: those of them that must be computed.
        work_s: seconds that computing them takes on one worker; 0: not known, it is estimated.
        judged: requests whose first token came or that failed, since the last view.
        met: those of them that kept their targets.
    """

    requests: float = 0.0
    prompt_tokens: float = 0.0
    uncached_tokens: float = 0.0
    work_s: float = 0.0
    judged: float = 0.0
    met: float = 0.0


@dataclass(frozen=True, slots=True)
class DecodeLoad:
    """Answers, over all workers.

    Attributes:
        running: answers that decode.
        waiting: answers that wait for pages.
        held_tokens: tokens whose pages are held.
        ended: answers that ended since the last view.
        output_tokens: tokens of those.
    """

    running: float = 0.0
    waiting: float = 0.0
    held_tokens: float = 0.0
    ended: float = 0.0
    output_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool.

    Attributes:
        wanted: workers asked for.
        ready: workers that serve.
        pending: workers that were asked for and do not serve yet.
        minimum: fewer are never asked for, but none at all by scale to zero.
        maximum: more are never asked for; None: no limit.
        floor: least count that a schedule asks for now.
        working: ready workers that do this pool's work now, whichever pool they are of; None: its own.
        busy: mean share of time its workers were busy, for HPA; None: not measured.
    """

    wanted: int
    ready: int
    pending: int = 0
    minimum: int = 1
    maximum: int | None = None
    floor: int = 0
    working: int | None = None
    busy: float | None = None

    @property
    def low(self) -> int:
        """The least count now; the schedule gives way to the maximum."""
        return self.held(max(self.minimum, self.floor))

    def held(self, workers: int) -> int:
        """A count within minimum and maximum."""
        ceiling = workers if self.maximum is None else min(workers, self.maximum)
        return max(self.minimum, ceiling)


@dataclass(frozen=True, slots=True)
class WorkerCost:
    """What one worker can do.

    Attributes:
        prefill: cost of its prefill steps.
        decode: cost of its decode steps.
        capacity_tokens: tokens that its pages hold.
        max_rows: answers that it decodes at a time at most.
    """

    prefill: PrefillCost
    decode: DecodeCost
    capacity_tokens: int
    max_rows: int = 256


@dataclass(frozen=True, slots=True)
class PlannerView:
    """One look at a model.

    Attributes:
        span_s: seconds since the last view.
        lanes: what arrived, by lane.
        waiting_s: seconds of prefill that wait, by lane, over all workers.
        decode: answers.
        pools: the pools there are.
        cost: of a worker.
        held: requests that routers hold back because no worker is there.
        complete: whether every router and worker was asked with success; if not, nothing is scaled down.
        memory: the policy's state as it returned it last; None at the start.
    """

    span_s: float
    lanes: Mapping[Lane, LaneTraffic]
    waiting_s: Mapping[Lane, float]
    decode: DecodeLoad
    pools: Mapping[PoolKind, PoolState]
    cost: WorkerCost
    held: int = 0
    complete: bool = True
    memory: Any = None


@dataclass(frozen=True, slots=True)
class PoolTarget:
    """Workers that a pool should have, and why in one sentence."""

    workers: int
    reason: str


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """A decision.

    Attributes:
        pools: target of every pool of the view.
        moves: workers to give another role now, without a restart.
        memory: the policy's state, for the next view.
    """

    pools: Mapping[PoolKind, PoolTarget]
    moves: tuple[Move, ...] = ()
    memory: Any = None


class Scaler(Protocol):
    """Decides how many workers every pool should have."""

    def plan(self, now_s: float, view: PlannerView) -> ScalePlan:
        """Decides for now."""
        ...
