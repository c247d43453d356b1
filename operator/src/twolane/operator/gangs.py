"""Workers of several pods as a whole: how many there are, which end, and which must start anew.

A worker counts as ready when every rank is. Processes end together when one of them does; what is left
to the operator is a rank that did not notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from twolane.operator.actions import Action, Delete, Emit, Scale
from twolane.operator.names import GROUP_LABEL, INDEX_LABEL, POOL_LABEL, RANKS_ANNOTATION, REVISION_LABEL
from twolane.operator.observed import Observed, is_ready, label
from twolane.operator.resources.shape import Json

NOTICE = timedelta(seconds=60)
"""How long the ranks of a worker may take to end after one of them did."""
_TOGETHER = timedelta(seconds=30)
"""A rank that started so shortly before the last one ended belongs to the next life of the worker."""

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def groups_of(observed: Observed, revision: str, pool: str) -> list[Json]:
    """The StatefulSets of a pool in one revision, in the order of their numbers."""
    found = [
        child
        for (kind, _), child in observed.children.items()
        if kind == "StatefulSet"
        and (label(child, REVISION_LABEL), label(child, POOL_LABEL)) == (revision, pool)
    ]
    return sorted(found, key=number)


def number(group: Json) -> int:
    """The number of a worker in its pool; the highest are the first to end."""
    return int(group["metadata"]["name"].rsplit("-", 1)[1])


def ranks(group: Json) -> int:
    """Pods the worker has when it runs."""
    return int(group["metadata"].get("annotations", {}).get(RANKS_ANNOTATION, group["spec"]["replicas"]))


def scaled(groups: Iterable[Json], workers: int) -> list[Action]:
    """So many workers run, all others end; nothing is made or deleted."""
    actions: list[Action] = []
    for index, group in enumerate(groups):
        wanted = ranks(group) if index < workers else 0
        if group["spec"].get("replicas", 1) != wanted:
            actions.append(Scale(group["metadata"]["name"], wanted, "StatefulSet"))
    return actions


def surplus(observed: Observed, revision: str, pool: str, workers: int) -> list[Action]:
    """Ends workers beyond the count, and deletes what has ended.

    The first one stays, empty: it stands for a pool that has no workers.
    """
    actions: list[Action] = []
    for group in groups_of(observed, revision, pool):
        name = group["metadata"]["name"]
        if number(group) < max(1, workers):
            continue
        if group["spec"].get("replicas", 1):
            actions.append(Scale(name, 0, "StatefulSet"))
        elif not _pods(observed, name):
            actions += [Delete("StatefulSet", name), Delete("Service", name)]
    return actions


def restarts(observed: Observed) -> tuple[list[Action], bool]:
    """Workers of which one rank started anew while another went on: all their pods are replaced.

    Returns:
        what to do, and whether there may be more to do soon.
    """
    actions: list[Action] = []
    suspected = False
    for (kind, name), _ in sorted(observed.children.items()):
        if kind != "StatefulSet":
            continue
        pods = [pod for pod in _pods(observed, name) if not pod["metadata"].get("deletionTimestamp")]
        stale = stale_ranks(pods)
        suspected |= bool(stale)
        if stale and observed.now - _last_end(pods) >= NOTICE:
            words = f"{name}: {', '.join(stale)} went on after another rank had ended; all ranks start anew"
            actions.append(Emit("Warning", "WorkerRestarted", words))
            actions += [Delete("Pod", pod["metadata"]["name"]) for pod in pods]
    return actions, suspected


def stale_ranks(pods: Sequence[Json]) -> list[str]:
    """Pods of one worker whose process is older than the last end of another's; none while all are ready."""
    if all(map(is_ready, pods)):
        return []
    latest = _last_end(pods) - _TOGETHER
    starts = {pod["metadata"]["name"]: _moment(pod, "state", "running", "startedAt") for pod in pods}
    return [name for name, started in starts.items() if started is not None and started < latest]


def _last_end(pods: Iterable[Json]) -> datetime:
    """When a process of these pods ended last; long ago when none did."""
    ended = [moment for pod in pods if (moment := _moment(pod, "lastState", "terminated", "finishedAt"))]
    return max(ended, default=_LONG_AGO)


def is_first_rank(pod: Json) -> bool:
    """Whether a pod stands for its worker: the only one, or rank 0 of several."""
    return not label(pod, GROUP_LABEL) or label(pod, INDEX_LABEL) == "0"


def _pods(observed: Observed, group: str) -> list[Json]:
    return [pod for pod in observed.pods if label(pod, GROUP_LABEL) == group]


def _moment(pod: Json, *path: str) -> datetime | None:
    for container in pod.get("status", {}).get("containerStatuses", []):
        if container["name"] == "twolane":
            value = container
            for name in path:
                value = value.get(name) or {}
            return datetime.fromisoformat(value) if isinstance(value, str) else None
    return None
