"""Where the simulated router sends a request: the least loaded worker of the right group.

With many workers it looks at a few drawn ones instead of all, as routers of large clusters do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from twolane.core.request import Lane
from twolane.policies.lanes import lane_of
from twolane.sim.worker import SimWorker

# Above this many candidates the router looks at a sample of SAMPLE.
SCAN_MAX = 16
SAMPLE = 8


class Router:
    """Chooses workers by queued seconds and held tokens.

    Args:
        rng: the simulation's generator.
        short_first: whether workers run short prompts before long ones, so that a short prompt waits
            for the short ones alone.
    """

    def __init__(self, rng: np.random.Generator, short_first: bool) -> None:
        self._rng = rng
        self._short_first = short_first
        self._draws: list[float] = []

    def prefill(self, workers: Sequence[SimWorker], uncached_tokens: int) -> SimWorker:
        """The worker where a prompt of this length is computed soonest, about."""
        if not self._short_first:
            return self._least(workers, _load_s)

        def wait_s(worker: SimWorker) -> float:
            # Each worker has a boundary of its own.
            lane = lane_of(uncached_tokens, worker.prefill.boundary_tokens)
            return _short_wait_s(worker) if lane is Lane.SHORT else _load_s(worker)

        return self._least(workers, wait_s)

    def mixed(self, workers: Sequence[SimWorker]) -> SimWorker:
        """The worker with the least prompts queued, of equals that with the fewest tokens promised."""
        return self._least(workers, _mixed_load)

    def decode(self, workers: Sequence[SimWorker]) -> SimWorker:
        """The worker with the fewest tokens held and promised."""
        return self._least(workers, _promised)

    def _least(self, workers: Sequence[SimWorker], load: Callable[[SimWorker], float]) -> SimWorker:
        if len(workers) == 1:
            return workers[0]
        count = len(workers)
        if count <= SCAN_MAX:
            return min(workers, key=load)
        if len(self._draws) < SAMPLE:
            self._refill()
        pop = self._draws.pop
        best = workers[int(pop() * count)]
        least = load(best)
        for _ in range(SAMPLE - 1):
            worker = workers[int(pop() * count)]
            if (found := load(worker)) < least:
                best, least = worker, found
        return best

    def draw(self) -> float:
        """A uniform number in [0, 1)."""
        if not self._draws:
            self._refill()
        return self._draws.pop()

    def _refill(self) -> None:
        self._draws = self._rng.random(8192).tolist()


def _load_s(worker: SimWorker) -> float:
    return worker.prefill.load_s()


def _short_wait_s(worker: SimWorker) -> float:
    side = worker.prefill
    return side.short_backlog_s + side.long_left_s() + 1e-4 * side.long_backlog_s


def _mixed_load(worker: SimWorker) -> float:
    # A prompt token held is read by every further step: a small share of a prompt token to compute.
    return worker.prefill.load_s() + 1e-6 * worker.promised_tokens


def _promised(worker: SimWorker) -> float:
    return float(worker.promised_tokens)
