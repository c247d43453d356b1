"""From what routers and workers say at two moments to what the planner looks at. Pure.

Counters are compared pod by pod: one that began anew counts from nothing, one that is new counts in
full, and one that gave no answer makes the view incomplete, which never lowers a count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twolane.core.request import Lane
from twolane.operator.scrape import Reading
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.planner_view import DecodeLoad, LaneTraffic, WorkerCost

_ROUTER, _WORKER = "twolane_router_", "twolane_worker_"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Readings of one moment, by pod.

    Attributes:
        at_s: when, on the event loop's clock.
        routers: of routers that serve.
        workers: of workers that serve.
        silent: pods that serve but gave no reading.
    """

    at_s: float
    routers: Mapping[str, Reading] = field(default_factory=dict)
    workers: Mapping[str, Reading] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()

    @property
    def held(self) -> int:
        """Requests that routers hold back."""
        return round(sum(reading.total(f"{_ROUTER}held_requests") for reading in self.routers.values()))

    def waiting_s(self) -> dict[Lane, float]:
        """Seconds of prefill that wait, by lane."""
        name = f"{_WORKER}waiting_seconds"
        return {
            lane: sum(reading.total(name, lane=lane.value) for reading in self.workers.values())
            for lane in Lane
        }

    def cost(self) -> WorkerCost | None:
        """What a worker can do, averaged over those that have measured enough; None when none has."""
        prefill, decode = [], []
        for reading in self.workers.values():
            parts = reading.by(f"{_WORKER}step_cost_seconds", "part")
            if parts.get("prefill_constant", 0.0) > 0.0 and parts.get("prefill_token", 0.0) > 0.0:
                names = ("constant", "attention", "token", "cached_token")
                prefill.append([parts.get(f"prefill_{name}", 0.0) for name in names])
            if parts.get("decode_constant", 0.0) > 0.0:
                decode.append(
                    [parts.get(f"decode_{name}", 0.0) for name in ("constant", "held_token", "row")]
                )
        capacities = [reading.total(f"{_WORKER}capacity_tokens") for reading in self.workers.values()]
        if not prefill or not decode or not any(capacities):
            return None
        capacity = sum(capacities) / max(1, sum(tokens > 0.0 for tokens in capacities))
        rows = max(reading.total(f"{_WORKER}max_decode_rows") for reading in self.workers.values())
        prefill_cost, decode_cost = PrefillCost.known(*_mean(prefill)), DecodeCost.known(*_mean(decode))
        return WorkerCost(prefill_cost, decode_cost, int(capacity), int(rows) or 256)


def _mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


@dataclass(frozen=True, slots=True)
class Growth:
    """What grew between two snapshots."""

    before: Snapshot
    after: Snapshot

    @property
    def span_s(self) -> float:
        """Seconds between them."""
        return self.after.at_s - self.before.at_s

    @property
    def complete(self) -> bool:
        """Whether no pod that serves was silent, now or then."""
        return not self.after.silent and not self.before.silent

    def lanes(self) -> dict[Lane, LaneTraffic]:
        """What arrived and how it was served, by lane."""
        prompts = self._routers("input_tokens_count")
        mean_prompt = self._routers("input_tokens_sum") / prompts if prompts else 0.0
        found = {}
        for lane in Lane:
            requests = self._routers("arrivals_total", lane=lane.value)
            uncached = self._routers("uncached_tokens_total", lane=lane.value)
            judged = self._routers("slo_answers_total", lane=lane.value)
            met = self._routers("slo_answers_total", lane=lane.value, outcome="met")
            # Prompts are counted at their end and over both lanes; a lane's are no shorter than its work.
            prompt = max(uncached, requests * mean_prompt)
            found[lane] = LaneTraffic(requests, prompt, uncached, judged=judged, met=met)
        return found

    def decode(self) -> DecodeLoad:
        """Answers that run, and that ended since."""
        workers = self.after.workers.values()
        return DecodeLoad(
            running=sum(reading.total(f"{_WORKER}requests_running") for reading in workers),
            waiting=sum(reading.total(f"{_WORKER}requests_waiting_for_pages") for reading in workers),
            held_tokens=sum(reading.total(f"{_WORKER}held_tokens") for reading in workers),
            ended=self._routers("output_tokens_count"),
            output_tokens=self._routers("output_tokens_sum"),
        )

    def _routers(self, name: str, **labels: str) -> float:
        grown = 0.0
        for pod, reading in self.after.routers.items():
            value = reading.total(_ROUTER + name, **labels)
            if pod in self.before.silent:
                continue
            old = self.before.routers.get(pod)
            before = 0.0 if old is None else old.total(_ROUTER + name, **labels)
            grown += value if value < before else value - before
        return grown
