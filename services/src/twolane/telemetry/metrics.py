"""Prometheus conventions: one registry per process and shared histogram buckets.

Names start with `twolane_`, carry base units (`_seconds`, `_bytes`, `_total`) and only bounded
labels (role, lane, outcome, gRPC method): never a request id, a worker id or a client's words.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

# Engine steps, RPCs between processes, page transfers: 0.25 ms to 10 s.
FAST_BUCKETS_S: tuple[float, ...] = (
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
# Time between two tokens of one answer.
TOKEN_BUCKETS_S: tuple[float, ...] = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
    2.5,
)
# Waiting for a first token or a whole answer, queue time: 5 ms to 10 min.
REQUEST_BUCKETS_S: tuple[float, ...] = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    300.0,
    600.0,
)


def new_registry() -> CollectorRegistry:
    """A registry with the usual process, platform and garbage-collector metrics and nothing else."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made


registry: CollectorRegistry = new_registry()
"""The running process's registry; classes that make metrics take it as their default argument."""
