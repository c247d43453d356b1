"""What the operator makes of an API server that throttles, refuses or is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from kubernetes.aio import client
from prometheus_client import CollectorRegistry

from tests.operator.model_sources import Answer, Source, serving
from twolane.operator.cluster import Cluster, ClusterError
from twolane.operator.metrics import OperatorMetrics


class _ApiServer(Source):
    """Answers each path with what the test says."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        super().__init__({})
        self.answers = answers

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """The answer to a path, by page of a list."""
        return self.answers[path + query.get("continue", "")]


def _status(code: int, message: str, **headers: str) -> Answer:
    return code, "application/json", json.dumps({"kind": "Status", "message": message}).encode(), headers


def _page(names: list[str], more: str = "") -> Answer:
    items = [{"metadata": {"name": name}} for name in names]
    body = {"apiVersion": "v1", "metadata": {"continue": more, "resourceVersion": "9"}, "items": items}
    return 200, "application/json", json.dumps(body).encode(), {}


def _cluster(url: str) -> Cluster:
    return Cluster(client.ApiClient(client.Configuration(host=url)), OperatorMetrics(CollectorRegistry()))


async def test_a_throttled_request_says_when_to_come_back() -> None:
    """The reconciler waits at least as long as the API server asks for."""
    answer = _status(429, "too many requests", **{"Retry-After": "7"})
    with serving(_ApiServer({"/api/v1/namespaces/ns/pods": answer})) as server:
        cluster = _cluster(server.url)
        with pytest.raises(ClusterError, match="too many requests") as caught:
            await cluster.list("Pod", "ns")
        await cluster.close()
    assert (caught.value.status, caught.value.retry_after_s, caught.value.permanent) == (429, 7.0, False)


async def test_a_refusal_is_permanent_and_an_absence_is_none() -> None:
    """Only what somebody must change is called refused."""
    place = "/api/v1/namespaces/ns/services"
    answers = {f"{place}/a": _status(403, "forbidden: quota"), f"{place}/b": _status(404, "none")}
    with serving(_ApiServer(answers)) as server:
        cluster = _cluster(server.url)
        with pytest.raises(ClusterError, match="quota") as caught:
            await cluster.get("Service", "ns", "a")
        assert await cluster.get("Service", "ns", "b") is None
        await cluster.close()
    assert caught.value.permanent


async def test_an_api_server_that_is_not_there_is_no_refusal() -> None:
    """It may come back at any time."""
    with serving(_ApiServer({})) as server:
        url = server.url
    cluster = _cluster(url)
    with pytest.raises(ClusterError, match="no answer from the API server") as caught:
        await cluster.get("Service", "ns", "a")
    await cluster.close()
    assert (caught.value.status, caught.value.permanent) == (0, False)


async def test_a_list_of_many_pages_is_read_to_its_end() -> None:
    """And every entry says what it is, as a single object would."""
    path = "/api/v1/namespaces/ns/pods"
    with serving(_ApiServer({path: _page(["a"], "next"), f"{path}next": _page(["b"])})) as server:
        cluster = _cluster(server.url)
        found = await cluster.list("Pod", "ns")
        await cluster.close()
    assert [item["metadata"]["name"] for item in found.items] == ["a", "b"]
    assert {(item["kind"], item["apiVersion"]) for item in found.items} == {("Pod", "v1")}
    assert found.version == "9"


async def test_an_apply_is_signed_by_whoever_it_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that one manager applies and another leaves out would be taken away again."""
    signed: list[str] = []

    async def request(_: Cluster, method: str, path: str, query: dict[str, str], *rest: object) -> object:
        signed.append(query["fieldManager"])
        return {}

    monkeypatch.setattr(Cluster, "_request", request)
    cluster = _cluster("http://nowhere.invalid")
    body = {"kind": "WorkerPool", "metadata": {"name": "demo-mixed", "namespace": "ns"}}
    await cluster.apply(body)
    await cluster.apply(body, "twolane-planner")
    await cluster.close()
    assert signed == ["twolane-operator", "twolane-planner"]
