"""What the plugin says of objects as the API server sends them."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tests.operator.objects import NOW, World, model_deployment
from twolane.operator.names import GROUP
from twolane.operator.plugin import findings
from twolane.operator.plugin.explain import explanation
from twolane.operator.plugin.request_log import about
from twolane.operator.plugin.status import age, tree
from twolane.operator.resources.model_deployment import read_spec
from twolane.operator.resources.shape import Json

CRDS = Path(__file__).parents[3] / "helm" / "twolane" / "crds"


def _world(ready: bool = True) -> World:
    world = World(model_deployment(pools={"prefill": {"shared": {"replicas": 2}}, "decode": {}}))
    world.settle(ready)
    for pod in world.pods:
        pod["metadata"]["creationTimestamp"] = (NOW - timedelta(minutes=5)).isoformat()
        pod["spec"] = {"nodeName": "node-a"}
    return world


def _text(world: World) -> str:
    out = StringIO()
    Console(file=out, width=300).print(tree(world.md, world.pods, NOW), soft_wrap=True)
    return out.getvalue()


def test_the_tree_holds_every_pod_under_its_pool() -> None:
    world = _world()
    lines = _text(world).splitlines()
    assert "team/demo" in lines[0]
    assert "Serving" in lines[0]
    assert any("prefill (prefill): 2 of 2 workers ready" in line for line in lines)
    for pod in world.pods:
        [line] = [line for line in lines if pod["metadata"]["name"] + " " in line]
        assert "ready" in line
        assert "5m" in line


def test_the_tree_says_why_a_pod_does_not_serve() -> None:
    world = _world(ready=False)
    text = _text(world)
    assert "Loading: the process has started and is loading  on node-a" in text
    assert "PrefillReady: Loading" in text
    assert "no status yet" in _text(World(model_deployment()))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (119, "119s"), (121, "2m"), (3 * 3600, "3h"), (200_000, "2d"), (-3, "0s")],
)
def test_ages_are_short(seconds: int, words: str) -> None:
    assert age((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == words


def test_an_explanation_names_who_asked_and_what_holds() -> None:
    world = _world()
    pools = [child for (kind, _), child in world.children.items() if kind == "WorkerPool"]
    prefill = next(pool for pool in pools if pool["spec"]["role"] == "prefill")
    prefill["spec"] |= {"replicas": 9, "maxReplicas": 4}
    prefill["status"] = {"desiredReplicas": 4}
    entry = {"manager": "keda", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    prefill["metadata"]["managedFields"] = [entry]
    reference = {"kind": "WorkerPool", "name": prefill["metadata"]["name"]}
    scaler = {"metadata": {"name": "h"}, "spec": {"scaleTargetRef": reference}}
    text = "\n".join(explanation(world.md, pools, world.pods, [scaler]))
    assert "9 asked for by keda, held at scaling.maxReplicas, 4; bounds are 1 to 4" in text
    assert "hpa/h scales it; it has not looked yet" in text
    assert "first count of a new pool" in text
    assert "ScalingActive is True" in text


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"request_id": "gen-1"}, True),
        ({"request_id": "gen-1-0"}, True),
        ({"request_id": "gen-10"}, False),
        ({"client_request_id": "gen-1"}, True),
        ({"requests": ["gen-2", "gen-1"]}, True),
        ({"msg": "about gen-1 among others"}, False),
    ],
)
def test_a_line_is_about_a_request_when_a_field_is_its_id(fields: Json, found: bool) -> None:
    assert (about(json.dumps(fields), {"gen-1"}) is not None) is found


def test_a_line_that_is_no_object_is_kept_as_it_is() -> None:
    assert about("Traceback of gen-1", {"gen-1"}) == {"msg": "Traceback of gen-1"}


def _definition(plural: str) -> Json:
    for path in CRDS.glob("*.yaml"):
        for body in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if body and body["metadata"]["name"] == f"{plural}.{GROUP}":
                established = {"conditions": [{"type": "Established", "status": "True"}]}
                return {**body, "status": established}
    raise AssertionError(plural)


def test_the_charts_definitions_are_in_order_and_an_older_one_is_found() -> None:
    for plural in findings.SPECS:
        found = findings.definition(plural, _definition(plural))
        assert found.level == "ok", found
    old = copy.deepcopy(_definition("modeldeployments"))
    schema = old["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del schema["slo"]
    del schema["router"]["properties"]["placement"]
    found = findings.definition("modeldeployments", old)
    assert found.level == "failure"
    assert "spec.router.placement, spec.slo unknown" in found.text
    assert findings.definition("workerpools", None).level == "failure"


@pytest.mark.parametrize(
    ("version", "level"),
    [(("1", "34"), "ok"), (("1", "30+"), "ok"), (("1", "29"), "failure"), (("2", "0"), "ok")],
)
def test_an_old_api_server_is_refused(version: tuple[str, str], level: str) -> None:
    answer = {"major": version[0], "minor": version[1], "gitVersion": "v"}
    assert findings.kubernetes_version(answer).level == level


def test_the_oldest_kubernetes_is_the_charts() -> None:
    chart = yaml.safe_load((CRDS.parent / "Chart.yaml").read_text(encoding="utf-8"))
    oldest = ".".join(map(str, findings.OLDEST_KUBERNETES))
    assert chart["kubeVersion"].startswith(f">={oldest}.0")


def _lease(name: str, seconds_ago: float, **spec: object) -> Json:
    renewed = (NOW - timedelta(seconds=seconds_ago)).isoformat()
    return {"metadata": {"name": name, "namespace": "s"}, "spec": {"renewTime": renewed, **spec}}


def test_clocks_that_differ_are_named() -> None:
    assert [f.level for f in findings.clocks(0.3, [_lease("a", 8)], NOW)] == ["ok"]
    texts = [f.text for f in findings.clocks(-9.0, [_lease("a", -30), _lease("b", 300)], NOW)]
    assert ["-9 s off" in texts[0], "30 s ahead" in texts[1], "300 s" in texts[2]] == [True] * 3


def test_an_operator_without_a_leader_fails() -> None:
    deployment = {
        "metadata": {"name": "op", "namespace": "s"},
        "spec": {"replicas": 2},
        "status": {"readyReplicas": 1},
    }
    lease = _lease("op", 3, holderIdentity="op-a", leaseDurationSeconds=15)
    assert [f.level for f in findings.operator([deployment], [lease], NOW)] == ["warning", "ok"]
    old = _lease("op", 60, holderIdentity="op-a", leaseDurationSeconds=15)
    assert [f.level for f in findings.operator([deployment], [old], NOW)] == ["warning", "failure"]
    assert findings.operator([deployment], [], NOW)[1].level == "failure"
    assert findings.operator([], [], NOW)[0].level == "failure"


def _node(name: str, gpus: int, **labels: str) -> Json:
    names = {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()}
    return {
        "metadata": {"name": name, "labels": names},
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}},
    }


def test_nodes_without_device_plugin_or_with_an_old_driver_fail() -> None:
    nodes = [
        _node(
            "good", 8, **{"nvidia.com__gpu.present": "true", "nvidia.com__cuda.driver-version.major": "580"}
        ),
        _node("mute", 0, **{"nvidia.com__gpu.present": "true"}),
        _node("old", 8, **{"nvidia.com__cuda.driver-version.major": "535"}),
    ]
    assert [f.level for f in findings.drivers(nodes)] == ["ok", "failure", "failure"]
    assert findings.drivers([_node("cpu", 0)])[0].level == "ok"


def test_a_pool_that_no_node_can_hold_is_named() -> None:
    gpu = {"count": 4, "type": "H100"}
    spec = read_spec(model_deployment(pools={"prefill": {"shared": {"gpu": gpu}}, "decode": {}}))
    kind = {"nvidia.com__gpu.product": "H100"}
    assert findings.devices(spec, "demo", [_node("a", 8, **kind)])[0].level == "ok"
    [small] = findings.devices(spec, "demo", [_node("a", 2, **kind), _node("b", 8)])
    assert "offers 2" in small.advice
    [other] = findings.devices(spec, "demo", [_node("a", 8, **{"nvidia.com__gpu.product": "A100"})])
    assert "there are: A100" in other.advice


def test_dns_without_servers_fails() -> None:
    up = {"endpoints": [{"conditions": {"ready": True}}, {"conditions": {}}]}
    assert findings.names([up]).text.startswith("cluster DNS: 2")
    assert findings.names([{"endpoints": [{"conditions": {"ready": False}}]}]).level == "failure"
    assert findings.names([]).level == "failure"


def test_times_of_the_api_server_are_read() -> None:
    assert age("2026-01-02T03:02:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2m"
