"""The restricted Pod Security Standard as a list of what a pod does wrong, and what we ask for beyond it.

Written from the standard's own table, independent of what builds the pods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SECCOMP = ("RuntimeDefault", "Localhost")


def violations(pod: Json) -> list[str]:
    """What keeps a pod's spec from the restricted standard; empty when it passes."""
    found = [f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']} is a {kind}" for kind in set(volume) - {"name"} - _VOLUMES]
    whole = pod.get("securityContext", {})
    found += [f"sysctl {item['name']}" for item in whole.get("sysctls", [])]
    for container in containers(pod):
        found += [f"{container['name']}: {words}" for words in _of_container(container, whole)]
    return found


def beyond(pod: Json, account: bool = False) -> list[str]:
    """What we ask for that the standard does not: a read-only root, no token, no Service links."""
    found = [] if account or pod.get("automountServiceAccountToken") is False else ["mounts a token"]
    if pod.get("enableServiceLinks") is not False:
        found.append("gets Service links")
    for container in containers(pod):
        if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            found.append(f"{container['name']}: can write to its root")
    return found


def containers(pod: Json) -> list[Json]:
    """Every container, those that run before the others included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def _of_container(container: Json, whole: Json) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("privileged"):
        yield "is privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "keeps capabilities"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "adds capabilities"
    if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
        yield "may run as root"
    if own.get("runAsUser", whole.get("runAsUser", 1)) == 0:
        yield "runs as root"
    if own.get("seccompProfile", whole.get("seccompProfile", {})).get("type") not in _SECCOMP:
        yield "has no seccomp profile"
    if own.get("procMount", "Default") != "Default":
        yield "sees all of /proc"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "takes a port of the node"
    probes = [container.get(name, {}) for name in ("livenessProbe", "readinessProbe", "startupProbe")]
    if any(probe.get(kind, {}).get("host") for probe in probes for kind in ("httpGet", "tcpSocket")):
        yield "is probed at another host"
