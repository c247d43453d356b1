"""Moves workers between pools and lanes as the load asks for: the role controller's eyes and hands.

One broker at a time leads; it measures from the workers' own reports and tells workers directly. The
decision itself is the pure policy in twolane.policies.roles, which the simulator runs too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from twolane.broker.config import BrokerConfig
from twolane.broker.metrics import BrokerMetrics
from twolane.core.clock import Clock
from twolane.core.errors import TwolaneError
from twolane.core.request import Lane, Role
from twolane.policies.roles import Group, GroupLoad, Move, RoleController, RolesView
from twolane.rpc.channel import open_channel, to_twolane_error
from twolane.rpc.tls import Tls
from twolane.rpc.words import lane_from_proto, lane_to_proto, role_from_proto, role_to_proto
from twolane.state.contract import BrokerState
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.worker_pb2 import AssignRequest, WorkDone
from twolane.v1.worker_pb2_grpc import WorkerStub

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 2.0
# A prefill queue up to this long is normal.
NORMAL_QUEUE_S = 0.5

_GROUPS = {
    (Role.PREFILL, Lane.SHORT): Group.SHORT,
    (Role.PREFILL, Lane.LONG): Group.LONG,
    (Role.PREFILL, None): Group.BOTH,
    (Role.DECODE, None): Group.DECODE,
}
_ASSIGNMENTS = {group: assignment for assignment, group in _GROUPS.items()}


@dataclass
class _Model:
    """What is remembered of one model's workers between two decisions."""

    memory: Any = None
    seen_s: float | None = None
    done: dict[str, WorkDone] = field(default_factory=dict)


class RoleControl:
    """Sizes the groups of every model.

    Args:
        config: how often, and whether lanes have workers of their own.
        state: who leads.
        metrics: moves are counted.
        clock: of the policy.
        name: this broker among its replicas.

    Attributes:
        tls: shown to workers; None: they are told in plain text.
    """

    def __init__(
        self, config: BrokerConfig, state: BrokerState, metrics: BrokerMetrics, clock: Clock, name: str
    ) -> None:
        self._config = config
        self._state = state
        self._metrics = metrics
        self._clock = clock
        self._name = name
        self.tls: Tls | None = None
        self._controller = RoleController()
        self._models: defaultdict[str, _Model] = defaultdict(_Model)

    async def run_forever(self) -> None:
        """Decides at every interval until cancelled; does nothing while another broker leads."""
        while True:
            await asyncio.sleep(self._config.role_interval_s)
            try:
                if await self._state.lead(self._name, 3 * self._config.role_interval_s):
                    await self.decide_once(await self._state.workers())
                else:
                    self._models.clear()
            except TwolaneError as error:
                log.warning("roles are left as they are: %s", error.message)

    async def decide_once(self, workers: Iterable[WorkerInfo]) -> list[Move]:
        """Asks the policy for each model and tells the workers that move; returns the moves."""
        by_model: defaultdict[str, list[WorkerInfo]] = defaultdict(list)
        for worker in workers:
            if not worker.draining and _group_of(worker) is not None:
                by_model[worker.fingerprint.model].append(worker)
        moves: list[Move] = []
        for model, members in by_model.items():
            for move in self._decide(self._models[model], members):
                moves.append(move)
                await self._carry_out(move, members)
        return moves

    def _decide(self, model: _Model, members: list[WorkerInfo]) -> tuple[Move, ...]:
        now_s = self._clock()
        done = {worker.worker_id: worker.load.done for worker in members}
        span_s = None if model.seen_s is None else max(1e-3, now_s - model.seen_s)
        before, model.done, model.seen_s = model.done, done, now_s
        if span_s is None:
            return ()
        loads = self._loads(members, before, span_s)
        decision = self._controller.decide(now_s, RolesView(loads, model.memory))
        model.memory = decision.memory
        return decision.moves

    def _loads(
        self, members: list[WorkerInfo], before: Mapping[str, WorkDone], span_s: float
    ) -> dict[Group, GroupLoad]:
        """Load of each group that has workers, by the kind of work and not by who did it."""
        groups: dict[Group, list[WorkerInfo]] = defaultdict(list)
        for worker in members:
            if (group := _group_of(worker)) is not None:
                groups[group].append(worker)
        short_s = long_s = decode_s = 0.0
        for worker in members:
            old, new = before.get(worker.worker_id), worker.load.done
            if old is None:
                # Seen for the first time: it may have done its work long ago.
                continue
            # Fewer seconds than before: the worker was replaced by a new incarnation.
            fresh = new.decode_s < old.decode_s or new.short_prefill_s < old.short_prefill_s
            base = WorkDone() if fresh else old
            short_s += new.short_prefill_s - base.short_prefill_s
            long_s += new.long_prefill_s - base.long_prefill_s
            decode_s += new.decode_s - base.decode_s
        waiting = _waiting(members)
        demand = {
            Group.SHORT: short_s / span_s,
            Group.LONG: long_s / span_s,
            Group.BOTH: (short_s + long_s) / span_s,
            Group.DECODE: max(decode_s / span_s, _page_need(members)),
        }
        return {
            group: GroupLoad(
                len(there), demand[group], max(0.0, waiting[group] - NORMAL_QUEUE_S * len(there))
            )
            for group, there in groups.items()
        }

    async def _carry_out(self, move: Move, members: list[WorkerInfo]) -> None:
        role, lane = _ASSIGNMENTS[move.target]
        ready = [worker for worker in members if _group_of(worker) is move.source]
        emptiest = sorted(ready, key=lambda worker: (worker.load.waiting_tokens, worker.load.running))
        for worker in emptiest[: min(move.workers, len(ready) - 1)]:
            facts = {"worker_id": worker.worker_id, "from": move.source.value, "to": move.target.value}
            try:
                await assign(worker.address, role, lane, self.tls)
            except TwolaneError as error:
                log.warning("worker could not be moved: %s", error.message, extra=facts)
                continue
            # It is no candidate for the next move.
            members.remove(worker)
            self._metrics.moves.labels(move.source.value, move.target.value).inc()
            log.info("worker moved", extra=facts)


async def assign(address: str, role: Role, lane: Lane | None, tls: Tls | None = None) -> None:
    """Gives a worker another role or lane.

    Raises:
        TwolaneError: it can't be reached, or refuses.
    """
    channel = open_channel(address, tls, "worker")
    try:
        request = AssignRequest(role=role_to_proto(role), lane=lane_to_proto(lane))
        await WorkerStub(channel).Assign(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        raise to_twolane_error(error) from error
    finally:
        await channel.close()


def _group_of(worker: WorkerInfo) -> Group | None:
    """None for a mixed worker: it is in no pool."""
    role, lane = role_from_proto(worker.role), lane_from_proto(worker.lane)
    return _GROUPS.get((role, None if role is Role.DECODE else lane)) if role is not None else None


def _waiting(members: Iterable[WorkerInfo]) -> dict[Group, float]:
    short_s = sum(worker.load.waiting_short_s for worker in members)
    long_s = sum(worker.load.waiting_long_s for worker in members)
    return {Group.SHORT: short_s, Group.LONG: long_s, Group.BOTH: short_s + long_s, Group.DECODE: 0.0}


def _page_need(members: Iterable[WorkerInfo]) -> float:
    """Workers that the running answers need for their pages alone."""
    return sum(
        worker.load.predicted_peak_pages / worker.load.total_pages
        for worker in members
        if worker.load.total_pages
    )
