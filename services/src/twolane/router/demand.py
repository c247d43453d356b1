"""What clients ask for and how well they are served, by lane: the measurements that pools are scaled by."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from twolane.core.request import Lane


class Demand:
    """Counters by lane, in answers: each choice of each prompt is one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._arrivals = Counter(
            "twolane_router_arrivals",
            "Answers asked for and accepted, those held included.",
            ("lane",),
            registry=registry,
        )
        self._uncached = Counter(
            "twolane_router_uncached_tokens",
            "Prompt tokens of them that no prefix cache held.",
            ("lane",),
            registry=registry,
        )
        self._answers = Counter(
            "twolane_router_slo_answers",
            "Answers by how they met the latency targets: met, ttft, tpot (the one missed), failed.",
            ("lane", "outcome"),
            registry=registry,
        )

    def arrived(self, lane: Lane, uncached_tokens: int) -> None:
        """An answer was asked for."""
        self._arrivals.labels(lane.value).inc()
        self._uncached.labels(lane.value).inc(uncached_tokens)

    def ended(self, lane: Lane, outcome: str) -> None:
        """An answer is over."""
        self._answers.labels(lane.value, outcome).inc()
