"""What the broker counts; scraped from its HTTP port."""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge

from twolane.broker.cluster import Cluster
from twolane.rpc.words import role_from_proto
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import Transport
from twolane.v1.types_pb2 import Role

_STATES = ("serving", "draining")


class BrokerMetrics:
    """The broker's metrics in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"twolane_broker_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"twolane_broker_{name}", text, labels, registry=registry)

        self.leases_granted = counter("leases_granted_total", "Leases granted.", "transport")
        self.pages_leased = counter("pages_leased_total", "Pages covered by granted leases.")
        self.leases_refused = counter("leases_refused_total", "Leases asked for in vain.", "code")
        self.leases_released = counter("leases_released_total", "Leases given back by their owner.")
        self.leases_expired = counter("leases_expired_total", "Leases nobody gave back or renewed in time.")
        self.leases_out = gauge("leases_out", "Leases that are out.")
        self.registrations = counter("registrations_total", "Workers that asked to join.", "outcome")
        self.workers_lost = counter("workers_lost_total", "Workers that went silent.")
        self.moves = counter("role_moves_total", "Workers moved to another pool or lane.", "source", "target")
        self.workers = gauge("workers", "Workers that live.", "role", "state")
        self.prefix_entries = gauge("prefix_entries", "Names in the prefix index, counted per worker.")
        self.watchers = gauge("watchers", "Routers that follow this process.")
        self.snapshots = counter("watch_snapshots_total", "Snapshots sent to watchers.", "reason")
        self.resyncs = counter("resyncs_total", "Times the copy of the cluster was loaded anew.", "reason")

    def granted(self, transport: Transport.ValueType, n_pages: int) -> None:
        """Counts a lease."""
        self.leases_granted.labels(Transport.Name(transport).removeprefix("TRANSPORT_").lower()).inc()
        self.pages_leased.inc(n_pages)

    def show(self, cluster: Cluster) -> None:
        """Sets the gauges that describe the cluster."""
        tally = Tally(_labels(worker) for worker in cluster.workers.values())
        for role in ("prefill", "decode", "mixed", "unspecified"):
            for state in _STATES:
                self.workers.labels(role, state).set(tally[role, state])
        self.prefix_entries.set(sum(len(names) for names in cluster.prefixes.values()))


def _labels(worker: WorkerInfo) -> tuple[str, str]:
    role = role_from_proto(worker.role) if worker.role in Role.values() else None
    return ("unspecified" if role is None else role.value), _STATES[worker.draining]
