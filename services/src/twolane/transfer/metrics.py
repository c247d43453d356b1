"""What transfers measure: bytes and the seconds they took, read off in one place, by transport.

The worker makes one and hands it to sender and landing.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from twolane.telemetry import metrics
from twolane.v1 import transfer_pb2 as pb


class TransferMetrics:
    """All metrics of one worker's transfers."""

    def __init__(self, registry: CollectorRegistry = metrics.registry) -> None:
        self.transfer_seconds = Histogram(
            "twolane_worker_transfer_seconds",
            "From the first byte that could be sent to the answer to the last push; see transfer_bytes.",
            ["transport"],
            buckets=metrics.FAST_BUCKETS_S,
            registry=registry,
        )
        self.transfer_bytes = Counter(
            "twolane_worker_transfer_bytes",
            "Bytes of the pages whose transfer transfer_seconds has counted.",
            ["transport"],
            registry=registry,
        )
        self.landed_bytes = Counter(
            "twolane_worker_landed_bytes",
            "Bytes of pages that landed here.",
            ["transport"],
            registry=registry,
        )
        self.landing_seconds = Counter(
            "twolane_worker_landing_seconds",
            "Time spent on putting landed_bytes into pages.",
            ["transport"],
            registry=registry,
        )
        self.refused = Counter(
            "twolane_worker_pushes_refused",
            "Pushes that were not let near a page.",
            ["code"],
            registry=registry,
        )
        self.lease_expiries = Counter(
            "twolane_worker_lease_expiries",
            "Leases that ended by time or because a side was replaced, with a transfer under way.",
            ["transport"],
            registry=registry,
        )
        self.pinned_pages = Gauge(
            "twolane_worker_pinned_pages", "Computed pages that wait for their transfer.", registry=registry
        )

    def sent(self, transport: pb.Transport.ValueType, n_bytes: int, seconds: float) -> None:
        """Counts a transfer that has landed at the peer."""
        name = transport_name(transport)
        self.transfer_seconds.labels(name).observe(seconds)
        self.transfer_bytes.labels(name).inc(n_bytes)

    def landed(self, transport: pb.Transport.ValueType, n_bytes: int, seconds: float) -> None:
        """Counts a run that has landed here."""
        name = transport_name(transport)
        self.landed_bytes.labels(name).inc(n_bytes)
        self.landing_seconds.labels(name).inc(seconds)

    def lease_expired(self, transport: pb.Transport.ValueType) -> None:
        """Counts a lease that ended before its transfer."""
        self.lease_expiries.labels(transport_name(transport)).inc()


def transport_name(transport: pb.Transport.ValueType) -> str:
    """A transport as metrics and logs name it."""
    return pb.Transport.Name(transport).removeprefix("TRANSPORT_").lower()
