"""`twolane k8s doctor`: looks at everything that twolane needs in a cluster and says what to mend.

It changes nothing. What the person may not read is named as such and not guessed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from twolane.core.errors import Unauthenticated
from twolane.operator.names import GROUP
from twolane.operator.plugin import findings as judge
from twolane.operator.plugin.access import Access, ClusterFlags, objects
from twolane.operator.plugin.findings import Finding
from twolane.operator.resources.model_deployment import read_spec
from twolane.operator.resources.shape import Json

MARKS = {"ok": ("ok  ", "green"), "warning": ("warn", "yellow"), "failure": ("FAIL", "red")}
_CHILDREN = ("list", "watch", "create", "patch", "delete")
RIGHTS = {
    (GROUP, "modeldeployments"): ("list", "watch", "patch"),
    (GROUP, "workerpools"): _CHILDREN,
    ("apps", "deployments"): _CHILDREN,
    ("apps", "statefulsets"): _CHILDREN,
    ("", "services"): _CHILDREN,
    ("", "pods"): ("list", "watch", "delete"),
    ("", "events"): ("create",),
    ("policy", "poddisruptionbudgets"): _CHILDREN,
    ("networking.k8s.io", "networkpolicies"): _CHILDREN,
}
"""Without these an operator can do nothing; the chart grants them, and more where options ask for it."""
OPERATORS = "app.kubernetes.io/name=twolane-operator"


@dataclass(frozen=True)
class Cluster:
    """What several checks look at, read once."""

    access: Access

    @cached_property
    def operators(self) -> list[Json]:
        """Deployments of the operator."""
        return self.access.list(objects("deployments", "", group="apis/apps/v1"), OPERATORS)

    @cached_property
    def nodes(self) -> list[Json]:
        """Every node."""
        return self.access.list(objects("nodes", "", group="api/v1"))


class DoctorFlags(ClusterFlags):
    """Flags of `twolane k8s doctor`."""

    process = "k8s"
    verb = "k8s doctor"


def main(argv: list[str]) -> int:
    """Prints what was found; 0: nothing fails, 1: something does."""
    access = Access(DoctorFlags.from_args(argv))
    console, worst = Console(), 0
    for finding in examine(access):
        mark, colour = MARKS[finding.level]
        line = Text(mark, style=colour).append(f"  {finding.text}", style="default")
        console.print(line.append(f"\n      {finding.advice}") if finding.advice else line, soft_wrap=True)
        worst = max(worst, finding.level == "failure")
    return int(worst)


def examine(access: Access) -> Iterable[Finding]:
    """Every check, one after another.

    Raises:
        Unavailable: the API server does not answer.
    """
    yield judge.kubernetes_version(access.get("version") or {})
    cluster = Cluster(access)
    checks: tuple[tuple[str, Callable[[Cluster], Iterable[Finding]]], ...] = (
        ("custom resources", _definitions),
        ("the operator", _operator),
        ("the operator's rights", _rights),
        ("clocks", _clocks),
        ("cluster DNS", _names),
        ("nodes", _nodes),
        ("model deployments", _deployments),
    )
    for what, check in checks:
        try:
            yield from check(cluster)
        except Unauthenticated as error:
            yield Finding("warning", f"{what}: not looked at: {error.message}", "ask as somebody who may")


def _now(access: Access) -> datetime:
    """The time by the API server's clock."""
    return datetime.now(UTC) - timedelta(seconds=access.clock_ahead_s)


def _definitions(cluster: Cluster) -> Iterable[Finding]:
    for plural in judge.SPECS:
        path = f"apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{GROUP}"
        yield judge.definition(plural, cluster.access.get(path))


def _operator(cluster: Cluster) -> Iterable[Finding]:
    access, found = cluster.access, cluster.operators
    spaces = {item["metadata"]["namespace"] for item in found}
    group = "apis/coordination.k8s.io/v1"
    leases = [lease for space in spaces for lease in access.list(objects("leases", space, group=group))]
    return judge.operator(found, leases, _now(access))


def _rights(cluster: Cluster) -> Iterable[Finding]:
    """Asks for each operator whether its account may do all that it does, where it does it."""
    for item in cluster.operators:
        name, space = item["metadata"]["name"], item["metadata"]["namespace"]
        pod = item["spec"]["template"]["spec"]
        user = f"system:serviceaccount:{space}:{pod['serviceAccountName']}"
        for place in _places(pod):
            refused = [words for words, asked in _asked(place) if not _may(cluster.access, user, asked)]
            where = f"in {place}" if place else "in every namespace"
            if refused:
                words = f"{user} may not {', '.join(refused)} {where}"
                yield Finding("failure", words, "install the chart with rbac.create=true, or grant it these")
            else:
                yield Finding("ok", f"operator {space}/{name} has its rights {where}")


def _places(pod: Json) -> list[str]:
    """The namespaces that an operator works for; an empty name for all."""
    flag = "--namespaces="
    flags = [arg for arg in pod["containers"][0].get("args", []) if arg.startswith(flag)]
    return flags[0].removeprefix(flag).split(",") if flags else [""]


def _asked(place: str) -> Iterable[tuple[str, Json]]:
    for (group, plural), verbs in RIGHTS.items():
        for verb in verbs:
            yield f"{verb} {plural}", {"namespace": place, "verb": verb, "group": group, "resource": plural}


def _may(access: Access, user: str, attributes: Json) -> bool:
    answer = access.review("SubjectAccessReview", {"user": user, "resourceAttributes": attributes})
    return bool(answer["allowed"])


def _clocks(cluster: Cluster) -> Iterable[Finding]:
    access = cluster.access
    leases = access.list(objects("leases", "kube-node-lease", group="apis/coordination.k8s.io/v1"))
    return judge.clocks(access.clock_ahead_s, leases, _now(access))


def _names(cluster: Cluster) -> Iterable[Finding]:
    path = objects("endpointslices", "kube-system", group="apis/discovery.k8s.io/v1")
    yield judge.names(cluster.access.list(path, "k8s-app=kube-dns"))
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        try:
            socket.getaddrinfo("kubernetes.default.svc", 443)
            yield Finding("ok", "names of services resolve in this pod")
        except OSError as error:
            advice = "look at the pod's /etc/resolv.conf and the logs of the DNS servers"
            yield Finding("failure", f"kubernetes.default.svc does not resolve in this pod: {error}", advice)


def _nodes(cluster: Cluster) -> Iterable[Finding]:
    return judge.drivers(cluster.nodes)


def _deployments(cluster: Cluster) -> Iterable[Finding]:
    for item in cluster.access.list(objects("modeldeployments", "")):
        yield judge.health(item)
        name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        try:
            yield from judge.devices(read_spec(item), name, cluster.nodes)
        except ValidationError:
            advice = "the custom resources and this program are of different versions: see above"
            yield Finding("failure", f"{name} can't be read by this program", advice)
