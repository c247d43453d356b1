"""Why pods do not serve, in the words of whoever knows: scheduler, kubelet, or the process itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from twolane.operator.observed import is_ready
from twolane.operator.resources.shape import Json

_LONGEST = 400


@dataclass(frozen=True, slots=True)
class Trouble:
    """A CamelCase reason, a sentence, and how bad it is: what needs a person goes first."""

    severity: int
    reason: str
    message: str


def worst_trouble(pods: Iterable[Json], deployments: Iterable[Json] = ()) -> Trouble | None:
    """The trouble that matters most among pods, and Deployments that get no pods; None without any."""
    found = [trouble for pod in pods if (trouble := pod_trouble(pod)) is not None]
    found += [trouble for child in deployments if (trouble := _refusal(child)) is not None]
    return max(found, key=lambda trouble: trouble.severity, default=None)


def pod_trouble(pod: Json) -> Trouble | None:
    """Why one pod does not serve; None when it does or is ending."""
    if is_ready(pod) or pod["metadata"].get("deletionTimestamp"):
        return None
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _trouble(5, condition.get("reason", "Unschedulable"), name, condition.get("message", ""))
    for container in status.get("initContainerStatuses", []):
        if (trouble := _waiting(name, container, "ModelFetchFailed")) is not None:
            return trouble
        if "running" in container.get("state", {}):
            return _trouble(2, "FetchingModel", name, "the model's files are being fetched")
    return _main_trouble(name, status) or _trouble(1, "NotReady", name, "not ready yet")


def _main_trouble(name: str, status: Json) -> Trouble | None:
    for container in status.get("containerStatuses", []):
        if (trouble := _waiting(name, container, "ProcessFailed")) is not None:
            return trouble
        if "running" in container.get("state", {}) and not container.get("started"):
            return _trouble(2, "Loading", name, "the process has started and is loading")
    return None


def has_started(pod: Json) -> bool:
    """Whether the process has passed its startup probe; a worker does so once its model is loaded."""
    containers = pod.get("status", {}).get("containerStatuses", [])
    own = [container for container in containers if container["name"] == "twolane"]
    return any(container.get("started") or container.get("ready") for container in own)


def _waiting(pod: str, container: Json, failed: str) -> Trouble | None:
    state, last = container.get("state", {}), container.get("lastState", {})
    ended = state.get("terminated") or last.get("terminated") or {}
    waiting = state.get("waiting", {})
    reason = waiting.get("reason", "")
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        return _trouble(4, "ImagePullFailed", pod, waiting.get("message", ""))
    if reason.startswith("Create") or reason == "RunContainerError":
        return _trouble(4, reason, pod, waiting.get("message", ""))
    if ended.get("exitCode"):
        words = (ended.get("message") or "").strip().splitlines()
        said = words[-1] if words else ended.get("reason", "")
        return _trouble(4, failed, pod, f"exit status {ended['exitCode']}: {said}")
    return None


def _refusal(deployment: Json) -> Trouble | None:
    for condition in deployment.get("status", {}).get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return _trouble(5, "PodsRefused", deployment["metadata"]["name"], condition.get("message", ""))
    return None


def _trouble(severity: int, reason: str, name: str, message: str) -> Trouble:
    return Trouble(severity, reason, f"{name}: {message}"[:_LONGEST])
