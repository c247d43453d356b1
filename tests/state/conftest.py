"""Both state adapters behind one fixture, so that one suite checks the contract of both."""

from __future__ import annotations

import asyncio
import importlib.util
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from twolane.state.contract import BrokerState
from twolane.state.memory import MemoryState
from twolane.state.redis import RedisState
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import TRANSPORT_GRPC
from twolane.v1.types_pb2 import ROLE_PREFILL

DEADLINE_S = 20.0


def _redis_server_class() -> Any:
    spec = importlib.util.spec_from_file_location(
        "_redis_server", Path(__file__).with_name("redis_server.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RedisServer


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One redis-server for all tests that do not stop it."""
    server = _redis_server_class()(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Any]:
    """A redis-server that the test may kill and restart; not started yet."""
    server = _redis_server_class()(tmp_path)
    yield server
    server.stop()


class ManualClock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Store:
    """An adapter and how its time passes.

    Attributes:
        state: the adapter.
        short_ttl_s: a time to live that ends soon.
        let_pass: makes a little time pass.
    """

    state: BrokerState
    short_ttl_s: float
    let_pass: Callable[[], Awaitable[None]]

    async def until(self, reached: Callable[[], Awaitable[bool]]) -> None:
        """Lets time pass until `reached` is true; fails at a deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while not await reached():
            assert time.monotonic() < deadline, "not reached in time"
            await self.let_pass()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each adapter in turn, empty; the feed keeps few entries."""
    if request.param == "memory":
        clock = ManualClock()

        async def advance() -> None:
            clock.now_s += 1.0

        yield Store(MemoryState(clock, feed_limit=200), 3.0, advance)
        return

    async def wait() -> None:
        await asyncio.sleep(0.01)

    server = request.getfixturevalue("shared_redis")
    state = RedisState(server.url, namespace="{" + uuid.uuid4().hex + "}", feed_limit=200)
    yield Store(state, 0.05, wait)
    await state.close()


@pytest.fixture
def make_worker() -> Callable[..., WorkerInfo]:
    """Builds a prefill worker of model "m"; keyword arguments replace fields."""

    def make(worker_id: str, **changed: Any) -> WorkerInfo:
        worker = WorkerInfo(
            worker_id=worker_id,
            address=f"{worker_id}:9100",
            role=ROLE_PREFILL,
            host_id="host",
            transports=[TRANSPORT_GRPC],
        )
        worker.fingerprint.model = "m"
        worker.fingerprint.page_tokens = 16
        for name, value in changed.items():
            if name in ("model", "page_tokens"):
                setattr(worker.fingerprint, name, value)
            else:
                setattr(worker, name, value)
        return worker

    return make
