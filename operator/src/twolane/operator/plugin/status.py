"""`twolane k8s status`: a ModelDeployment with its parts down to the pods, and what is wrong with each.

What the tree says is what the operator itself would say: the same judgement of pods is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from twolane.core.errors import NotFound
from twolane.operator.names import COMPONENT_LABEL, MODEL_LABEL, POOL_LABEL, REVISION_LABEL
from twolane.operator.observed import is_ready, label
from twolane.operator.plugin.access import Access, ClusterFlags, model_deployment, objects
from twolane.operator.resources.shape import Json
from twolane.operator.trouble import pod_trouble

COLOURS = {"True": "green", "False": "red", "Unknown": "yellow"}


class StatusFlags(ClusterFlags):
    """Flags of `twolane k8s status`."""

    process = "k8s"
    verb = "k8s status"

    name: CliPositionalArg[str] = ""
    """The ModelDeployment; empty: all of the namespace."""
    all_namespaces: bool = Field(default=False)
    """Look in every namespace."""


def main(argv: list[str]) -> int:
    """Prints the trees; 0: all are ready, 1: one is not."""
    flags = StatusFlags.from_args(argv)
    access = Access(flags)
    found = _asked_for(access, flags)
    now = datetime.now(UTC)
    console = Console()
    for item in found:
        space, name = item["metadata"]["namespace"], item["metadata"]["name"]
        pods = access.list(objects("pods", space, group="api/v1"), f"{MODEL_LABEL}={name}")
        console.print(tree(item, pods, now), soft_wrap=True)
    return 0 if all(_ready(item) == "True" for item in found) else 1


def _asked_for(access: Access, flags: StatusFlags) -> list[Json]:
    if flags.name:
        return [model_deployment(access, flags.name)]
    space = "" if flags.all_namespaces else access.namespace
    if found := access.list(objects("modeldeployments", space)):
        return found
    where = "in any namespace" if flags.all_namespaces else f"in namespace {space}; try --all-namespaces"
    raise NotFound(f"no ModelDeployment {where}")


def tree(item: Json, pods: Iterable[Json], now: datetime) -> Tree:
    """A ModelDeployment with conditions that are not True, routers, brokers, pools and their pods."""
    status = item.get("status", {})
    root = Tree(_headline(item))
    for condition in status.get("conditions", []):
        if condition["status"] != "True" and condition["type"] != "Ready":
            words = f"{condition['type']}: {condition['reason']}: {condition['message']}"
            root.add(Text(words, style=COLOURS[condition["status"]]))
    slots = _by_slot(pods)
    for component in ("router", "broker"):
        _add_pods(root.add(component), slots.pop(component, []), now)
    for pool in status.get("pools", []):
        branch = root.add(_pool_line(pool))
        _add_pods(branch, slots.pop(pool["name"], []), now)
    for slot, left in sorted(slots.items()):
        _add_pods(root.add(f"{slot} (no longer declared)"), left, now)
    return root


def _headline(item: Json) -> Text:
    metadata, status = item["metadata"], item.get("status", {})
    if not status:
        words = "no status yet: is the operator running? `twolane k8s doctor` tells"
        return Text(f"{metadata['namespace']}/{metadata['name']}  {words}", style="red")
    ready = next((c for c in status["conditions"] if c["type"] == "Ready"), {"status": "Unknown"})
    line = Text(f"{metadata['namespace']}/{metadata['name']}  ")
    line.append(f"{ready.get('reason', 'Unknown')}", style=COLOURS[ready["status"]])
    stale = status.get("observedGeneration") != metadata.get("generation")
    line.append("  (a change is not looked at yet)" if stale else "")
    line.append(f"  {status.get('url', '')}  revision {status.get('revision', '?')}")
    if ready["status"] != "True":
        line.append(f"\n{ready.get('message', '')}", style=COLOURS[ready["status"]])
    return line


def _pool_line(pool: Mapping[str, object]) -> str:
    lane = "" if pool.get("lane", "both") == "both" else f", {pool['lane']} lane"
    return f"{pool['name']} ({pool['role']}{lane}): {pool['ready']} of {pool['desired']} workers ready"


def _by_slot(pods: Iterable[Json]) -> dict[str, list[Json]]:
    slots: dict[str, list[Json]] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        slots.setdefault(label(pod, POOL_LABEL) or label(pod, COMPONENT_LABEL), []).append(pod)
    return slots


def _add_pods(branch: Tree, pods: Iterable[Json], now: datetime) -> None:
    for pod in pods:
        branch.add(pod_line(pod, now))


def pod_line(pod: Json, now: datetime) -> Text:
    """A pod: its name, whether it serves or why not, where it runs, restarts, age and revision."""
    metadata, trouble = pod["metadata"], pod_trouble(pod)
    if metadata.get("deletionTimestamp"):
        state, colour = "ending", "yellow"
    elif is_ready(pod):
        state, colour = "ready", "green"
    else:
        words = trouble.message.removeprefix(f"{metadata['name']}: ") if trouble else "not ready"
        state, colour = f"{trouble.reason}: {words}" if trouble else words, "red"
    line = Text(f"{metadata['name']}  ")
    line.append(state, style=colour)
    line.append(f"  on {pod['spec'].get('nodeName', 'no node')}")
    containers = pod.get("status", {}).get("containerStatuses", [])
    restarts = sum(int(each.get("restartCount", 0)) for each in containers)
    line.append(f", {restarts} restarts" if restarts else "")
    line.append(f", {age(metadata['creationTimestamp'], now)}, revision {label(pod, REVISION_LABEL)}")
    return line


def age(timestamp: str, now: datetime) -> str:
    """How long ago a time of the API server was, in its one or two largest units."""
    seconds = int((now - datetime.fromisoformat(timestamp)).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def _ready(item: Json) -> str:
    conditions = item.get("status", {}).get("conditions", [])
    return next((str(c["status"]) for c in conditions if c["type"] == "Ready"), "Unknown")
