"""Every pod that the operator makes keeps the restricted Pod Security Standard, and more; no helm needed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.restricted import Json, beyond, containers, violations
from tests.operator.objects import World, model_deployment

GPU = {"gpu": {"count": 1, "type": "H100"}}
SPECS: dict[str, Json] = {
    "plain": {"model": {"imagePath": "/opt/m"}},
    "lanes": {
        "pools": {"prefill": {"short": GPU, "long": GPU}, "decode": GPU},
        "model": {"pvc": {"claimName": "c"}},
    },
    "mixed": {"pools": {"mixed": {}}, "model": {"image": {"reference": "r/m:1"}}},
    "fetched": {"model": {"s3": {"uri": "s3://b/m", "secretName": "s"}}},
    "cached": {"model": {"hub": {"repo": "o/n", "cacheClaim": "c", "tokenSecret": {"name": "t"}}}},
    "gangs": {
        "model": {"imagePath": "/opt/m"},
        "pools": {"mixed": {"gpu": {"count": 2}, "tensorParallel": {"size": 4, "podsPerWorker": 2}}},
    },
    "certificates": {"model": {"imagePath": "/opt/m"}, "tls": {"mode": "operator"}},
    "shared": {
        "model": {"imagePath": "/opt/m"},
        "broker": {"replicas": 2, "redis": {"secretName": "redis"}},
        "apiKeys": {"secretName": "keys"},
        "tracing": {"endpoint": "http://c:4317"},
    },
}


def _pods(**spec: Any) -> list[Json]:
    world = World(model_deployment(**spec))
    world.settle()
    kinds = ("Deployment", "StatefulSet", "Job")
    return [child["spec"]["template"]["spec"] for (kind, _), child in world.children.items() if kind in kinds]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_pod_of_a_model_is_restricted(spec: Json) -> None:
    """Routers, brokers, workers and what fetches a model."""
    pods = _pods(**spec)
    assert len(pods) >= 3
    assert [words for pod in pods for words in [*violations(pod), *beyond(pod)]] == []


def test_a_folder_of_the_node_is_the_one_way_out() -> None:
    """Only who asks for it leaves the standard, by that volume alone."""
    found = [words for pod in _pods(model={"hostPath": {"path": "/m"}}) for words in violations(pod)]
    assert set(found) == {"volume model is a hostPath"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"securityContext": {}}, "may run as root"),
        ({"hostNetwork": True}, "hostNetwork is true"),
        ({"volumes": [{"name": "x", "nfs": {}}]}, "volume x is a nfs"),
    ],
)
def test_the_list_finds_what_is_wrong_with_a_pod(change: Json, words: str) -> None:
    """It must be able to fail."""
    pod = {**_pods(model={"imagePath": "/m"})[0], **change}
    assert any(words in found for found in violations(pod))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"privileged": True}, "is privileged"),
        ({"allowPrivilegeEscalation": True}, "may gain privileges"),
        ({"capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE"]}}, "adds capabilities"),
        ({"capabilities": {}}, "keeps capabilities"),
        ({"runAsUser": 0}, "runs as root"),
        ({"seccompProfile": {"type": "Unconfined"}}, "has no seccomp profile"),
    ],
)
def test_the_list_finds_what_is_wrong_with_a_container(change: Json, words: str) -> None:
    """The same for what containers say of themselves."""
    pod = _pods(model={"imagePath": "/m"})[0]
    [container] = containers(pod)
    altered = {**container, "securityContext": {**container["securityContext"], **change}}
    assert any(words in found for found in violations({**pod, "containers": [altered]}))
