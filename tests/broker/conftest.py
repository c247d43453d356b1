"""Real brokers on free local ports, over a state whose clock the test moves."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from twolane.broker.config import BrokerConfig
from twolane.broker.main import Broker
from twolane.rpc.channel import open_channel
from twolane.state.memory import MemoryState
from twolane.v1 import broker_pb2 as pb
from twolane.v1.broker_pb2_grpc import BrokerStub
from twolane.v1.transfer_pb2 import TRANSPORT_GRPC
from twolane.v1.types_pb2 import ROLE_PREFILL


class ManualClock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Running:
    """A broker that runs, and a client of it.

    Attributes:
        broker: the process.
        stub: typed client.
        channel: its channel.
        clock: moves leases and workers towards their end.
        registry: the broker's metrics.
    """

    broker: Broker
    stub: Any
    channel: grpc.aio.Channel
    clock: ManualClock
    registry: CollectorRegistry

    def metric(self, name: str, **labels: str) -> float:
        """Value of a sample, 0 when there is none."""
        return self.registry.get_sample_value(f"twolane_broker_{name}", labels) or 0.0


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start_broker() -> AsyncIterator[Start]:
    """Starts brokers; keyword arguments replace settings. A sweep happens only when the test asks."""
    started: list[Running] = []

    async def start(**settings: Any) -> Running:
        quiet = {"port": 0, "http_port": 0, "settle_s": 0.0, "stop_grace_s": 1.0}
        pace = {"heartbeat_interval_s": 500.0, "worker_ttl_s": 1000.0}
        config = BrokerConfig(**(quiet | pace | settings))
        clock, registry = ManualClock(), CollectorRegistry()
        state = None if config.redis_url else MemoryState(clock)
        broker = Broker(config, state=state, clock=clock, registry=registry)
        await broker.start()
        channel = open_channel(f"127.0.0.1:{broker.ports['grpc']}")
        running = Running(broker, BrokerStub(channel), channel, clock, registry)
        started.append(running)
        return running

    yield start
    for running in started:
        await running.channel.close()
        await running.broker.stop()


@pytest.fixture
async def running(start_broker: Start) -> Running:
    """One broker with its state in memory."""
    return await start_broker()


@pytest.fixture
def make_worker() -> Callable[..., pb.WorkerInfo]:
    """Builds a prefill worker of model "m"; keyword arguments replace fields."""
    ports = itertools.count(9100)

    def make(worker_id: str, **changed: Any) -> pb.WorkerInfo:
        fields: dict[str, Any] = {
            "worker_id": worker_id,
            "address": f"127.0.0.1:{next(ports)}",
            "role": ROLE_PREFILL,
            "host_id": "host",
            "transports": [TRANSPORT_GRPC],
        }
        prints: dict[str, Any] = {"model": "m", "page_tokens": 16, "kv_dtype": "float32"}
        for name, value in changed.items():
            (prints if name in prints else fields)[name] = value
        worker = pb.WorkerInfo(**fields)
        worker.fingerprint.MergeFrom(type(worker.fingerprint)(**prints))
        return worker

    return make


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Any]:
    """A redis-server that the test may kill and restart; not started yet."""
    path = Path(__file__).parents[1] / "state" / "redis_server.py"
    spec = importlib.util.spec_from_file_location("_redis_server", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.RedisServer(tmp_path)
    yield server
    server.stop()
