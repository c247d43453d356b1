"""What the commands ask the API server for, they ask for once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

from twolane.operator.plugin.access import Access
from twolane.operator.plugin.doctor import Cluster, _deployments, _nodes
from twolane.operator.plugin.request_log import Logs, collect
from twolane.operator.resources.shape import Json


class _Asked:
    """Answers as an API server would, and counts what it is asked for.

    Attributes:
        namespace: as Access has it.
        asked: how often each path was read.
    """

    def __init__(
        self, logs: dict[str, list[Json]] | None = None, found: dict[str, list[Json]] | None = None
    ) -> None:
        self.namespace = "team"
        self.asked = Counter[str]()
        self._logs = logs or {}
        self._found = found or {}

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """The log of a pod."""
        pod = path.split("/")[-2]
        self.asked[pod] += 1
        yield from map(json.dumps, self._logs[pod])

    def list(self, path: str, selector: str = "") -> list[Json]:
        """Objects by the last word of their path."""
        plural = path.rsplit("/", 1)[-1]
        self.asked[plural] += 1
        return self._found.get(plural, [])


def _pod(name: str) -> Json:
    status = {"name": "twolane", "state": {"running": {}}, "restartCount": 0}
    return {"metadata": {"name": name}, "status": {"containerStatuses": [status]}}


def test_a_request_is_found_by_the_clients_id_though_each_log_is_read_once() -> None:
    """The router names both ids in its last line; what it said before, and workers say, has its own alone."""
    chosen: Json = {"ts": "1", "msg": "placed", "request_id": "r-1"}
    ended = {"ts": "3", "msg": "ended", "request_id": "r-1", "client_request_id": "mine"}
    prefilled = {"ts": "2", "msg": "prefilled", "request_id": "r-1"}
    other = {"ts": "2", "msg": "ended", "request_id": "r-2", "client_request_id": "theirs"}
    access = _Asked({"router": [chosen, other, ended], "worker": [prefilled, other]})
    router = _pod("router")
    with Logs(cast(Access, access), 60) as logs:
        ids = {entry.fields["request_id"] for entry in collect(logs, [router], {"mine"}, again=True)}
        found = collect(logs, [router, _pod("worker")], {"mine", *ids})
    assert [entry.fields["msg"] for entry in found] == ["placed", "prefilled", "ended"]
    assert access.asked == {"router": 1, "worker": 1}


def test_the_doctor_reads_nodes_once() -> None:
    """Drivers and the devices of every ModelDeployment are judged by the same list."""
    spec: dict[str, Any] = {"model": {"imagePath": "/model"}}
    models = [{"metadata": {"name": name, "namespace": "team"}, "spec": spec} for name in "ab"]
    access = _Asked(found={"modeldeployments": models})
    cluster = Cluster(cast(Access, access))
    assert [*_nodes(cluster), *_deployments(cluster)]
    assert access.asked == {"nodes": 1, "modeldeployments": 1}
