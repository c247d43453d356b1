"""Whether a rollout comes on, and when it has failed; the plan then returns to the previous revision.

A revision fails when nothing more of it becomes ready for the progress deadline, or when its routers
report too many errors while the previous revision still runs. The record of it is in the status, so
that a failure outlives the operator; it is tried again only when the spec changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from twolane.core.errors import ERRORS_BY_CODE
from twolane.operator.observed import Count, RevisionState
from twolane.operator.resources.model_deployment import Rollout
from twolane.operator.resources.rollout_status import Failure, Progress
from twolane.operator.resources.shape import Json
from twolane.operator.revision import digest
from twolane.operator.rollout import Wanted, has_taken_over
from twolane.operator.scrape import Reading

# A process that ends says so; it is no fault of its revision.
_FAULTS = {code for code, kind in ERRORS_BY_CODE.items() if kind.http_status >= 500} - {"draining"}


@dataclass(frozen=True, slots=True)
class Served:
    """Requests that routers ended.

    Attributes:
        total: all of them but those that clients gave up.
        faults: by the code of the error, those that are the servers' fault.
    """

    total: float
    faults: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a verdict follows from, beside the counts.

    Attributes:
        now: the time.
        name: names the spec without counts.
        limits: deadlines and error rate.
        served: what the routers of the new revision report.
        trouble: why its pods do not serve; "" when nobody says.
    """

    now: datetime
    name: str
    limits: Rollout
    served: Served
    trouble: str = ""


def trial_name(spec: Json) -> str:
    """A spec's name, whatever scalers write into it."""
    pools = {
        name: {key: value for key, value in pool.items() if key != "replicas"}
        for name, pool in _pools(spec.get("pools", {})).items()
    }
    router = {key: value for key, value in spec.get("router", {}).items() if key != "replicas"}
    return digest({**spec, "pools": pools, "router": router})[:16]


def _pools(pools: Json) -> Json:
    prefill = {f"prefill-{name}": pool for name, pool in (pools.get("prefill") or {}).items()}
    return prefill | {name: pool for name, pool in pools.items() if name != "prefill"}


def served_by(readings: Iterable[Reading]) -> Served:
    """What routers report together."""
    outcomes: dict[str, float] = {}
    for reading in readings:
        for outcome, count in reading.by("twolane_router_requests_total", "outcome").items():
            outcomes[outcome] = outcomes.get(outcome, 0.0) + count
    total = sum(count for outcome, count in outcomes.items() if outcome != "cancelled")
    return Served(total, {code: count for code, count in outcomes.items() if code in _FAULTS and count})


def follow(
    before: Progress | None, wanted: Wanted, states: Mapping[str, RevisionState], trial: Trial
) -> Progress | None:
    """The record as it should be now; None when no other revision is left to replace, or to return to."""
    old = {revision: state for revision, state in states.items() if revision != wanted.revision}
    if not old:
        return None
    progress = _began(before, wanted, old, trial)
    if progress.failure is not None:
        return progress
    progress = _moved(progress, wanted, states, trial.now)
    failure = _failure(progress, wanted, states, trial)
    return progress.model_copy(update={"failure": failure})


def is_soaking(progress: Progress | None, now: datetime, limits: Rollout) -> bool:
    """Whether the previous revision stays a little longer, for the case that the new one fails."""
    if progress is None or not limits.rollback.enabled:
        return False
    soak = timedelta(seconds=limits.rollback.soak_seconds)
    return progress.settled is None or now - progress.settled < soak


def _began(
    before: Progress | None, wanted: Wanted, old: Mapping[str, RevisionState], trial: Trial
) -> Progress:
    """The record of before if it is about the same rollout, else a new one."""
    if before is not None and before.previous in old:
        over = before.failure is not None and before.failure.trial != trial.name
        if before.revision == wanted.revision and not over:
            return before
    if before is not None and before.previous in old and old[before.previous].ready:
        # A change on the way: what ran before it all is what to return to.
        previous, pools, routers = before.previous, before.pools, before.routers
    else:
        keeper = max(old.values(), key=lambda state: (state.alive, state.ready))
        previous, routers = keeper.revision, max(1, keeper.router.asked)
        pools = {pool: count.asked for pool, count in keeper.pools.items()}
    return Progress(
        revision=wanted.revision,
        previous=previous,
        pools=pools,
        routers=routers,
        started=trial.now,
        progressed=trial.now,
    )


def _moved(
    progress: Progress, wanted: Wanted, states: Mapping[str, RevisionState], now: datetime
) -> Progress:
    new = states.get(wanted.revision, RevisionState(wanted.revision))
    ready = new.ready + new.router.ready + new.broker.ready
    if ready > progress.ready:
        progress = progress.model_copy(update={"ready": ready, "progressed": now})
    if not has_taken_over(wanted, new):
        return progress.model_copy(update={"settled": None})
    return progress if progress.settled else progress.model_copy(update={"settled": now})


def _failure(
    progress: Progress, wanted: Wanted, states: Mapping[str, RevisionState], trial: Trial
) -> Failure | None:
    if not trial.limits.rollback.enabled or not _can_return(states[progress.previous]):
        return None
    reason, message = _too_many_errors(trial) or _too_slow(progress, wanted, states, trial) or ("", "")
    if not reason:
        return None
    return Failure(reason=reason, message=message, at=trial.now, trial=trial.name)


def _can_return(previous: RevisionState) -> bool:
    """A revision that is being ended for good, or that served nobody, is no place to return to."""
    return previous.alive and previous.router.ready > 0


def _too_many_errors(trial: Trial) -> tuple[str, str] | None:
    limits, served = trial.limits.rollback, trial.served
    faults = sum(served.faults.values())
    if served.total < limits.min_requests or faults * 100 <= limits.max_error_percent * served.total:
        return None
    worst = max(served.faults, key=lambda code: served.faults[code])
    words = f"{faults:.0f} of {served.total:.0f} requests failed, most with {worst}"
    return "ErrorRate", words


def _too_slow(
    progress: Progress, wanted: Wanted, states: Mapping[str, RevisionState], trial: Trial
) -> tuple[str, str] | None:
    deadline_s = trial.limits.progress_deadline_seconds
    if progress.settled or (trial.now - progress.progressed).total_seconds() <= deadline_s:
        return None
    new = states.get(wanted.revision, RevisionState(wanted.revision))
    counts = ", ".join(
        f"{new.pools.get(pool, Count()).ready} of {number} {pool}" for pool, number in wanted.pools.items()
    )
    words = f"nothing more became ready for {deadline_s} s ({counts})"
    return "ProgressDeadlineExceeded", f"{words}: {trial.trouble}" if trial.trouble else words
