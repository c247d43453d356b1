"""The checks of `twolane k8s doctor`, as pure functions of what the API server said.

Each returns findings: what was looked at, whether it is well, and what to do when it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from pydantic import BaseModel

from twolane.operator.names import VERSION
from twolane.operator.resources.model_deployment import ModelDeploymentSpec
from twolane.operator.resources.pools import Gpu, Pool, Prefill
from twolane.operator.resources.shape import Json
from twolane.operator.resources.worker_pool import WorkerPoolSpec

Level = Literal["ok", "warning", "failure"]

OLDEST_KUBERNETES = (1, 30)
"""Rules in the schema of ModelDeployments need it."""
OLDEST_DRIVER = 580
"""Major version of the NVIDIA driver that the CUDA 13 builds of torch need."""
MOST_CLOCK_S = 5.0
"""Clocks may differ by so much before logs and certificates mislead."""
MOST_SILENCE_S = 60.0
"""A node renews its Lease every 10 s."""
SPECS: Mapping[str, type[BaseModel]] = {
    "modeldeployments": ModelDeploymentSpec,
    "workerpools": WorkerPoolSpec,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: how it is.
        text: what was seen.
        advice: what to do; empty when all is well.
    """

    level: Level
    text: str
    advice: str = ""


def kubernetes_version(answer: Json) -> Finding:
    """Whether the API server is new enough; `answer` is what /version says."""
    words = f"API server {answer['gitVersion']}"
    number = (int(answer["major"]), int("".join(filter(str.isdigit, answer["minor"]))))
    if number >= OLDEST_KUBERNETES:
        return Finding("ok", words)
    oldest = ".".join(map(str, OLDEST_KUBERNETES))
    return Finding("failure", words, f"twolane needs Kubernetes {oldest} or newer: upgrade the cluster")


def definition(plural: str, found: Json | None) -> Finding:
    """Whether a custom resource is installed and has every field that this program knows."""
    advice = "apply the chart's crds folder: `kubectl apply --server-side -f helm/twolane/crds`"
    if found is None:
        return Finding("failure", f"{plural} are not known to the API server", advice)
    versions = {item["name"]: item for item in found["spec"]["versions"] if item["served"]}
    if VERSION not in versions:
        return Finding("failure", f"{plural} are served as {', '.join(versions)}, not {VERSION}", advice)
    established = [c for c in found["status"]["conditions"] if c["type"] == "Established"]
    if not established or established[0]["status"] != "True":
        return Finding("failure", f"{plural} are installed but not established", "look at its conditions")
    schema = versions[VERSION]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    if lacking := sorted(_lacking(SPECS[plural], schema)):
        words = f"{plural} {VERSION} are older than this program: spec.{', spec.'.join(lacking)} unknown"
        return Finding("failure", words, advice)
    return Finding("ok", f"{plural} {VERSION} have every field that this program knows")


def _lacking(shape: type[BaseModel], schema: Json) -> set[str]:
    """Paths of fields that a shape has and a schema does not."""
    properties, found = schema.get("properties", {}), set()
    for name, field in shape.model_fields.items():
        alias = field.alias or name
        if alias not in properties:
            found.add(alias)
            continue
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                inner = properties[alias].get("items", properties[alias])
                found |= {f"{alias}.{path}" for path in _lacking(part, inner)}
    return found


def operator(deployments: Sequence[Json], leases: Sequence[Json], now: datetime) -> list[Finding]:
    """Whether an operator runs and one of its replicas leads.

    Args:
        deployments: the Deployments of operators in the cluster.
        leases: the Leases of their namespaces.
        now: time by the API server's clock.
    """
    if not deployments:
        return [Finding("failure", "no operator is installed", "`helm install twolane helm/twolane`")]
    findings = []
    for item in deployments:
        name, space = item["metadata"]["name"], item["metadata"]["namespace"]
        running = item.get("status", {}).get("readyReplicas", 0)
        words = f"operator {space}/{name}: {running} of {item['spec']['replicas']} replicas ready"
        advice = f"`kubectl describe pods -n {space} -l app.kubernetes.io/name=twolane-operator`"
        level: Level = "ok" if running >= item["spec"]["replicas"] else "warning" if running else "failure"
        findings.append(Finding(level, words, "" if level == "ok" else advice))
        lease = next((each for each in leases if _is_of(each, name, space)), None)
        findings.append(_leader(f"{space}/{name}", lease, now))
    return findings


def _is_of(lease: Json, name: str, space: str) -> bool:
    return (lease["metadata"]["name"], lease["metadata"]["namespace"]) == (name, space)


def _leader(operator: str, lease: Json | None, now: datetime) -> Finding:
    spec = (lease or {}).get("spec", {})
    if not spec.get("holderIdentity") or "renewTime" not in spec:
        return Finding("failure", f"no replica of {operator} leads", "look at the logs of its pods")
    silent_s = (now - datetime.fromisoformat(spec["renewTime"])).total_seconds()
    words = f"{spec['holderIdentity']} leads, renewed {silent_s:.0f} s ago"
    if silent_s > 2 * spec["leaseDurationSeconds"]:
        return Finding("failure", words, "nobody leads any more: look at the logs of the operator's pods")
    return Finding("ok", words)


def clocks(ahead_s: float, leases: Iterable[Json], now: datetime) -> list[Finding]:
    """Whether this machine's clock and those of the nodes agree with the API server's.

    Args:
        ahead_s: seconds by which this machine is ahead.
        leases: the Leases that nodes renew, stamped with the node's own clock.
        now: time by the API server's clock.
    """
    advice = "let NTP (chrony, systemd-timesyncd) keep its clock"
    findings = []
    if abs(ahead_s) > MOST_CLOCK_S:
        findings.append(Finding("warning", f"this machine's clock is {ahead_s:+.0f} s off", advice))
    for lease in leases:
        name = lease["metadata"]["name"]
        since_s = (now - datetime.fromisoformat(lease["spec"]["renewTime"])).total_seconds()
        if since_s < -MOST_CLOCK_S:
            findings.append(Finding("failure", f"node {name}: its clock is {-since_s:.0f} s ahead", advice))
        elif since_s > MOST_SILENCE_S:
            words = f"node {name}: no sign of life for {since_s:.0f} s, or its clock is behind"
            findings.append(Finding("failure", words, f"`kubectl describe node {name}`; {advice}"))
    return findings or [Finding("ok", "clocks of this machine, the API server and the nodes agree")]


def names(slices: Sequence[Json]) -> Finding:
    """Whether the cluster's DNS has servers; routers find brokers by name."""
    ends = [end for each in slices for end in each.get("endpoints") or []]
    up = sum(end.get("conditions", {}).get("ready") is not False for end in ends)
    if up:
        return Finding("ok", f"cluster DNS: {up} servers are ready")
    return Finding(
        "failure",
        "no DNS server is ready behind a service labelled k8s-app=kube-dns",
        "`kubectl get pods -n kube-system -l k8s-app=kube-dns`; brokers are found by name",
    )


def drivers(nodes: Iterable[Json]) -> list[Finding]:
    """Whether nodes with NVIDIA devices offer them, under a driver that is new enough.

    Versions come from the labels of NVIDIA's feature discovery, where it runs.
    """
    findings = []
    for node in nodes:
        labels, name = node["metadata"].get("labels", {}), node["metadata"]["name"]
        offered = int(node["status"].get("allocatable", {}).get("nvidia.com/gpu", 0))
        if labels.get("nvidia.com/gpu.present") == "true" and not offered:
            pods = f"`kubectl get pods -A --field-selector spec.nodeName={name}`"
            advice = f"look at the device plugin's pod on it: {pods}"
            findings.append(Finding("failure", f"node {name} has NVIDIA devices and offers none", advice))
        major = labels.get("nvidia.com/cuda.driver-version.major") or labels.get(
            "nvidia.com/cuda.driver.major", ""
        )
        if major.isdigit() and int(major) < OLDEST_DRIVER:
            advice = f"install driver {OLDEST_DRIVER} or newer on it"
            findings.append(Finding("failure", f"node {name}: driver {major} is too old", advice))
        elif offered:
            known = f"driver {major}" if major else "driver unknown (no feature discovery)"
            findings.append(Finding("ok", f"node {name} offers {offered} NVIDIA devices, {known}"))
    return findings or [Finding("ok", "no node has NVIDIA devices: models run on CPUs")]


def devices(spec: ModelDeploymentSpec, name: str, nodes: Sequence[Json]) -> list[Finding]:
    """Whether some node could ever hold a worker of each pool of a ModelDeployment."""
    prefill = spec.pools.prefill or Prefill()
    pools: Mapping[str, Pool | None] = {
        "prefill": prefill.shared,
        "prefill-short": prefill.short,
        "prefill-long": prefill.long,
        "decode": spec.pools.decode,
        "mixed": spec.pools.mixed,
    }
    wanted = {pool: declared.gpu for pool, declared in pools.items() if declared and declared.gpu}
    return [_device(f"{name}, pool {pool}", gpu, nodes) for pool, gpu in wanted.items()]


def _device(who: str, gpu: Gpu, nodes: Sequence[Json]) -> Finding:
    asked = f"{who}: {gpu.count} {gpu.resource}" + (f" of type {gpu.type}" if gpu.type else "")
    types = [node["metadata"].get("labels", {}).get(gpu.type_label) for node in nodes]
    if gpu.type and gpu.type not in types:
        known = ", ".join(sorted({each for each in types if each})) or "none"
        return Finding(
            "failure", asked, f"no node has the label {gpu.type_label}={gpu.type}; there are: {known}"
        )
    fitting = [node for node, kind in zip(nodes, types, strict=True) if gpu.type in ("", kind)]
    most = max(
        (int(node["status"].get("allocatable", {}).get(gpu.resource, 0)) for node in fitting), default=0
    )
    if most < gpu.count:
        return Finding("failure", asked, f"the largest such node offers {most}: add nodes or ask for fewer")
    return Finding("ok", f"{asked}: there are nodes for it")


def health(item: Json) -> Finding:
    """What a ModelDeployment says of itself."""
    metadata, status = item["metadata"], item.get("status", {})
    name = f"{metadata['namespace']}/{metadata['name']}"
    own = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), None)
    if own is None:
        return Finding("failure", f"{name} has no status", "no operator looks after its namespace")
    if own["status"] == "True":
        return Finding("ok", f"{name}: {own['message']}")
    advice = f"`twolane k8s status {metadata['name']} --namespace {metadata['namespace']}`"
    return Finding("warning", f"{name} is not ready: {own['reason']}: {own['message']}", advice)
