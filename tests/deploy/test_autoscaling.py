"""The examples for other scalers: they ask for metrics that exist, by labels that Prometheus is told to give.

`make keda-check` sees them scale; these tests notice at once when a metric or a label gets another name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from prometheus_client import CollectorRegistry

from tests.operator.objects import World, model_deployment
from twolane.operator.names import ROUTER_HTTP_PORT
from twolane.worker.metrics import WorkerMetrics

EXAMPLES = Path(__file__).parents[2] / "deploy" / "autoscaling"
Json = dict[str, Any]


def _read(name: str) -> list[Json]:
    return list(yaml.safe_load_all((EXAMPLES / name).read_text(encoding="utf-8")))


def _relabelings() -> list[Json]:
    [rules] = _read("prometheus.yaml")
    return list(rules["scrape_configs"][0]["relabel_configs"])


def _given_labels() -> set[str]:
    return {rule["target_label"] for rule in _relabelings() if "target_label" in rule}


def _triggers(name: str) -> list[Json]:
    return [trigger["metadata"] for body in _read(name) for trigger in body["spec"]["triggers"]]


def _worker_metrics() -> set[str]:
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    return {family.name for family in registry.collect()}


def _selector(query: str) -> promql_parser.VectorSelector:
    """The only one of sum(avg_over_time(selector[1m]))."""
    found: Any = promql_parser.parse(query)
    selector = found.expr.args[0].vector_selector
    assert isinstance(selector, promql_parser.VectorSelector)
    return selector


def test_kedas_queries_name_our_metrics_and_labels() -> None:
    """Of each pool, of one model, in one namespace: two models of one name would scale each other."""
    selectors = [_selector(trigger["query"]) for trigger in _triggers("keda.yaml")]
    assert selectors
    assert {selector.name for selector in selectors} <= _worker_metrics()
    for selector in selectors:
        named = {matcher.name for matcher in selector.matchers.matchers}
        assert named == {"namespace", "model_deployment", "pool"} <= _given_labels()


def test_an_autoscalers_metric_has_a_rule_that_serves_it() -> None:
    """prometheus-adapter finds a rule by the name of the series, and fills its query in."""
    rules = {
        rule["seriesQuery"]: rule["metricsQuery"]
        for rule in _read("prometheus-adapter.yaml")[0]["rules"]["external"]
    }
    for body in _read("hpa.yaml"):
        for metric in body["spec"]["metrics"]:
            wanted = metric["external"]["metric"]
            assert wanted["name"] in _worker_metrics()
            assert set(wanted["selector"]["matchLabels"]) == {"model_deployment", "pool"} <= _given_labels()
            query = rules[wanted["name"]].replace("<<.Series>>", wanted["name"])
            assert _selector(query.replace("<<.LabelMatchers>>", 'a="b"')).name == wanted["name"]


def test_keda_reads_routers_at_their_port() -> None:
    """What it looks for there, the router's own tests look for too."""
    triggers = _triggers("keda-direct.yaml")
    assert triggers
    assert all(trigger["url"].endswith(f":{ROUTER_HTTP_PORT}/metrics") for trigger in triggers)


def test_every_scaler_points_at_a_pool_of_the_model() -> None:
    """A Deployment behind a pool goes with its revision."""
    world = World(model_deployment(model={"imagePath": "/m"}))
    world.settle()
    pools = {name for kind, name in world.children if kind == "WorkerPool"}
    for name in ("keda.yaml", "keda-direct.yaml", "hpa.yaml"):
        targets = [body["spec"]["scaleTargetRef"] for body in _read(name)]
        assert {target["kind"] for target in targets} == {"WorkerPool"}
        assert {target["name"] for target in targets} <= pools


def test_prometheus_finds_our_pods_by_labels_that_they_have() -> None:
    """A source that no pod has gives an empty label, or keeps no pod at all."""
    world = World(model_deployment(model={"imagePath": "/m"}))
    world.settle()
    templates = [
        child["spec"]["template"] for child in world.children.values() if child["kind"] == "Deployment"
    ]
    prefix = "__meta_kubernetes_pod_label_"
    for template in templates:
        labels = {
            prefix + re.sub(r"[^a-zA-Z0-9_]", "_", name): value
            for name, value in template["metadata"]["labels"].items()
        }
        for rule in _relabelings():
            [source] = rule["source_labels"]
            if rule.get("action") == "keep" and source.startswith(prefix):
                assert re.fullmatch(rule["regex"], labels[source])
    wanted = {
        rule["source_labels"][0] for rule in _relabelings() if rule["source_labels"][0].startswith(prefix)
    }
    known = {
        prefix + re.sub(r"[^a-zA-Z0-9_]", "_", name)
        for template in templates
        for name in template["metadata"]["labels"]
    }
    assert wanted <= known
