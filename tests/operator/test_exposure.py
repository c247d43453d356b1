"""Ways to routers from outside, their autoscaler, and who may reach which port."""

from __future__ import annotations

from typing import Any

from tests.operator.objects import IMAGE, World, model_deployment
from twolane.operator.build.exposure import exposure
from twolane.operator.build.guards import broker_policy, router_policy, worker_policy
from twolane.operator.build.workers import pools_of, worker_template
from twolane.operator.names import Owner
from twolane.operator.resources.model_deployment import ModelDeploymentSpec, read_spec
from twolane.operator.resources.shape import Json
from twolane.worker.config import WorkerConfig

OWNER = Owner("demo", "team", "u-1")
INGRESS = {"hosts": ["a.example"], "className": "nginx", "tlsSecretName": "a-tls", "annotations": {"x": "y"}}
ROUTE = {"parentRefs": [{"name": "front", "namespace": "edge", "sectionName": "https"}], "hostnames": ["a"]}


def _spec(**spec: Any) -> ModelDeploymentSpec:
    return read_spec(model_deployment(**spec))


def _by_kind(**router: Any) -> dict[str, Json]:
    return {body["kind"]: body for body in exposure(OWNER, _spec(router=router))}


def test_nothing_is_exposed_unless_asked_for() -> None:
    """A Service inside the cluster is all there is."""
    assert _by_kind() == {}


def test_an_ingress_leads_every_host_to_the_service() -> None:
    """With its class, certificate and annotations."""
    body = _by_kind(ingress=INGRESS)["Ingress"]
    [rule] = body["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert (rule["host"], path["path"], path["backend"]["service"]["name"]) == ("a.example", "/", "demo")
    assert body["spec"]["tls"] == [{"hosts": ["a.example"], "secretName": "a-tls"}]
    assert (body["spec"]["ingressClassName"], body["metadata"]["annotations"]) == ("nginx", {"x": "y"})


def test_a_route_waits_longer_than_the_router_does() -> None:
    """A gateway's own shorter timeout would cut long answers off."""
    body = _by_kind(httpRoute=ROUTE, requestTimeoutSeconds=900)["HTTPRoute"]
    [parent] = body["spec"]["parentRefs"]
    assert (parent["name"], parent["namespace"], parent["sectionName"]) == ("front", "edge", "https")
    [rule] = body["spec"]["rules"]
    assert rule["timeouts"] == {"request": "905s"}
    assert (rule["backendRefs"][0]["name"], rule["backendRefs"][0]["port"]) == ("demo", 8000)
    assert body["spec"]["hostnames"] == ["a"]


def test_the_autoscaler_of_routers_scales_the_model_deployment() -> None:
    """Its target outlives every revision."""
    body = _by_kind(autoscaling={"maxReplicas": 9})["HorizontalPodAutoscaler"]
    assert body["spec"]["scaleTargetRef"]["kind"] == "ModelDeployment"
    assert (body["spec"]["minReplicas"], body["spec"]["maxReplicas"]) == (2, 9)


def test_what_is_no_longer_asked_for_is_deleted() -> None:
    """The status says which kinds there are."""
    world = World(model_deployment(router={"ingress": INGRESS, "autoscaling": {"maxReplicas": 3}}))
    world.settle()
    assert world.md["status"]["routers"]["exposedBy"] == ["HorizontalPodAutoscaler", "Ingress"]
    world.md["spec"]["router"] = {}
    world.settle()
    assert not {kind for kind, _ in world.children} & {"Ingress", "HorizontalPodAutoscaler"}
    assert world.md["status"]["routers"]["exposedBy"] == []


def test_the_status_counts_routers_for_the_scale_subresource() -> None:
    """Selector and count are what an autoscaler reads."""
    world = World(model_deployment(router={"replicas": 3}))
    world.settle()
    routers = world.md["status"]["routers"]
    assert (routers["replicas"], routers["ready"]) == (3, 3)
    wanted = dict(part.split("=") for part in routers["selector"].split(","))
    chosen = [pod for pod in world.pods if wanted.items() <= pod["metadata"]["labels"].items()]
    assert len(chosen) == 3


def test_pages_have_a_port_that_peers_may_reach() -> None:
    """Workers get the flag; only workers of the model may use it, only routers and workers the RPC port."""
    spec = _spec()
    for pool in pools_of(spec):
        [container] = worker_template(OWNER, spec, pool, IMAGE, "b:9200")["spec"]["containers"]
        config = WorkerConfig.from_args(container["args"][1:])
        assert config.data_port in [port["containerPort"] for port in container["ports"]]
    routers, peers, anybody = worker_policy(OWNER)["spec"]["ingress"]
    assert routers["ports"] == [{"protocol": "TCP", "port": 9100}]
    assert "ports" not in peers
    assert peers["from"][0]["podSelector"]["matchExpressions"][0]["values"] == ["worker"]
    assert anybody == {"ports": [{"protocol": "TCP", "port": 9400}]}
    assert broker_policy(OWNER)["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 9200}]


def test_named_clients_are_the_only_ones_beside_the_operator() -> None:
    """Nobody named: everybody."""
    [everybody] = router_policy(OWNER, _spec())["spec"]["ingress"]
    assert "from" not in everybody
    clients = [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]
    named, operator = router_policy(OWNER, _spec(networkPolicy={"clients": clients}))["spec"]["ingress"]
    assert named["from"] == clients
    assert operator["ports"] == [{"protocol": "TCP", "port": 8000}]
