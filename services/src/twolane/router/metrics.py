"""What a router measures of its requests; served at /metrics.

Labels are bounded: outcome is "ok" or a code of the error tree, lane is short, long or none (refused
before a lane was chosen).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from twolane.core.errors import Cancelled
from twolane.core.request import Lane, Usage
from twolane.router.demand import Demand
from twolane.router.generation import Generation, GenerationRequest
from twolane.router.tally import Tally
from twolane.router.targets import SloTargets
from twolane.telemetry.metrics import REQUEST_BUCKETS_S, TOKEN_BUCKETS_S

if TYPE_CHECKING:
    from twolane.router.answer import Answer

TOKEN_COUNT_BUCKETS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class RouterMetrics:
    """The router's metrics in one registry.

    Attributes:
        next_tokens: takes the seconds between tokens of an answer, and how many were so far apart.
    """

    def __init__(self, registry: CollectorRegistry, targets: SloTargets) -> None:
        self._targets = targets
        self._requests = Counter(
            "twolane_router_requests", "Requests by how they ended.", ("outcome", "lane"), registry=registry
        )
        self._ttft = _by_lane(
            "ttft_seconds", "From a request's arrival to an answer's first token.", registry
        )
        self._next = Tally(
            "twolane_router_inter_token_latency_seconds",
            "Between two tokens of one answer.",
            TOKEN_BUCKETS_S,
            registry,
        )
        self.next_tokens = self._next.observe
        self._e2e = _by_lane("e2e_seconds", "From a request's arrival to its end.", registry)
        self._retries = Counter(
            "twolane_router_retries",
            "Answers sent to other workers before their first token.",
            registry=registry,
        )
        self._queue = Histogram(
            "twolane_router_queue_seconds",
            "From a request's arrival until it was sent to workers: validation, template, tokens, placement.",
            buckets=REQUEST_BUCKETS_S,
            registry=registry,
        )
        self._tokens = {
            kind: Histogram(
                f"twolane_router_{kind}_tokens", text, buckets=TOKEN_COUNT_BUCKETS, registry=registry
            )
            for kind, text in (
                ("input", "Prompt tokens of a request."),
                ("output", "Tokens generated for a request."),
                ("cached", "Prompt tokens of a request found in a prefix cache."),
            )
        }
        self._registry = registry
        self._demand = Demand(registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when metrics are collected."""
        Gauge(f"twolane_router_{name}", text, registry=self._registry).set_function(read)

    def gauge_by_lane(self, name: str, text: str, read: Callable[[Lane], float]) -> None:
        """The same with a value for each lane."""
        made = Gauge(f"twolane_router_{name}", text, ("lane",), registry=self._registry)
        for lane in Lane:
            made.labels(lane.value).set_function(partial(read, lane))

    def dispatched(self, request: GenerationRequest) -> None:
        """The request was sent to workers."""
        self._queue.observe(_age_s(request))

    def first_token(self, request: GenerationRequest, answer: Answer) -> None:
        """An answer's first token came."""
        answer.ttft_s = _age_s(request)
        self._ttft[answer.lane].observe(answer.ttft_s)

    def arrived(self, generation: Generation) -> None:
        """A request was accepted: it was sent to workers, or it is held."""
        for answer in generation.answers:
            self._demand.arrived(answer.lane, answer.uncached_tokens)

    def ended(self, generation: Generation, usage: Usage) -> None:
        """A request that was accepted is over."""
        lane, error = generation.lane, generation.error
        for answer in generation.answers:
            if error is None or not isinstance(error, Cancelled):
                limit_ms = generation.request.ttft_slo_ms
                missed = self._targets.missed(answer.lane, limit_ms, answer.ttft_s, answer.tpot_s)
                self._demand.ended(answer.lane, "failed" if error else missed or "met")
        self._requests.labels("ok" if error is None else error.code, lane.value).inc()
        if error is None:
            self._e2e[lane].observe(_age_s(generation.request))
            self._tokens["input"].observe(usage.prompt_tokens)
            self._tokens["output"].observe(usage.completion_tokens)
            self._tokens["cached"].observe(usage.cached_tokens)

    def retried(self) -> None:
        """An answer that its workers gave up was sent to others."""
        self._retries.inc()

    def refused(self, code: str) -> None:
        """A request was refused before it was sent anywhere."""
        self._requests.labels(code, "none").inc()


def _by_lane(name: str, text: str, registry: CollectorRegistry) -> dict[Lane, Histogram]:
    """A histogram of seconds for each lane."""
    made = Histogram(f"twolane_router_{name}", text, ("lane",), buckets=REQUEST_BUCKETS_S, registry=registry)
    return {lane: made.labels(lane.value) for lane in Lane}


def _age_s(request: GenerationRequest) -> float:
    return asyncio.get_running_loop().time() - request.arrival_s
