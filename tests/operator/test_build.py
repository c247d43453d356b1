"""What pods get: flags the real parsers take, models from every source, confinement, a user's overrides."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.operator.objects import IMAGE, model_deployment
from twolane.broker.config import BrokerConfig
from twolane.core.request import Lane
from twolane.operator.build.front import broker_template, router_service, router_template
from twolane.operator.build.model_volume import model_volume
from twolane.operator.build.overlay import merge, overlay
from twolane.operator.build.workers import pools_of, worker_template
from twolane.operator.names import Owner
from twolane.operator.resources.model_deployment import ModelDeploymentSpec, read_spec
from twolane.operator.resources.pools import Engine, PodTemplate
from twolane.operator.resources.shape import Json
from twolane.operator.resources.sources import Model
from twolane.operator.revision import revision_of
from twolane.router.config import RouterConfig
from twolane.worker.config import WorkerConfig

OWNER = Owner("demo", "team", "u-1")
EVERY_ENGINE_OPTION = {
    "dtype": "bfloat16",
    "device": "cpu",
    "numThreads": 2,
    "pageTokens": 32,
    "kvMemoryMiB": 512,
    "maxModelLen": 4096,
    "scheduler": "fcfs",
    "shortMaxUncachedTokens": 128,
    "windowMs": 2.5,
    "maxBatchTokens": 1024,
    "longChunkTokens": 256,
    "maxDecodeRows": 16,
    "maxWaiting": 99,
    "decodePolicy": "conservative",
    "nixl": False,
    "layerPushMiB": 0.5,
    "maxPinnedShare": 0.25,
    "parityShare": 0.0,
}
SET_BY_THE_OPERATOR = {
    "broker",
    "data_port",
    "drain_timeout_s",
    "host",
    "advertise_host",
    "http_port",
    "lane",
    "log_level",
    "model_dir",
    "otlp_endpoint",
    "otlp_sample_ratio",
    "port",
    "role",
    "served_model_name",
    "tensor_parallel_address",
    "tensor_parallel_rank",
    "tensor_parallel_size",
    "tensor_parallel_timeout_s",
    "tls_dir",
    "worker_id",
}
"""Flags of a worker that follow from elsewhere than spec.engine."""


def _spec(**spec: Any) -> ModelDeploymentSpec:
    return read_spec(model_deployment(**spec))


def _container(template: Json) -> Json:
    container: Json = template["spec"]["containers"][0]
    return container


def _workers(spec: ModelDeploymentSpec) -> dict[str, Json]:
    return {pool.name: worker_template(OWNER, spec, pool, IMAGE, "b:9200") for pool in pools_of(spec)}


def test_workers_understand_every_flag_they_get() -> None:
    """All engine options, both lanes: the worker's own parser takes them and reads what was meant."""
    spec = _spec(
        engine=EVERY_ENGINE_OPTION,
        pools={"prefill": {"short": {}, "long": {"engine": {"maxWaiting": 5}}}, "decode": {}},
        tracing={"endpoint": "http://c:4317", "sampleRatio": 0.5},
        drain={"timeoutSeconds": 7},
    )
    read = {name: WorkerConfig.from_args(_container(t)["args"][1:]) for name, t in _workers(spec).items()}
    assert {name: (c.role, c.lane, c.max_waiting) for name, c in read.items()} == {
        "prefill-short": ("prefill", "short", 99),
        "prefill-long": ("prefill", "long", 5),
        "decode": ("decode", "both", 99),
    }
    decode = read["decode"]
    assert (decode.kv_memory_mib, decode.window_ms, decode.drain_timeout_s) == (512, 2.5, 7)
    assert (decode.otlp_endpoint, decode.otlp_sample_ratio) == ("http://c:4317", 0.5)
    assert (decode.broker, decode.served_model_name, str(decode.model_dir)) == ("b:9200", "demo", "/model")


def test_routers_and_brokers_understand_every_flag_they_get() -> None:
    """The same for the other two processes; keys come by a file, never by a flag."""
    spec = _spec(
        engine={"shortMaxUncachedTokens": 64, "maxModelLen": 2048},
        router={"placement": "round_robin", "maxWaiting": 3, "requestTimeoutSeconds": 30},
        slo={"ttftMs": 250, "tpotMs": 40, "short": {"ttftMs": 90, "tpotMs": 30}, "long": {"ttftMs": 9000}},
        scaling={"scaleToZero": {"holdSeconds": 120, "maxHeld": 7}},
        apiKeys={"secretName": "keys"},
        logLevel="DEBUG",
    )
    template = router_template(OWNER, spec, IMAGE, "b:9200")
    router = RouterConfig.from_args(_container(template)["args"][1:])
    assert (router.placement, router.max_waiting, router.request_timeout_s) == ("round_robin", 3, 30)
    assert (router.ttft_slo_ms, router.short_max_uncached_tokens, router.log_level) == (250, 64, "DEBUG")
    targets = router.slo_targets
    assert targets.ttft_ms == {Lane.SHORT: 90, Lane.LONG: 9000}
    assert targets.tpot_ms == {Lane.SHORT: 30, Lane.LONG: 40}
    assert (router.hold_s, router.max_held, router.max_model_len) == (120, 7, 2048)
    assert str(router.api_keys_file) == "/etc/twolane/api-keys/keys"
    assert {"name": "api-keys", "mountPath": "/etc/twolane/api-keys", "readOnly": True} in _container(
        template
    )["volumeMounts"]
    broker = BrokerConfig.from_args(_container(broker_template(OWNER, spec, IMAGE, "r1"))["args"][1:])
    assert (broker.host, broker.port, broker.http_port) == ("0.0.0.0", 9200, 9400)


SOURCES: list[tuple[Json, str, str]] = [
    ({"pvc": {"claimName": "c", "path": "a/b"}}, "/model/a/b", "persistentVolumeClaim"),
    ({"hostPath": {"path": "/m"}}, "/model", "hostPath"),
    ({"image": {"reference": "r/m:1"}}, "/model", "image"),
    ({"s3": {"uri": "s3://b/m"}}, "/model/", "emptyDir"),
    ({"hub": {"repo": "o/n", "cacheClaim": "cache"}}, "/model/", "persistentVolumeClaim"),
    ({"imagePath": "/opt/m"}, "/opt/m", ""),
]


@pytest.mark.parametrize(("source", "folder", "volume"), SOURCES)
def test_every_source_gives_a_folder_and_its_volume(source: Json, folder: str, volume: str) -> None:
    """Fetched sources come by an init container, all others by the volume alone."""
    template = _workers(_spec(model=source))["decode"]
    args = _container(template)["args"]
    assert args[args.index("--model-dir") + 1].startswith(folder)
    volumes = [v for v in template["spec"]["volumes"] if v["name"] == "model"]
    assert [volume in v for v in volumes] == ([True] if volume else [])
    fetchers = ["fetch-model"] if "s3" in source or "hub" in source else []
    assert [c["name"] for c in template["spec"].get("initContainers", [])] == fetchers


def test_secrets_stay_in_their_secrets() -> None:
    """Only references to them are in a pod."""
    source = {"uri": "s3://b/m", "secretName": "aws"}
    volume = model_volume(Model.model_validate({"s3": source}))
    assert [entry["valueFrom"]["secretKeyRef"]["name"] for entry in volume.fetch_env] == ["aws", "aws"]
    redis = _spec(broker={"redis": {"secretName": "redis"}})
    container = _container(broker_template(OWNER, redis, IMAGE, "r1"))
    [entry] = [e for e in container["env"] if "REDIS" in e["name"]]
    assert entry["valueFrom"] == {"secretKeyRef": {"name": "redis", "key": "url"}}


def test_a_router_leaves_the_weights_where_they_are_unless_the_copy_is_shared() -> None:
    """Whoever fetches first into a shared claim must fetch all."""
    own = Model.model_validate({"hub": {"repo": "o/n"}})
    shared = Model.model_validate({"hub": {"repo": "o/n", "cacheClaim": "c"}})
    assert "--no-weights" in model_volume(own, weights=False).fetch_args
    assert "--no-weights" not in model_volume(shared, weights=False).fetch_args
    assert model_volume(own, weights=False).model_dir == model_volume(shared).model_dir


def test_a_gpu_pool_asks_for_devices_of_its_type() -> None:
    """Resource, node selector and the toleration that such nodes commonly need."""
    gpu = {"count": 2, "type": "H100"}
    spec = _spec(pools={"mixed": {"gpu": gpu, "resources": {"limits": {"memory": "8Gi"}}}})
    template = _workers(spec)["mixed"]
    assert _container(template)["resources"] == {"limits": {"memory": "8Gi", "nvidia.com/gpu": 2}}
    assert template["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    assert template["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_the_kill_comes_after_the_wait_and_the_whole_drain() -> None:
    """preStop, drain and grace period of every process match."""
    spec = _spec(drain={"timeoutSeconds": 40, "preStopSeconds": 7})
    for template in [*_workers(spec).values(), router_template(OWNER, spec, IMAGE, "b:1")]:
        container = _container(template)
        assert container["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
        drain = float(container["args"][container["args"].index("--drain-timeout-s") + 1])
        assert template["spec"]["terminationGracePeriodSeconds"] > 7 + drain


def test_an_override_adds_to_the_container_and_cannot_steal_labels() -> None:
    """Named lists merge by name; the labels that selectors rely on stay."""
    labels = {"team": "a", "serving.twolane.dev/pool": "stolen"}
    override = {
        "metadata": {"labels": labels, "annotations": {"x": "y"}},
        "spec": {
            "priorityClassName": "high",
            "containers": [{"name": "twolane", "env": [{"name": "NEW", "value": "1"}]}, {"name": "side"}],
        },
    }
    template = _workers(_spec(podTemplate=override))["decode"]
    assert template["metadata"]["labels"]["serving.twolane.dev/pool"] == "decode"
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"] == {"x": "y"}
    assert template["spec"]["priorityClassName"] == "high"
    assert [c["name"] for c in template["spec"]["containers"]] == ["twolane", "side"]
    assert {"POD_NAME", "POD_IP", "HOME", "NEW"} == {e["name"] for e in _container(template)["env"]}


documents = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=12,
)


@given(below=documents, above=documents)
def test_an_override_is_idempotent(below: Any, above: Any) -> None:
    """Merged twice is merged once: reconciliation never piles overrides up."""
    once = merge(below, above)
    assert merge(once, above) == once


@given(below=st.dictionaries(st.text(max_size=3), documents, max_size=3))
def test_an_empty_override_changes_nothing(below: Json) -> None:
    """The usual case."""
    template = {"metadata": {"labels": {}, "annotations": {}}, "spec": below}
    assert overlay(template, None, PodTemplate()) == template


@given(
    replicas=st.integers(0, 50),
    routers=st.integers(1, 9),
    low=st.integers(0, 3),
    surge=st.integers(1, 5),
)
def test_no_count_is_part_of_a_revision(replicas: int, routers: int, low: int, surge: int) -> None:
    """Scaling restarts nothing."""
    plain = _spec(pools={"mixed": {}})
    pool = {"replicas": replicas, "scaling": {"minReplicas": low}}
    scaled = _spec(pools={"mixed": pool}, router={"replicas": routers}, rollout={"maxSurge": surge})
    assert revision_of(OWNER, plain, IMAGE) == revision_of(OWNER, scaled, IMAGE)


def test_every_flag_of_a_worker_can_be_declared() -> None:
    """Nothing that a worker can be told is out of reach; ports are for tests, logs of steps for profiles."""
    known = set(Engine.model_fields) | SET_BY_THE_OPERATOR | {"port_file", "step_log_dir"}
    assert set(WorkerConfig.model_fields) - known == set()


def test_a_pod_that_is_to_be_aligned_asks_for_what_it_may_use() -> None:
    """Whole CPUs and memory, requested as allowed, in every container: no other pod is aligned."""
    limits = {"cpu": "8", "memory": "64Gi"}
    pool = {"gpu": {"numaAligned": True}, "resources": {"limits": limits, "requests": {"cpu": "1"}}}
    spec = _spec(model={"hub": {"repo": "o/n"}}, pools={"mixed": pool})
    pod = _workers(spec)["mixed"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == limits | {"nvidia.com/gpu": 1}
    assert container["resources"]["requests"] == limits
    assert pod["initContainers"][0]["resources"] == {"limits": limits, "requests": limits}


def test_targets_and_hold_are_the_routers_alone() -> None:
    """A change of them starts no worker anew."""
    changed = _spec(slo={"ttftMs": 100, "short": {"tpotMs": 9}}, scaling={"scaleToZero": {}})
    assert revision_of(OWNER, _spec(), IMAGE) == revision_of(OWNER, changed, IMAGE)
    args = [_container(router_template(OWNER, spec, IMAGE, "b:1"))["args"] for spec in (_spec(), changed)]
    assert args[0] != args[1]


@pytest.mark.parametrize("policy", get_args(RouterConfig.model_fields["placement"].annotation))
def test_every_placement_policy_of_the_router_can_be_chosen(policy: str) -> None:
    """The schema knows the same words."""
    template = router_template(OWNER, _spec(router={"placement": policy}), IMAGE, "b:1")
    assert RouterConfig.from_args(_container(template)["args"][1:]).placement == policy


@pytest.mark.parametrize(("option", "value"), EVERY_ENGINE_OPTION.items())
def test_every_engine_option_is_part_of_the_revision(option: str, value: Any) -> None:
    """What workers run is named by it."""
    assert revision_of(OWNER, _spec(), IMAGE) != revision_of(OWNER, _spec(engine={option: value}), IMAGE)


def test_the_address_keeps_its_name_over_revisions() -> None:
    """Clients never learn of a rollout."""
    service = router_service(OWNER, _spec())
    assert service["metadata"]["name"] == "demo"
    assert "serving.twolane.dev/revision" not in service["spec"]["selector"]


def test_revisions_that_share_a_redis_have_books_of_their_own() -> None:
    """Prefill and decode of different revisions must not meet in it."""
    spec = _spec(broker={"redis": {"secretName": "redis"}})
    names = set()
    for revision in ("r1", "r2"):
        args = _container(broker_template(OWNER, spec, IMAGE, revision))["args"]
        names.add(BrokerConfig.from_args(args[1:]).redis_namespace)
    assert names == {"team/demo/r1", "team/demo/r2"}
