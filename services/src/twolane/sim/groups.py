"""Which simulated worker is in which group, and the role controller's hands.

Collects the loads that the controller looks at, carries its moves out by draining workers, and asks
whether a request may skip disaggregation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twolane.core.request import Lane
from twolane.policies.cost import DecodeCost, PrefillCost
from twolane.policies.roles import Group, GroupLoad, Move, RoleController, RolesView
from twolane.policies.skip import SkipView, skip_pays
from twolane.sim.request import SimRequest
from twolane.sim.worker import SimWorker

if TYPE_CHECKING:
    from twolane.sim.cluster import Simulation

# A decode step is shared by about this many rows when a worker is well used.
SHARED_ROWS = 64
# A prefill queue up to this long is normal.
NORMAL_QUEUE_S = 0.5


class GroupKeeper:
    """Groups of workers, kept in step with failures and moves."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._controller = RoleController(simulation.settings.role_settings)
        self._memory: Any = None
        self._work_s: dict[Group, float] = {}
        self._since_s = 0.0
        self._members: dict[Group, list[SimWorker]] = {}
        self._counts: dict[str, int] = {}
        self.moves: list[tuple[float, Move]] = []
        if simulation.settings.lane_groups:
            self._split()

    def _split(self) -> None:
        """Half of the prefill workers start in each lane."""
        prefill = [worker for worker in self._simulation.workers if worker.group is Group.BOTH]
        for position, worker in enumerate(prefill):
            worker.group = Group.SHORT if position < len(prefill) // 2 else Group.LONG

    def changed(self) -> None:
        """Forgets who is where, after a move or a failure."""
        self._members.clear()
        self._counts.clear()

    def counts(self) -> Mapping[str, int]:
        """Workers per group, those on their way to another included, and those that are down."""
        if not self._counts:
            self._counts = {group.value: 0 for group in Group} | {"down": 0}
            for worker in self._simulation.workers:
                self._counts[worker.group.value if worker.alive else "down"] += 1
        return self._counts

    def members(self, group: Group) -> list[SimWorker]:
        """Workers of a group that take new requests."""
        found = self._members.get(group)
        if found is None:
            found = [
                worker
                for worker in self._simulation.workers
                if worker.group is group and worker.alive and worker.going_to is None
            ]
            self._members[group] = found
        return found

    def prefill_workers(self, lane: Lane) -> Sequence[SimWorker]:
        """Prefill workers for a lane: its own, else any."""
        if not self._simulation.settings.lane_groups:
            return self.members(Group.BOTH)
        own = self.members(Group.SHORT if lane is Lane.SHORT else Group.LONG)
        return own or self.members(Group.LONG if lane is Lane.SHORT else Group.SHORT)

    def decode_workers(self) -> Sequence[SimWorker]:
        """Decode workers."""
        return self.members(Group.DECODE)

    def note_prompt(self, lane: Lane, request: SimRequest) -> None:
        """Books the work that a request brings to both pools."""
        profile = self._simulation.profile
        uncached, cached = request.uncached_tokens, request.cached_tokens
        seconds = profile.token_s * uncached + profile.attention_s * uncached * (uncached + 2 * cached)
        self._book(self._prefill_group(lane), seconds)
        self._book(Group.DECODE, self.answer_s(request))

    def answer_s(self, request: SimRequest) -> float:
        """Worker-seconds of decode that a request needs on a well used worker."""
        profile = self._simulation.profile
        left = request.output_tokens - request.generated_tokens
        shared_s = profile.decode_constant_s(SHARED_ROWS) / SHARED_ROWS
        return left * (shared_s + profile.decode_read_s * (request.prompt_tokens + left / 2.0))

    def _prefill_group(self, lane: Lane) -> Group:
        if not self._simulation.settings.lane_groups:
            return Group.BOTH
        return Group.SHORT if lane is Lane.SHORT else Group.LONG

    def _book(self, group: Group, seconds: float) -> None:
        self._work_s[group] = self._work_s.get(group, 0.0) + seconds

    def decide(self) -> None:
        """Asks the controller and starts the moves."""
        now_s = self._simulation.events.now_s
        span_s = max(1e-9, now_s - self._since_s)
        lanes = self._simulation.settings.lane_groups
        groups = (Group.SHORT, Group.LONG, Group.DECODE) if lanes else (Group.BOTH, Group.DECODE)
        loads = {group: self._load(group, span_s) for group in groups}
        self._since_s = now_s
        self._work_s.clear()
        decision = self._controller.decide(now_s, RolesView(loads, self._memory))
        self._memory = decision.memory
        for move in decision.moves:
            self.moves.append((now_s, move))
            self._start(move)

    def _load(self, group: Group, span_s: float) -> GroupLoad:
        workers = [worker for worker in self._simulation.workers if worker.alive]
        there = [worker for worker in workers if worker.group is group]
        count = sum(1 for worker in workers if (worker.going_to or worker.group) is group)
        if group is Group.DECODE:
            backlog_s = sum(self.answer_s(request) for worker in there for request in worker.decode.waiting)
        else:
            backlog_s = sum(max(0.0, worker.prefill.load_s() - NORMAL_QUEUE_S) for worker in there)
        return GroupLoad(count, self._work_s.get(group, 0.0) / span_s, backlog_s)

    def _start(self, move: Move) -> None:
        ready = self.members(move.source)
        emptiest = sorted(ready, key=lambda worker: (worker.prefill.load_s(), worker.promised_tokens))
        for worker in emptiest[: min(move.workers, len(ready) - 1)]:
            worker.going_to = move.target
            self.settle(worker)
        self.changed()

    def settle(self, worker: SimWorker) -> None:
        """Completes a move once the worker is drained; a change of lane alone needs no draining."""
        if worker.going_to is None:
            return
        lane_change = Group.DECODE not in (worker.group, worker.going_to)
        if lane_change or worker.is_empty:
            worker.group, worker.going_to = worker.going_to, None
            self.changed()

    def skip_pays(self, request: SimRequest, chosen: SimWorker, target: SimWorker) -> bool:
        """Asks the policy, with the cost models as fitted at the start."""
        simulation = self._simulation
        view = SkipView(
            uncached_tokens=request.uncached_tokens,
            cached_tokens=request.cached_tokens,
            decode_cached_tokens=request.cached_tokens,
            boundary_tokens=chosen.prefill.boundary_tokens,
            prefill_wait_s=chosen.prefill.load_s(),
            transfer_s=simulation.profile.transfer_s(request.prompt_tokens),
            decode_rows=len(target.decode.running),
            decode_held_tokens=target.decode.held_tokens,
            tpot_limit_s=simulation.settings.tpot_s,
        )
        return skip_pays(view, PrefillCost(), DecodeCost())
