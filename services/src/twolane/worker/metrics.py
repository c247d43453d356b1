"""What a worker measures, under the names that dashboards and pickers expect."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from twolane.telemetry import metrics
from twolane.v1 import worker_pb2


class WorkerMetrics:
    """All metrics of one worker."""

    def __init__(self, registry: CollectorRegistry = metrics.registry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"twolane_worker_{name}", text, labels, registry=registry)

        self.waiting = gauge("requests_waiting", "Requests that wait for prefill.", "lane")
        self.waiting_for_pages = gauge(
            "requests_waiting_for_pages",
            "Answers whose prompts are being computed elsewhere and that have no pages here yet.",
        )
        self.running = gauge("requests_running", "Requests that decode.")
        self.kv_usage = gauge("kv_cache_usage_ratio", "Share of the pages that requests hold.")
        self.pages = gauge("pages", "Pages by state.", "state")
        self.waiting_seconds = gauge(
            "waiting_seconds",
            "Predicted time of the prefill that waits, by the worker's own fitted cost.",
            "lane",
        )
        self.held_tokens = gauge("held_tokens", "Tokens that the running answers hold.")
        self.capacity_tokens = gauge("capacity_tokens", "Tokens that all pages hold.")
        self.step_cost = gauge(
            "step_cost_seconds",
            "Fitted costs of a step: its constant part, and that of each token, row or pair of tokens.",
            "part",
        )
        self.step_seconds = Histogram(
            "twolane_worker_step_seconds",
            "Time of one engine step.",
            ["kind"],
            buckets=metrics.FAST_BUCKETS_S,
            registry=registry,
        )
        self.tokens = Counter(
            "twolane_worker_tokens_total", "Tokens computed, by kind of row.", ["kind"], registry=registry
        )
        self.queue_seconds = Histogram(
            "twolane_worker_queue_seconds",
            "From a request's arrival to its first token here.",
            ["lane"],
            buckets=metrics.REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.preemptions = Counter(
            "twolane_worker_preemptions_total", "Answers computed again for want of pages.", registry=registry
        )
        self.ended = Counter(
            "twolane_worker_requests_total", "Requests that ended here.", ["outcome"], registry=registry
        )

    def observe_load(self, load: worker_pb2.Load, cached_pages: int, page_tokens: int) -> None:
        """Sets the gauges from a load report."""
        self.waiting_seconds.labels("short").set(load.waiting_short_s)
        self.waiting_seconds.labels("long").set(load.waiting_long_s)
        self.held_tokens.set(load.held_tokens)
        self.capacity_tokens.set(load.total_pages * page_tokens)
        for field, value in load.costs.ListFields():
            self.step_cost.labels(field.name.removesuffix("_s")).set(value)
        self.waiting.labels("short").set(load.waiting_short)
        self.waiting.labels("long").set(load.waiting_long)
        self.running.set(load.running)
        held = load.total_pages - load.free_pages
        self.kv_usage.set(held / load.total_pages if load.total_pages else 0.0)
        self.pages.labels("held").set(held)
        self.pages.labels("cached").set(cached_pages)
        self.pages.labels("empty").set(load.free_pages - cached_pages)
