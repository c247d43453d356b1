"""What the operator counts about itself; Prometheus reads it beside the probes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from twolane.telemetry import metrics as telemetry_metrics


class OperatorMetrics:
    """Counters of one operator process."""

    def __init__(self, registry: CollectorRegistry = telemetry_metrics.registry) -> None:
        self.reconciled = Counter(
            "twolane_operator_reconciliations_total",
            "Reconciliations of a ModelDeployment, by outcome: done, failed.",
            ["outcome"],
            registry=registry,
        )
        self.reconcile_s = Histogram(
            "twolane_operator_reconcile_seconds",
            "Time of one reconciliation.",
            buckets=telemetry_metrics.REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.actions = Counter(
            "twolane_operator_actions_total",
            "Actions carried out, by kind.",
            ["action"],
            registry=registry,
        )
        self.events = Counter(
            "twolane_operator_events_total",
            "Kubernetes Events about ModelDeployments, by type and reason: RolledBack, DriftRepaired, ...",
            ["type", "reason"],
            registry=registry,
        )
        # There from the start: the first increase of a series that is new would be seen by nobody.
        self.events.labels("Warning", "RolledBack")
        self.requests = Counter(
            "twolane_operator_api_requests_total",
            "Requests to the API server, by method and status; 0 without an answer.",
            ["method", "status"],
            registry=registry,
        )
        self.waiting = Gauge(
            "twolane_operator_queue_objects",
            "ModelDeployments that wait to be reconciled.",
            registry=registry,
        )
        self.leading = Gauge(
            "twolane_operator_leader",
            "1 while this process holds the lease.",
            registry=registry,
        )

    def asked(self, method: str, status: int) -> None:
        """Counts a request to the API server."""
        self.requests.labels(method, str(status)).inc()
