"""The API server refuses what can't work, with a sentence that says what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.operator.cluster.kube import Kube, Refused, model_deployment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

HALF_A_CPU = {"cpu": "1500m", "memory": "1Gi"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": {}}, "give exactly one source of the model - pvc, hostPath, s3, hub, image or imagePath"),
    ({"model": {"imagePath": "/m", "hub": {"repo": "a/b"}}}, "give exactly one source"),
    ({"model": {"hub": {"repo": "only-a-name"}}}, "spec.model.hub.repo"),
    ({"model": {"s3": {"uri": "http://b/m"}}}, "spec.model.s3.uri"),
    ({"pools": {"prefill": {"short": {}}, "decode": {}}}, "either shared, or both short and long"),
    ({"pools": {"prefill": {"shared": {}, "short": {}, "long": {}}, "decode": {}}}, "either shared, or both"),
    ({"pools": {"decode": {}}}, "prefill and decode need each other"),
    ({"pools": {"prefill": {"shared": {}}, "decode": {}, "mixed": {}}}, "or mixed alone"),
    ({"pools": {"mixed": {"scaling": {"minReplicas": 3, "maxReplicas": 2}}}}, "must not be below"),
    ({"pools": {"mixed": {"replicas": 0}}}, "set minReplicas to 0 for a pool that may be empty"),
    (
        {"pools": {"mixed": {"replicas": 5, "scaling": {"maxReplicas": 2}}}},
        "must not exceed",
    ),
    ({"pools": {"mixed": {"resources": {"limits": {"cpu": "much"}}}}}, "spec.pools.mixed.resources.limits"),
    (
        {"pools": {"mixed": {"tensorParallel": {"size": 4, "podsPerWorker": 2}}}},
        "podsPerWorker must be 1 (all ranks in one pod) or tensorParallel.size",
    ),
    (
        {"pools": {"mixed": {"tensorParallel": {"size": 4}, "gpu": {"count": 2}}}},
        "gpu.count must be the ranks of one pod",
    ),
    ({"pools": {"mixed": {"tensorParallel": {"size": 1}}}}, "spec.pools.mixed.tensorParallel.size"),
    (
        {"pools": {"mixed": {"gpu": {"numaAligned": True}, "resources": {"limits": {"cpu": 4}}}}},
        "gpu.numaAligned needs resources.limits with whole CPUs and memory",
    ),
    (
        {"pools": {"mixed": {"gpu": {"numaAligned": True}, "resources": {"limits": HALF_A_CPU}}}},
        "gpu.numaAligned needs resources.limits with whole CPUs and memory",
    ),
    ({"router": {"placement": "best"}}, "spec.router.placement"),
    ({"broker": {"replicas": 2}}, "more than one broker needs broker.redis"),
    (
        {"engine": {"maxBatchTokens": 10, "longChunkTokens": 20}},
        "longChunkTokens must not exceed",
    ),
    ({"engine": {"device": "tpu"}}, "spec.engine.device"),
    ({"rollout": {"rollback": {"maxErrorPercent": 101}}}, "spec.rollout.rollback.maxErrorPercent"),
    ({"scaling": {"scaleToZero": {"holdSeconds": 0}}}, "spec.scaling.scaleToZero.holdSeconds"),
    ({"rollout": {"strategy": "Hope"}}, 'supported values: "Rolling", "Recreate"'),
    (
        {"scaling": {"ratio": {"minPrefillPerDecode": 2, "maxPrefillPerDecode": 1}}},
        "ratio.maxPrefillPerDecode must not be below",
    ),
]


@pytest.mark.parametrize(("spec", "words"), REFUSED)
def test_a_spec_that_cannot_work_is_refused_with_advice(
    kube: Kube, namespace: str, spec: dict[str, Any], words: str
) -> None:
    """At the moment of kubectl apply, not in a log hours later."""
    with pytest.raises(Refused, match=re.escape(words)):
        kube.apply(namespace, model_deployment(**spec))


def test_a_field_nobody_knows_is_refused(kube: Kube, namespace: str) -> None:
    """A typing error must not be dropped in silence."""
    with pytest.raises(Refused, match=r"unknown field \"spec.engine.pageToken\""):
        kube.apply(namespace, model_deployment(engine={"pageToken": 16}))


@pytest.mark.parametrize("name", ["a" * 41, "1st", "a.b"])
def test_a_name_that_services_cannot_have_is_refused(kube: Kube, namespace: str, name: str) -> None:
    """Names of pods and services are made from it."""
    with pytest.raises(Refused, match="the name must"):
        kube.apply(namespace, model_deployment(name))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("role", "decode", "the role of a pool is fixed"), ("lane", "short", "the lane of a pool is fixed")],
)
def test_the_role_of_a_pool_is_fixed(kube: Kube, namespace: str, field: str, value: str, words: str) -> None:
    """Its workers would be of another kind than its name says."""
    pool = {
        "apiVersion": "serving.twolane.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": "demo-prefill"},
        "spec": {"modelDeployment": "demo", "role": "prefill"},
    }
    kube.apply(namespace, pool)
    with pytest.raises(Refused, match=words):
        kube.patch(namespace, "wp", "demo-prefill", {"spec": {field: value}})


def test_defaults_are_filled_in_at_every_depth(kube: Kube, namespace: str) -> None:
    """What was left out can be read from the object."""
    kube.apply(namespace, model_deployment())
    spec = kube.get(namespace, "md", "demo")["spec"]
    assert spec["pools"] == {
        "prefill": {"shared": {"scaling": {"minReplicas": 1}}},
        "decode": {"scaling": {"minReplicas": 1}},
    }
    assert spec["rollout"] == {
        "strategy": "Rolling",
        "maxSurge": 1,
        "progressDeadlineSeconds": 1800,
        # The soak is the test's own.
        "rollback": {"enabled": True, "maxErrorPercent": 10, "minRequests": 20, "soakSeconds": 0},
    }


def test_what_belongs_together_is_accepted(kube: Kube, namespace: str) -> None:
    """Every option that refers to another, as it is meant to be used."""
    ranks = {"tensorParallel": {"size": 4, "timeoutSeconds": 600}, "gpu": {"count": 4, "numaAligned": True}}
    pool = {**ranks, "resources": {"limits": {"cpu": 16, "memory": "64Gi"}}}
    spread = {"tensorParallel": {"size": 2, "podsPerWorker": 2}, "gpu": {"count": 1}}
    slo = {"ttftMs": 500, "tpotMs": 50, "short": {"ttftMs": 200}, "long": {"tpotMs": 80}}
    scaling = {"scaleToZero": {"afterIdleSeconds": 600, "holdSeconds": 120, "maxHeld": 10}}
    pools = {"prefill": {"shared": pool}, "decode": spread}
    kube.apply(namespace, model_deployment(pools=pools, slo=slo, scaling=scaling, engine={"nixl": False}))


def test_explain_knows_every_word(kube: Kube) -> None:
    """`kubectl explain` is the reference."""
    text = kube.kubectl("explain", "md.spec.pools.decode.replicas")
    assert "belongs to whoever scales the WorkerPool" in " ".join(text.split())
