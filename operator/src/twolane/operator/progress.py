"""Whether a rollout comes on, and when it has failed; the plan then returns to the previous revision.

A revision fails when nothing more of it becomes ready for the progress deadline, or when its routers
report more errors than those of the previous revision do meanwhile. The record of it is in the status,
so that a failure outlives the operator; it is tried again only when the spec changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from twolane.core.errors import ERRORS_BY_CODE
from twolane.operator.observed import Count, RevisionState
from twolane.operator.resources.model_deployment import Rollout
from twolane.operator.resources.rollout_status import Ended, Failure, Progress
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

    total: float = 0.0
    faults: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> float:
        """All faults."""
        return sum(self.faults.values())


@dataclass(frozen=True, slots=True)
class Trial:
    """What a verdict follows from, beside the counts.

    Attributes:
        now: the time.
        name: names the spec without counts.
        limits: deadlines and error rate.
        served: what each router reports, by revision and name of the pod.
        trouble: why pods of the new revision do not serve; "" when nobody says.
    """

    now: datetime
    name: str
    limits: Rollout
    served: Mapping[str, Mapping[str, Served]]
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


def served_by(reading: Reading) -> Served:
    """What a router has ended since it started."""
    outcomes = reading.by("twolane_router_requests_total", "outcome")
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
    progress = _counted(progress, trial.served.get(progress.previous, {}))
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


def _counted(progress: Progress, served: Mapping[str, Served]) -> Progress:
    """What old routers had ended when they were first asked: the rest is of this time."""
    known = {name: Ended(total=int(of.total), failed=int(of.failed)) for name, of in served.items()}
    return progress.model_copy(update={"ended": known | dict(progress.ended)})


def _failure(
    progress: Progress, wanted: Wanted, states: Mapping[str, RevisionState], trial: Trial
) -> Failure | None:
    if not trial.limits.rollback.enabled or not _can_return(states[progress.previous]):
        return None
    reason, message = (
        _too_many_errors(progress, trial) or _too_slow(progress, wanted, states, trial) or ("", "")
    )
    if not reason:
        return None
    return Failure(reason=reason, message=message, at=trial.now, trial=trial.name)


def _can_return(previous: RevisionState) -> bool:
    """A revision that is being ended for good, or that served nobody, is no place to return to."""
    return previous.alive and previous.router.ready > 0


def _too_many_errors(progress: Progress, trial: Trial) -> tuple[str, str] | None:
    limits = trial.limits.rollback
    mine = trial.served.get(progress.revision, {}).values()
    total, failed = sum(of.total for of in mine), sum(of.failed for of in mine)
    usual = _usual_errors(progress, trial.served.get(progress.previous, {}), limits.min_requests)
    if total < limits.min_requests or failed / total - usual <= limits.max_error_percent / 100:
        return None
    codes = {code for of in mine for code in of.faults}
    worst = max(sorted(codes), key=lambda code: sum(of.faults.get(code, 0.0) for of in mine))
    words = f"{failed:.0f} of {total:.0f} requests failed, most with {worst}"
    return "ErrorRate", words + (f"; {usual:.0%} do with the previous revision" if usual else "")


def _usual_errors(progress: Progress, served: Mapping[str, Served], enough: int) -> float:
    """The share that fails with the previous revision in this time, or ever where that is too little to tell.

    What concerns both, such as a model that always has some, is no fault of the new one.
    """
    total = failed = 0.0
    for name, of in served.items():
        before = progress.ended.get(name)
        if before is None or before.total > of.total:
            # A router that started anew counts from nothing.
            before = Ended(total=0, failed=0)
        total += of.total - before.total
        failed += of.failed - before.failed
    if total < enough:
        total, failed = sum(of.total for of in served.values()), sum(of.failed for of in served.values())
    return max(0.0, failed) / total if total >= enough else 0.0


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
