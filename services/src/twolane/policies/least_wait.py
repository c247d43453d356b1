"""Placement by predicted time: where the first token is there first, and whether to disaggregate at all.

The router's default. It needs the costs that workers fit and report; until every candidate knows its own,
tokens stand for time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from twolane.core.request import Lane
from twolane.policies.placement import (
    LeastLoaded,
    LeastUncached,
    Placement,
    PlacementPolicy,
    PlacementView,
    PlacementWorker,
    PowerOfTwo,
    RoundRobin,
)
from twolane.policies.skip import SkipView, skip_pays

# A short prompt overtakes the long lane, but a chunk of it may be running.
LONG_LANE_SHARE = 0.05


class LeastWait(LeastUncached):
    """Prefill where queue and prompt together take the least time; else as LeastUncached.

    A short prompt waits for the short lane alone, as workers let it pass the long one. When the decode
    worker would answer sooner without a transfer, and no running answer suffers, it does both halves.
    """

    name = "least_wait"

    def decide(self, now_s: float, view: PlacementView) -> Placement:
        """See the class."""
        return self._without_transfer(view, super().decide(now_s, view))

    def _wait(
        self, view: PlacementView, workers: Sequence[PlacementWorker]
    ) -> Callable[[PlacementWorker], float]:
        if any(worker.prefill_cost is None for worker in workers):
            return super()._wait(view, workers)

        def seconds(worker: PlacementWorker) -> float:
            return self._queue_s(view, worker) + self._prompt_s(view, worker)

        return seconds

    def _queue_s(self, view: PlacementView, worker: PlacementWorker) -> float:
        short_s, long_s = (worker.waiting_s.get(lane, 0.0) for lane in Lane)
        overtaken = self._lanes.at(view, worker) is Lane.SHORT
        return short_s + (LONG_LANE_SHARE if overtaken else 1.0) * long_s

    def _prompt_s(self, view: PlacementView, worker: PlacementWorker) -> float:
        assert worker.prefill_cost is not None
        return worker.prefill_cost.prompt_s(self._lanes.uncached(view, worker), worker.cached_tokens)

    def _without_transfer(self, view: PlacementView, placement: Placement) -> Placement:
        workers = {worker.worker_id: worker for worker in view.workers}
        prefill, decode = workers.get(placement.prefill_id), workers.get(placement.decode_id)
        if prefill is None or decode is None or prefill is decode:
            return placement
        if prefill.prefill_cost is None or decode.decode_cost is None:
            return placement
        # A queue of prompts there, from others that skipped, would not be counted.
        if decode.waiting_tokens:
            return placement
        question = SkipView(
            uncached_tokens=placement.uncached_tokens,
            cached_tokens=prefill.cached_tokens,
            decode_cached_tokens=decode.cached_tokens,
            boundary_tokens=self._lanes.boundary(prefill),
            prefill_wait_s=self._queue_s(view, prefill),
            transfer_s=view.transfer_token_s * (view.prompt_tokens - decode.cached_tokens),
            decode_rows=decode.running,
            decode_held_tokens=decode.held_tokens,
            tpot_limit_s=view.tpot_limit_s,
        )
        if not skip_pays(question, prefill.prefill_cost, decode.decode_cost):
            return placement
        return replace(
            placement,
            prefill_id=decode.worker_id,
            lane=self._lanes.at(view, decode),
            uncached_tokens=self._lanes.uncached(view, decode),
        )


PLACEMENT_POLICIES: dict[str, Callable[[int], PlacementPolicy]] = {
    policy.name: policy for policy in (LeastWait, LeastUncached, LeastLoaded, PowerOfTwo, RoundRobin)
}
"""Policies by name; each is made with the short lane's longest uncached length."""
