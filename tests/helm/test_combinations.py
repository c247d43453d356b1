"""Many combinations of values: the schemas of Kubernetes take every object, and so does an API server."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.cluster.binaries import KUBERNETES
from tests.helm.foreign_kinds import install_foreign_kinds
from tests.helm.pairs import pairwise
from tests.helm.restricted import beyond, violations
from tests.operator.cluster.kube import Kube, Refused
from tests.operator.cluster.operator_process import chart

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
Json = dict[str, Any]
NAMESPACES = ("serving", "a", "b", "graphs")
OPTIONS: dict[str, list[str]] = {
    "replicas": ["1", "3"],
    "watchNamespaces": ["", "{a,b}"],
    "image.registry": ["", "registry.example/team"],
    "image.tag": ["", "main"],
    "image.pullSecrets[0].name": ["", "pull"],
    "crds.upgrade": ["true", "false"],
    "redis.mode": ["none", "external", "bundled"],
    "redis.secretName": ["books", "redis"],
    "redis.external.url": ["", "rediss://:word@books.example:6380/1"],
    "redis.namespaces": ["", "{b}"],
    "redis.bundled.persistence.enabled": ["true", "false"],
    "tls.secrets": ["true", "false"],
    "tls.certManager": ["true", "false"],
    "serviceAccount.create": ["true", "false"],
    "serviceAccount.name": ["me"],
    "rbac.create": ["true", "false"],
    "rbac.aggregate": ["true", "false"],
    "networkPolicy.enabled": ["true", "false"],
    "podDisruptionBudget.enabled": ["true", "false"],
    "monitoring.podMonitor.enabled": ["true", "false"],
    "monitoring.alerts.enabled": ["true", "false"],
    "monitoring.dashboards.enabled": ["true", "false"],
    "monitoring.dashboards.namespace": ["", "graphs"],
    "podLabels.team": ["", "x"],
    "podAnnotations.note": ["", "y"],
    "nodeSelector.disk": ["", "ssd"],
    "tolerations[0].operator": ["", "Exists"],
    "priorityClassName": ["", "system-cluster-critical"],
}
COMBINATIONS = pairwise(OPTIONS)


def _render(chosen: dict[str, str]) -> list[Json]:
    pairs = [f"{name}={value}" for name, value in chosen.items() if value]
    return chart(
        "serving", *(part for pair in pairs for part in ("--set", pair.replace(".example", r".example")))
    )


def _pods(bodies: list[Json]) -> Iterator[tuple[str, Json]]:
    for body in bodies:
        if body["kind"] in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
            template = copy.deepcopy(body["spec"]["template"])
            for claim in body["spec"].get("volumeClaimTemplates", []):
                name = claim["metadata"]["name"]
                template["spec"]["volumes"].append(
                    {"name": name, "persistentVolumeClaim": {"claimName": name}}
                )
            yield body["metadata"]["name"], template


def test_every_two_choices_meet() -> None:
    """What the other tests go through is complete."""
    wanted = {
        frozenset({(one, a), (other, b)})
        for one, other in itertools.combinations(OPTIONS, 2)
        for a in OPTIONS[one]
        for b in OPTIONS[other]
    }
    met = {frozenset(pair) for chosen in COMBINATIONS for pair in itertools.combinations(chosen.items(), 2)}
    assert wanted <= met
    assert len(COMBINATIONS) < 40


@pytest.mark.parametrize("chosen", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_every_object_fits_the_schemas_and_every_pod_is_restricted(chosen: dict[str, str]) -> None:
    """Without a cluster: unknown fields and wrong types are refused, names are unique, pods confined."""
    bodies = _render(chosen)
    version = ".".join(KUBERNETES.split(".")[:2])
    for body in bodies:
        if "monitoring.coreos.com" not in body["apiVersion"]:
            kubernetes_validate.validate(copy.deepcopy(body), version, strict=True)
    names = [(b["kind"], b["metadata"].get("namespace"), b["metadata"]["name"]) for b in bodies]
    assert len(names) == len(set(names))
    for name, template in _pods(bodies):
        assert violations(template["spec"]) == []
        assert beyond(template["spec"], account=name.endswith(("-operator", "-leave"))) == []
        assert all(container.get("resources") for container in template["spec"]["containers"])


@pytest.mark.parametrize("chosen", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_every_workload_is_selected_by_a_policy(chosen: dict[str, str]) -> None:
    """A NetworkPolicy for each pod, when they are on; no Service and budget selects nothing."""
    bodies = _render(chosen)
    labels = [template["metadata"]["labels"] for _, template in _pods(bodies)]
    policies = [b["spec"]["podSelector"]["matchLabels"] for b in bodies if b["kind"] == "NetworkPolicy"]
    assert len(policies) == (len(labels) if chosen["networkPolicy.enabled"] == "true" else 0)
    selectors = [b["spec"]["selector"] for b in bodies if b["kind"] == "Service"]
    selectors += [b["spec"]["selector"]["matchLabels"] for b in bodies if b["kind"] == "PodDisruptionBudget"]
    for selector in policies + selectors:
        assert any(selector.items() <= found.items() for found in labels)


@pytest.fixture(scope="module")
def knowing(kube: Kube) -> Iterator[Kube]:
    """A cluster with the kinds of others and the namespaces that are spoken of; they refuse open pods."""
    install_foreign_kinds(kube)
    for name in NAMESPACES:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        kube.kubectl("apply", "--filename", "-", text=yaml.safe_dump(body))
    yield kube
    kube.kubectl("delete", "namespace", *NAMESPACES, "--wait=false")


def _bare(name: str, spec: Json) -> Json:
    """A pod as its controller would make it; a dry run makes no account."""
    metadata = {"name": name, "namespace": "serving"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {**spec, "serviceAccountName": "default"},
    }


@pytest.mark.parametrize("chosen", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_an_api_server_takes_every_object(knowing: Kube, chosen: dict[str, str]) -> None:
    """Server-side dry-run with admission: strict fields, and the pods in a restricted namespace."""
    bodies = _render(chosen)
    pods = [_bare(name, template["spec"]) for name, template in _pods(bodies)]
    # JSON: PyYAML writes words without quotes that others read as truth values.
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*bodies, *pods]})
    knowing.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename", "-", text=text)


def test_an_api_server_refuses_what_is_wrong(knowing: Kube) -> None:
    """The dry run above must be able to fail: a field that does not exist, a pod that runs as root."""
    [deployment] = [body for body in _render({}) if body["kind"] == "Deployment"]
    root = _bare("p", {**copy.deepcopy(deployment["spec"]["template"]["spec"]), "securityContext": {}})
    deployment["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    for body, words in ((deployment, "imagee"), (root, "violates PodSecurity")):
        with pytest.raises(Refused, match=words):
            knowing.kubectl(
                "apply", "--dry-run=server", "--validate=strict", "--filename", "-", text=yaml.safe_dump(body)
            )
