"""What the broker does between calls: follows the state's feed, and sweeps out what has expired.

A state that can't be reached makes the broker unready, not dead: it goes on with what it last
heard until the state is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from twolane.broker.cluster import Cluster
from twolane.broker.config import BrokerConfig
from twolane.broker.metrics import BrokerMetrics
from twolane.broker.watch import Watchers
from twolane.core.clock import Clock
from twolane.core.errors import TwolaneError
from twolane.state.contract import BrokerState
from twolane.state.records import Position

log = logging.getLogger(__name__)

_FEED_WAIT_S = 1.0
_PAUSE_S = 0.2


class Upkeep:
    """Keeps the copy of the cluster and the books in order.

    Attributes:
        cluster: the copy.
        watchers: who is told of changes.
        synced: set once the first snapshot of the state has been loaded.
        settled: set once watchers may be told what the cluster looks like.
    """

    def __init__(
        self, config: BrokerConfig, state: BrokerState, metrics: BrokerMetrics, clock: Clock
    ) -> None:
        self.cluster = Cluster()
        self.watchers = Watchers(self.cluster, config.watch_queue, metrics)
        self.synced = asyncio.Event()
        self.settled = asyncio.Event()
        self._config = config
        self._state = state
        self._metrics = metrics
        self._clock = clock
        self._position: Position | None = None
        self._lost = False
        self._swept_s = clock()
        self._troubles: dict[str, str] = {}

    def trouble(self) -> str | None:
        """Why the broker is not ready, or None."""
        if not self.synced.is_set() and not self._troubles:
            return "the state has not been read yet"
        return next(iter(self._troubles.values()), None)

    async def settle(self, wait_s: float) -> None:
        """Lets watchers in `wait_s` after the first snapshot was loaded."""
        await self.synced.wait()
        await asyncio.sleep(wait_s)
        self.settled.set()

    async def follow_forever(self) -> None:
        """Runs `follow_once` until cancelled."""
        await self._forever("follow", self.follow_once, 0.0)

    async def sweep_forever(self) -> None:
        """Runs `sweep_once` at every heartbeat interval until cancelled."""
        await self._forever("sweep", self._sweep_unless_held_up, self._config.heartbeat_interval_s)

    async def follow_once(self) -> None:
        """Loads a snapshot, or waits for changes and hands them on."""
        if self._position is None or self._lost:
            await self._load()
            return
        changes = await self._state.changes(self._position, _FEED_WAIT_S)
        if changes is None:
            self._lost = True
            return
        self._position = changes.position
        self.watchers.publish(self.cluster.apply(changes.items))
        self.watchers.publish(self.cluster.drop_overdue(self._clock()))
        self._metrics.show(self.cluster)

    async def sweep_once(self) -> None:
        """Removes expired leases and silent workers from the state; its feed tells everyone."""
        swept = await self._state.sweep()
        self._metrics.leases_expired.inc(len(swept.expired_leases))
        self._metrics.workers_lost.inc(len(swept.gone_workers))
        self._metrics.leases_out.set(swept.leases_out)
        for worker_id in swept.gone_workers:
            log.warning("worker went silent", extra={"worker_id": worker_id})
        if swept.expired_leases:
            log.warning("leases expired", extra={"lease_ids": list(swept.expired_leases[:20])})

    async def _sweep_unless_held_up(self) -> None:
        """Skips a sweep after a pause of this process: heartbeats sent meanwhile wait to be read."""
        now = self._clock()
        held_up_s = now - self._swept_s - self._config.heartbeat_interval_s
        self._swept_s = now
        if held_up_s > self._config.worker_ttl_s / 2:
            log.warning("the broker was held up", extra={"held_up_s": round(held_up_s, 3)})
            return
        await self.sweep_once()

    async def _load(self) -> None:
        snapshot = await self._state.snapshot()
        before = self._position
        data_lost = before is not None and before.generation != snapshot.position.generation
        keep_s = self._config.worker_ttl_s if data_lost else 0.0
        self.watchers.publish(self.cluster.load(snapshot, self._clock(), keep_s))
        reason = "start" if before is None else ("data_lost" if data_lost else "behind")
        self._metrics.resyncs.labels(reason).inc()
        log.info("state loaded", extra={"reason": reason, "workers": len(snapshot.workers)})
        self._position, self._lost = snapshot.position, False
        self._metrics.show(self.cluster)
        self.synced.set()

    async def _forever(self, name: str, once: Callable[[], Awaitable[None]], interval_s: float) -> None:
        while True:
            pause_s = interval_s
            try:
                await once()
                self._troubles.pop(name, None)
            except TwolaneError as error:
                if name not in self._troubles:
                    log.warning("the state can't be reached", extra={"task": name, "reason": error.message})
                self._troubles[name] = error.message
                pause_s = _PAUSE_S
            except Exception:
                log.exception("upkeep failed", extra={"task": name})
                self._troubles[name] = f"{name} failed; see the log"
                self._lost = True
                pause_s = 5 * _PAUSE_S
            await asyncio.sleep(pause_s)
