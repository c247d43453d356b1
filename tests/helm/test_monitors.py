"""What Prometheus finds by the chart: every process, under the labels that dashboards and alerts go by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.helm.release import CHART
from tests.operator.cluster.operator_process import chart
from tests.operator.objects import World, model_deployment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
Json = dict[str, Any]
ALL = [
    *("--set", "monitoring.podMonitor.enabled=true", "--set", "monitoring.alerts.enabled=true"),
    *("--set", "monitoring.dashboards.enabled=true", "--set", "monitoring.podMonitor.labels.release=prom"),
]


def _templates(bodies: list[Json]) -> Iterator[Json]:
    world = World(model_deployment(model={"imagePath": "/m"}))
    world.settle()
    everything = [*bodies, *world.children.values()]
    yield from (body["spec"]["template"] for body in everything if body["kind"] == "Deployment")


def _found_by(monitor: Json, template: Json) -> bool:
    wanted = monitor["spec"]["selector"]["matchLabels"]
    return bool(wanted.items() <= template["metadata"]["labels"].items())


def test_every_process_is_read_once_at_a_port_it_has() -> None:
    """Operator, routers, broker and workers; a name that no container has would be read nowhere."""
    bodies = chart("serving", *ALL)
    monitors = [body for body in bodies if body["kind"] == "PodMonitor"]
    assert all(monitor["metadata"]["labels"]["release"] == "prom" for monitor in monitors)
    for template in _templates(bodies):
        [monitor] = [item for item in monitors if _found_by(item, template)]
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        ports = {port["name"] for item in template["spec"]["containers"] for port in item["ports"]}
        assert endpoint["port"] in ports


def test_the_labels_of_dashboards_come_from_labels_that_pods_have() -> None:
    """Prometheus writes a pod's label with underscores; a source that is missing makes an empty label."""
    bodies = chart("serving", *ALL)
    [monitor] = [b for b in bodies if b["kind"] == "PodMonitor" and b["metadata"]["name"].endswith("-models")]
    rules = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
    sources = {rule["targetLabel"]: rule["sourceLabels"][0] for rule in rules}
    known = {
        "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
        for template in _templates([])
        for name in template["metadata"]["labels"]
    }
    assert set(sources) == {"model_deployment", "component", "pool", "revision"}
    assert set(sources.values()) <= known


def test_rules_and_dashboards_arrive_as_they_were_written() -> None:
    """helm's own templates must not touch Prometheus' and Grafana's."""
    bodies = chart("serving", *ALL)
    [rule] = [body for body in bodies if body["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((CHART / "alerts" / "rules.yaml").read_text(encoding="utf-8"))
    maps = [b for b in bodies if b["kind"] == "ConfigMap" and "dashboard" in b["metadata"]["name"]]
    texts = {name: text for body in maps for name, text in body["data"].items()}
    for path in (CHART / "dashboards").glob("*.json"):
        assert texts[f"twolane-{path.name}"].strip() == path.read_text(encoding="utf-8").strip()
    assert all(body["metadata"]["labels"]["grafana_dashboard"] == "1" for body in maps)
