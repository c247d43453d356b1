"""The role control measures groups from workers' reports and moves the emptiest workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tests.broker.conftest import ManualClock
from twolane.broker.config import BrokerConfig
from twolane.broker.metrics import BrokerMetrics
from twolane.broker.role_control import RoleControl
from twolane.policies.roles import Group, Move
from twolane.state.memory import MemoryState
from twolane.v1 import worker_pb2, worker_pb2_grpc
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.types_pb2 import (
    LANE_LONG,
    LANE_SHORT,
    ROLE_DECODE,
    ROLE_MIXED,
    ROLE_PREFILL,
    ModelFingerprint,
)


class AssignRecorder(worker_pb2_grpc.WorkerServicer):
    """Stands at every worker's address and notes what it is told."""

    def __init__(self) -> None:
        self.assigned: list[worker_pb2.AssignRequest] = []
        self.server = grpc.aio.server()
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self.server)

    async def Assign(self, request: worker_pb2.AssignRequest, context: Any) -> worker_pb2.AssignResponse:
        """Takes an assignment."""
        self.assigned.append(request)
        return worker_pb2.AssignResponse()

    def Session(self, request_iterator: Any, context: Any) -> Any:
        """Not called by a broker."""
        raise NotImplementedError

    async def Drain(self, request: Any, context: Any) -> Any:
        """Not called by a broker."""
        raise NotImplementedError

    async def Inspect(self, request: Any, context: Any) -> Any:
        """Not called by a broker."""
        raise NotImplementedError


@pytest.fixture
async def recorder() -> AsyncIterator[AssignRecorder]:
    """A listening recorder."""
    made = AssignRecorder()
    await made.server.start()
    yield made
    await made.server.stop(0)


def control(clock: ManualClock) -> RoleControl:
    """A role control with its own state."""
    metrics = BrokerMetrics(CollectorRegistry())
    return RoleControl(BrokerConfig(role_control=True), MemoryState(clock), metrics, clock, "me")


def worker(name: str, role: Any, address: str, **load: Any) -> WorkerInfo:
    """A worker's announcement with its last report."""
    fingerprint = ModelFingerprint(model="m")
    return WorkerInfo(
        worker_id=name, role=role, address=address, fingerprint=fingerprint, load=worker_pb2.Load(**load)
    )


def cluster(address: str, decode_s: float, waiting_long_s: float) -> list[WorkerInfo]:
    """One prefill worker with a queue, three decode workers with next to nothing to do."""
    done = worker_pb2.WorkDone(decode_s=decode_s)
    workers = [worker("p0", ROLE_PREFILL, address, waiting_long_s=waiting_long_s)]
    return workers + [worker(f"d{n}", ROLE_DECODE, address, done=done, running=n) for n in range(3)]


async def pressed(roles: RoleControl, address: str) -> list[Move]:
    """A lasting queue at prefill; the first moves it leads to."""
    clock = roles._clock
    assert isinstance(clock, ManualClock)
    for step in range(20):
        if moves := await roles.decide_once(cluster(address, 0.1 * step, 40.0)):
            return moves
        clock.now_s += 2.0
    return []


async def test_a_queue_at_prefill_draws_idle_decode_workers(recorder: AssignRecorder) -> None:
    """As many as the imbalance needs move at once, the emptiest first; decode keeps at least one."""
    moves = await pressed(control(ManualClock()), recorder.address)
    assert moves == [Move(Group.DECODE, Group.BOTH, 2)]
    assert [request.role for request in recorder.assigned] == [ROLE_PREFILL] * 2


async def test_a_quiet_cluster_stays_as_it_is(recorder: AssignRecorder) -> None:
    """Without load there is nothing to gain, however uneven the pools look."""
    clock = ManualClock()
    roles = control(clock)
    for step in range(30):
        assert await roles.decide_once(cluster(recorder.address, 0.01 * step, 0.0)) == []
        clock.now_s += 2.0
    assert recorder.assigned == []


async def test_mixed_and_draining_workers_are_left_alone(recorder: AssignRecorder) -> None:
    """They belong to no pool."""
    clock = ManualClock()
    roles = control(clock)
    members = [worker("m", ROLE_MIXED, recorder.address, waiting_long_s=100.0)]
    leaving = worker("d", ROLE_DECODE, recorder.address)
    leaving.draining = True
    for _ in range(5):
        assert await roles.decide_once([*members, leaving]) == []
        clock.now_s += 20.0


async def test_a_worker_that_cannot_be_reached_is_no_failure() -> None:
    """It is tried again after the cool-down; the broker goes on."""
    assert len(await pressed(control(ManualClock()), "127.0.0.1:1")) == 1


async def test_two_moves_from_one_pool_take_different_workers() -> None:
    """The one that has just gone to the short lane is not sent on to the long one."""
    clock = ManualClock()
    roles = control(clock)
    assigned: list[tuple[str, object]] = []

    async def note(address: str, role: object, lane: object, _tls: object) -> None:
        assigned.append((address, lane))

    short = worker("s", ROLE_PREFILL, "s", waiting_short_s=40.0)
    long = worker("l", ROLE_PREFILL, "l", waiting_long_s=40.0)
    short.lane, long.lane = LANE_SHORT, LANE_LONG
    decodes = [worker(f"d{n}", ROLE_DECODE, f"d{n}", running=n) for n in range(4)]
    moves: list[Move] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twolane.broker.role_control.assign", note)
        for _ in range(30):
            moves = moves or await roles.decide_once([short, long, *decodes])
            clock.now_s += 2.0
    assert {move.source for move in moves} == {Group.DECODE}
    assert {move.target for move in moves} == {Group.SHORT, Group.LONG}
    assert len({address for address, _ in assigned}) == sum(move.workers for move in moves) == len(assigned)


async def test_what_a_worker_did_before_it_came_is_no_demand() -> None:
    """A worker that was away, or mixed, comes with hours of work done: nothing moves for that."""
    clock = ManualClock()
    roles = control(clock)
    old = worker("old", ROLE_PREFILL, "127.0.0.1:1", done=worker_pb2.WorkDone(long_prefill_s=50_000.0))
    others = [worker("p", ROLE_PREFILL, "127.0.0.1:1")]
    others += [worker(f"d{n}", ROLE_DECODE, "127.0.0.1:1") for n in range(4)]
    for step in range(30):
        assert await roles.decide_once(others if step < 5 else [*others, old]) == []
        clock.now_s += 2.0
