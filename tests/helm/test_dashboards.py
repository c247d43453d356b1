"""Dashboards and alerts ask for metrics that the processes really export, in PromQL that parses."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from deploy.dashboards import generate
from deploy.dashboards.boards import BOARDS
from tests.e2e.conftest import Product
from twolane.broker.metrics import BrokerMetrics
from twolane.operator.metrics import OperatorMetrics
from twolane.router.demand import Demand
from twolane.rpc.interceptors import latency_histogram
from twolane.transfer.metrics import TransferMetrics
from twolane.worker.metrics import WorkerMetrics

CHART = Path(__file__).parents[2] / "helm" / "twolane"
RULES = CHART / "alerts" / "rules.yaml"
# The target's, by the chart's PodMonitors; and the bound of a histogram's bucket.
TARGET_LABELS = {"namespace", "pod", "model_deployment", "component", "pool", "revision", "le"}
_SUFFIX = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _boards() -> list[dict[str, Any]]:
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((CHART / "dashboards").glob("*.json"))
    ]


def _panel_queries() -> Iterator[str]:
    for board in _boards():
        for panel in board["panels"]:
            yield from (target["expr"] for target in panel.get("targets", []))
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield from re.findall(r"label_values\((.+), \w+\)", variable["query"]["query"])


def _queries() -> list[str]:
    # What Grafana fills in before it asks.
    filled = [query.replace("$__rate_interval", "5m") for query in _panel_queries()]
    return [*(re.sub(r"\$\w+", "x", query) for query in filled), *(rule["expr"] for rule in _rules())]


def _selectors(node: Any) -> Iterator[Any]:
    """Every series selector of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        child = getattr(node, name, None)
        for inner in child if isinstance(child, list) else [child]:
            if inner is not None:
                yield from _selectors(inner)


def _metrics_asked_for() -> set[str]:
    return {found.name for query in _queries() for found in _selectors(promql_parser.parse(query))}


def _exported(text: str) -> set[str]:
    pairs = re.findall(r"^# TYPE (\S+) (\w+)$", text, flags=re.MULTILINE)
    return {name + suffix for name, kind in pairs for suffix in _SUFFIX.get(kind, ("",))}


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_the_dashboards_are_those_that_are_generated() -> None:
    """JSON changed by hand would be lost."""
    stale = [
        b.name for b in BOARDS if (CHART / "dashboards" / f"{b.name}.json").read_text() != generate.written(b)
    ]
    assert stale == []


def test_panels_lie_beside_each_other_and_ask_the_chosen_source() -> None:
    """Grafana would draw one over the other, or ask a source that another cluster lacks."""
    for board in _boards():
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels) > 5
        places = [
            (x, y)
            for panel in panels
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(places) == len(set(places))
        assert max(x for x, _ in places) < 24
        names = {variable["name"] for variable in board["templating"]["list"]}
        text = json.dumps(panels).replace("$__rate_interval", "")
        assert set(re.findall(r"\$\{?(\w+)", text)) == names


def test_every_query_parses_and_some_fail_to() -> None:
    """The parser is Prometheus' own grammar; it must be able to refuse."""
    assert len(_queries()) > 50
    for query in _queries():
        promql_parser.parse(query)
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (lane (rate(x[5m]))")


@pytest.mark.slow
def test_every_metric_asked_for_is_exported_by_a_running_process(tmp_path: Path) -> None:
    """Router, broker and worker as users start them; the operator's own metrics from its registry."""
    product = Product(tmp_path, "--tls")
    try:
        pages = [_read(product.url.removesuffix("/v1").rstrip("/") + "/metrics")]
        pages += [
            _read(f"http://127.0.0.1:{json.loads(path.read_text())['http']}/metrics")
            for path in tmp_path.glob("*.ports.json")
            if not path.name.startswith("router")
        ]
    finally:
        product.stop()
    own = CollectorRegistry()
    OperatorMetrics(own)
    pages.append(generate_latest(own).decode())
    exported = set().union(*(_exported(page) for page in pages))
    assert len(exported) > 100
    assert _metrics_asked_for() - exported == set()


def _labels_by_metric() -> dict[str, set[str]]:
    registry = CollectorRegistry()
    for make in (BrokerMetrics, OperatorMetrics, WorkerMetrics, TransferMetrics, Demand, latency_histogram):
        make(registry)
    return {
        name: set(getattr(collector, "_labelnames", ()))
        for collector, names in registry._collector_to_names.items()
        for name in names
    }


def test_every_label_asked_for_is_one_of_the_metric() -> None:
    """A query by a label that does not exist shows nothing, and an alert by it never fires."""
    labels = _labels_by_metric()
    checked = 0
    for query in _queries():
        for selector in _selectors(promql_parser.parse(query)):
            if (known := labels.get(selector.name)) is not None:
                asked = {matcher.name for matcher in selector.matchers.matchers}
                grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", query))))
                assert asked | grouped <= known | TARGET_LABELS, query
                checked += 1
    assert checked > 40


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    """And names no label that its query drops."""
    for rule in _rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        words = rule["annotations"]["summary"] + rule["annotations"]["description"]
        assert rule["annotations"]["description"]
        for label in re.findall(r"\$labels\.(\w+)", words):
            assert re.search(rf"by \([^)]*\b{label}\b", rule["expr"]), (rule["alert"], label)


def test_no_two_alerts_have_one_name() -> None:
    """The later one would hide the earlier."""
    names = [rule["alert"] for rule in _rules()]
    assert len(names) == len(set(names))
