"""The pods of a simulated fleet: they start slowly, drain before they end, and cost from first to last.

scaling.py sets the counts that a scaler asks for and reads how many workers serve.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from twolane.policies.planner_view import PoolKind


@dataclass(slots=True)
class PoolPods:
    """Pods of one pool.

    Attributes:
        wanted: count asked for.
        ready: pods that serve.
        starting: when each pod that starts will serve, in order of creation.
        ending: when each pod that drains will be gone.
    """

    wanted: int
    ready: int
    starting: list[float] = field(default_factory=list)
    ending: list[float] = field(default_factory=list)


class Fleet:
    """All pods.

    Args:
        sizes: pods at the start; all serve.
        start_s: least and most seconds that a pod takes to serve.
        rng: draws the seconds of each pod.

    Attributes:
        pool_s: pod-seconds paid for so far, by pool.
        changes: (time, pool, from, to) of every change of a count.
    """

    def __init__(
        self, sizes: dict[PoolKind, int], start_s: tuple[float, float], rng: np.random.Generator
    ) -> None:
        self.pools = {kind: PoolPods(size, size) for kind, size in sizes.items()}
        self.pool_s = dict.fromkeys(sizes, 0.0)
        self.changes: list[tuple[float, PoolKind, int, int]] = []
        self._start_s = start_s
        self._rng = rng

    @property
    def pod_s(self) -> float:
        """Pod-seconds paid for so far, of all pools."""
        return sum(self.pool_s.values())

    def ask(self, now_s: float, kind: PoolKind, wanted: int, drain_s: float) -> None:
        """Changes a count: new pods start; pods that start end first, then ready ones after draining."""
        pods = self.pools[kind]
        if wanted == pods.wanted:
            return
        self.changes.append((now_s, kind, pods.wanted, wanted))
        pods.wanted = wanted
        missing = wanted - pods.ready - len(pods.starting)
        for _ in range(missing):
            pods.starting.append(now_s + float(self._rng.uniform(*self._start_s)))
        for _ in range(-missing):
            if pods.starting:
                pods.starting.pop()
            else:
                pods.ready -= 1
                pods.ending.append(now_s + drain_s)

    def advance(self, now_s: float, span_s: float) -> None:
        """Lets `span_s` seconds up to `now_s` be paid for, then starts and ends what is due."""
        for kind, pods in self.pools.items():
            self.pool_s[kind] += span_s * (pods.ready + len(pods.starting) + len(pods.ending))
            pods.ready += sum(at_s <= now_s for at_s in pods.starting)
            pods.starting = [at_s for at_s in pods.starting if at_s > now_s]
            pods.ending = [at_s for at_s in pods.ending if at_s > now_s]
