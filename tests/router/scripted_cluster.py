"""A broker that says what a test wants, scripted workers, and a real router in front of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry

from tests.router.scripted_worker import ScriptedWorker
from tests.router.tiny_model import MAX_MODEL_LEN
from twolane.core.model import ModelFingerprint
from twolane.router.app import RouterApp
from twolane.router.config import RouterConfig
from twolane.router.model_folder import read_model_folder
from twolane.router.tokenizer import Tokenizer
from twolane.rpc.server import RpcServer
from twolane.v1 import broker_pb2, broker_pb2_grpc, types_pb2, worker_pb2

DEADLINE_S = 10.0
ANSWER = "the quick brown fox jumps over the lazy dog. 今日は 🙂! done"


class ScriptedBroker(broker_pb2_grpc.BrokerServicer):
    """Serves Watch: a snapshot of what was published, then every change."""

    def __init__(self, port: int = 0) -> None:
        self._server = RpcServer("broker", "127.0.0.1", port, registry=CollectorRegistry())
        broker_pb2_grpc.add_BrokerServicer_to_server(self, self._server.aio)
        self.workers: dict[str, broker_pb2.WorkerInfo] = {}
        self._watchers: list[asyncio.Queue[broker_pb2.ClusterEvent]] = []

    async def start(self) -> int:
        """Listens; returns the port."""
        return await self._server.start()

    async def stop(self) -> None:
        """Breaks every watch."""
        await self._server.stop(0)

    def publish(self, event: broker_pb2.ClusterEvent) -> None:
        """Tells every watcher."""
        for info in event.workers:
            self.workers[info.worker_id] = info
        for worker_id in event.gone:
            self.workers.pop(worker_id, None)
        for watcher in self._watchers:
            watcher.put_nowait(event)

    async def Watch(
        self, request: broker_pb2.WatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[broker_pb2.ClusterEvent]:
        """The contract's stream."""
        del request, context
        queue: asyncio.Queue[broker_pb2.ClusterEvent] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            yield broker_pb2.ClusterEvent(snapshot=True, workers=list(self.workers.values()))
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)


def tiny_fingerprint(model_dir: Path) -> ModelFingerprint:
    """What a worker of the tiny model announces."""
    return ModelFingerprint(
        model=model_dir.name,
        architecture="LlamaForCausalLM",
        vocab_size=read_model_folder(model_dir).vocab_size,
        tokenizer_sha256=hashlib.sha256((model_dir / "tokenizer.json").read_bytes()).hexdigest(),
        weights_sha256="0" * 64,
        n_layers=2,
        n_kv_heads=2,
        head_dim=8,
        page_tokens=4,
        kv_dtype="float32",
        max_model_len=MAX_MODEL_LEN,
    )


@dataclass
class ScriptedCluster:
    """Everything around one router."""

    model_dir: Path
    broker: ScriptedBroker
    app: RouterApp
    tokenizer: Tokenizer
    registry: CollectorRegistry
    workers: dict[str, ScriptedWorker] = field(default_factory=dict)
    answer: str = ANSWER

    @property
    def url(self) -> str:
        """Where the router's HTTP is."""
        return f"http://127.0.0.1:{self.app.port}"

    def script(self, submit: worker_pb2.Submit) -> list[int]:
        """The answer's tokens, the same for every prompt."""
        del submit
        return self.tokenizer.encode(self.answer, add_special_tokens=False)

    async def add_worker(
        self, worker_id: str, role: types_pb2.Role.ValueType, **changes: Any
    ) -> ScriptedWorker:
        """Starts a worker and tells the broker."""
        fingerprint = changes.pop("fingerprint", tiny_fingerprint(self.model_dir))
        worker = ScriptedWorker(  # type: ignore[abstract] # serves Session alone
            worker_id, role, fingerprint, self.script, peers=self.workers, **changes
        )
        self.workers[worker_id] = worker
        await worker.start()
        self.broker.publish(broker_pb2.ClusterEvent(workers=[worker.info()]))
        return worker

    async def add_pair(self) -> tuple[ScriptedWorker, ScriptedWorker]:
        """A prefill and a decode worker; the router is ready when this returns."""
        prefill = await self.add_worker("p0", types_pb2.ROLE_PREFILL)
        decode = await self.add_worker("d0", types_pb2.ROLE_DECODE)
        await self.until(lambda: self.app.cluster.not_ready() is None)
        return prefill, decode

    async def add_mixed(self) -> ScriptedWorker:
        """One worker for everything; the router is ready when this returns."""
        worker = await self.add_worker("m0", types_pb2.ROLE_MIXED)
        await self.until(lambda: self.app.cluster.not_ready() is None)
        return worker

    async def until(self, holds: Callable[[], bool]) -> None:
        """Returns when the condition holds; fails after a deadline."""
        # The condition can be anything that a test sees, so nobody could set an event for it.
        async with asyncio.timeout(DEADLINE_S):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Stops everything."""
        await self.app.stop()
        await asyncio.gather(*(worker.stop() for worker in self.workers.values()))
        await self.broker.stop()


async def start_cluster(model_dir: Path, **settings: Any) -> ScriptedCluster:
    """A broker and a router without workers yet; `settings` are fields of RouterConfig."""
    broker = ScriptedBroker()  # type: ignore[abstract] # serves Watch alone
    port = await broker.start()
    defaults = {"port": 0, "grpc_port": 0, "drain_timeout_s": 0.0, "tokenizer_threads": 1}
    config = RouterConfig(
        model_dir=model_dir,
        broker=f"127.0.0.1:{port}",
        **(defaults | settings),
    )
    registry = CollectorRegistry()
    app = RouterApp(config, registry)
    await app.start()
    return ScriptedCluster(model_dir, broker, app, Tokenizer(model_dir, 1), registry)
