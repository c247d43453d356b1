"""One worker, put together: engine, queues, transfers, services, membership.

`main` builds and runs it; tests build it in their own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import operator
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from twolane.core.request import Lane, Role
from twolane.decode.admission import Admission
from twolane.decode.batch import DecodeBatch
from twolane.decode.intake import Intake
from twolane.engine.config import EngineConfig, LoadProgress
from twolane.engine.engine import Engine
from twolane.policies.decode import decode_by_name
from twolane.policies.registry import by_name
from twolane.policies.settings import PrefillSettings
from twolane.prefill.queue import PrefillQueue
from twolane.rpc.channel import open_channel
from twolane.rpc.convert import fingerprint_to_proto
from twolane.rpc.server import RpcServer
from twolane.rpc.tls import open_tls
from twolane.rpc.words import lane_to_proto, role_to_proto
from twolane.telemetry import metrics as telemetry_metrics
from twolane.telemetry.probes import ProbeServer
from twolane.transfer.landing import Landing
from twolane.transfer.metrics import TransferMetrics
from twolane.transfer.page_store import PageMemory, PageStore, host_id
from twolane.transfer.sender import Sender
from twolane.transfer.stream_server import StreamServer
from twolane.transfer.transports import InlineCodec, StreamCodec, TransportCodec, codecs
from twolane.v1 import broker_pb2, transfer_pb2, transfer_pb2_grpc, worker_pb2, worker_pb2_grpc
from twolane.worker.admission import Limits
from twolane.worker.assignment import Assignment
from twolane.worker.config import WorkerConfig
from twolane.worker.cost_meter import CostMeter
from twolane.worker.layer_push import LayerPush
from twolane.worker.leases import Leases
from twolane.worker.membership import Identity, Membership
from twolane.worker.metrics import WorkerMetrics
from twolane.worker.parity import ParityProbe
from twolane.worker.ranks import place, sharded_store
from twolane.worker.service import Books, PageTransferService, WorkerService, drain
from twolane.worker.step_log import StepLog
from twolane.worker.step_loop import StepLoop
from twolane.worker.table import Parts, RequestTable
from twolane.worker.wants import Wants

log = logging.getLogger(__name__)

MAX_BOUNDARY_TOKENS = 1024


def load_engine(config: WorkerConfig, store: PageStore) -> Engine:
    """Loads the model, its pages in the store unless a device has them; blocks, and logs how far it is."""
    on_host = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    shared = on_host and config.tensor_parallel_size == 1
    engine = Engine.load(
        EngineConfig(
            model_dir=config.model_dir,
            served_name=config.served_model_name,
            dtype=config.dtype,
            device=config.device,
            page_tokens=config.page_tokens,
            kv_memory_bytes=config.kv_memory_mib << 20,
            max_model_len=config.max_model_len,
            num_threads=config.num_threads,
            kv_buffer=store.allocate if shared else None,
            parallel=place(config),
        ),
        _log_progress,
    )
    if shared:
        store.divide(engine.pool.n_pages, engine.fingerprint.n_layers)
    return engine


def _log_progress(progress: LoadProgress) -> None:
    log.info(
        "loading: %s",
        progress.stage,
        extra={
            "stage": progress.stage,
            "done_bytes": progress.done_bytes,
            "total_bytes": progress.total_bytes,
            "elapsed_s": round(progress.elapsed_s, 3),
            "finished": progress.finished,
        },
    )


class WorkerProcess:
    """A worker with a loaded engine; `run` serves until it is told to stop."""

    def __init__(
        self,
        config: WorkerConfig,
        engine: Engine,
        store: PageStore,
        registry: CollectorRegistry = telemetry_metrics.registry,
    ) -> None:
        self._config = config
        self._engine = engine
        self._store = store
        self._metrics = WorkerMetrics(registry)
        self._transfers = TransferMetrics(registry)
        self._registry = registry
        self._tls = open_tls(config.tls_dir)
        if self._tls is not None:
            self._tls.watch_expiry(registry)
        self._rpc = RpcServer("worker", config.host, config.port, registry=registry, tls=self._tls)
        self._probes = ProbeServer(config.host, config.http_port, registry, self.why_not_ready)
        self._broker = open_channel(config.broker, self._tls, "broker")
        self.identity = Identity(config.worker_id, "")
        self.assignment = Assignment(Role(config.role), None if config.lane == "both" else Lane(config.lane))
        self._build_queues()
        self._build_transfers()
        self._membership = Membership(
            self._broker, self.identity, self._info, self._load, engine.pool, self.assignment.changed
        )

    def why_not_ready(self) -> str | None:
        """Why no traffic should come yet, or None."""
        if self._table.draining:
            return "draining"
        return None if self._membership.registered else f"not registered at the broker {self._config.broker}"

    async def run(self, stop: asyncio.Event, started: Callable[[dict[str, int]], None]) -> None:
        """Serves until `stop` is set, then drains.

        Args:
            stop: asks for the end.
            started: called with the bound ports once both listen.

        Raises:
            TwolaneError: a port is taken, the broker refuses this worker's model, or a part failed.
        """
        self._add_services()
        ports = {"grpc": await self._rpc.start(), "http": await self._probes.start()}
        self._name(ports["grpc"])
        await self._listen_for_pages()
        started(ports)
        stopped = asyncio.create_task(stop.wait(), name="stop")
        parts: set[asyncio.Task[Any]] = {
            asyncio.create_task(self._steps.run(), name="steps"),
            asyncio.create_task(self._membership.run(), name="membership"),
            asyncio.create_task(self._keep_leases(), name="leases"),
            asyncio.create_task(self._watch_readiness(), name="readiness"),
        }
        try:
            await asyncio.wait({stopped, *parts}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await self._rpc.set_ready(False)
                draining = drain(self._table, self._config.drain_timeout_s)
                # With a part that fails nothing moves any more.
                parts.add(asyncio.create_task(draining, name="drain"))
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._shut_down({*parts, stopped})

    async def _listen_for_pages(self) -> None:
        port = await self._streams.start(self._config.host, self._config.data_port)
        host = self.identity.address.rpartition(":")[0]
        self._leases.stream_address = f"{host}:{port}"

    def _build_queues(self) -> None:
        config, engine = self._config, self._engine
        settings = PrefillSettings(
            short_max_uncached_tokens=config.short_max_uncached_tokens,
            # Fitting may only raise it: on slow devices the knee lies at a few dozen tokens, and a prompt
            # that people call short would wait in the long lane.
            boundary_min_tokens=config.short_max_uncached_tokens,
            boundary_max_tokens=max(MAX_BOUNDARY_TOKENS, config.short_max_uncached_tokens),
            window_s=config.window_ms / 1000,
            long_chunk_tokens=config.long_chunk_tokens,
            max_batch_tokens=config.max_batch_tokens,
        )
        policy = by_name(config.scheduler, settings)
        prefill = PrefillQueue(policy, engine.pool, settings)
        decode_policy, longest = decode_by_name(config.decode_policy), engine.fingerprint.max_model_len
        admission = Admission(decode_policy, engine.pool, config.max_decode_rows, longest)
        self._parts = Parts(
            engine.pool,
            prefill,
            DecodeBatch(engine.pool, config.max_decode_rows),
            Intake(engine.pool, admission),
        )
        fingerprint = engine.fingerprint
        limits = Limits(fingerprint.vocab_size, fingerprint.max_model_len, config.max_waiting)
        self._table = RequestTable(self._parts, limits, time.monotonic, self._wake, self._metrics)
        self._meter = CostMeter()
        self._steps = StepLoop(engine, self._parts, self._table, time.monotonic, self._meter, self._metrics)
        if config.step_log_dir is not None:
            self._steps.log = StepLog(config.step_log_dir / f"{config.role}-{os.getpid()}.csv")

    def _build_transfers(self) -> None:
        fingerprint, table = self._engine.fingerprint, self._table
        memory, self._codecs = self._memory()
        self._landing = Landing(
            memory,
            self._codecs,
            time.monotonic,
            table.handed_over,
            table.transfer_failed,
            self._transfers,
        )
        self._streams = StreamServer(self._landing, self._tls)
        self._sender = Sender(
            memory,
            self._codecs,
            fingerprint.page_tokens,
            time.monotonic,
            table.landed,
            table.transfer_failed,
        )
        self._sender.metrics, self._sender.tls = self._transfers, self._tls
        min_bytes = round(self._config.layer_push_mib * (1 << 20))
        self._steps.layers = LayerPush(self._engine, self._sender, memory, min_bytes, fingerprint.page_tokens)
        announced = fingerprint_to_proto(fingerprint)
        self._leases = Leases(self._broker, self.identity, self._landing, announced, time.monotonic)
        self._leases.tls = self._tls
        self._wants = Wants(self.identity, self._tls, table.transfer_failed)
        table.sender, table.leases, table.wants = self._sender, self._leases, self._wants
        self._steps.hold_back = self._too_many_pinned
        idle = functools.partial(operator.not_, self._parts.prefill)
        self._probe = ParityProbe(self._config.parity_share, idle, table.submit, self._registry)
        table.open_session(self._probe.outbox)
        table.transferred = self._probe.finished

    def _memory(self) -> tuple[PageMemory, dict[transfer_pb2.Transport.ValueType, TransportCodec]]:
        """The pages as transfers see them, and the ways by which they can travel."""
        if self._engine.ranks is not None:
            # Heads of all ranks come together here first: no peer can read them where they lie.
            sharded = sharded_store(self._engine, self._engine.ranks)
            return sharded, {
                transfer_pb2.TRANSPORT_GRPC: InlineCodec(sharded),
                transfer_pb2.TRANSPORT_TCP: StreamCodec(sharded),
            }
        if self._engine.kv.is_cuda:
            # Only here: a worker on a CPU does without.
            from twolane.transfer.device_store import DeviceStore, device_codecs

            device = DeviceStore(self._engine.kv)
            return device, device_codecs(device)
        found = codecs(self._store)
        if self._config.nixl:
            from twolane.transfer.nixl_codec import NixlCodec

            found[transfer_pb2.TRANSPORT_NIXL] = NixlCodec(self._store)
        return self._store, found

    def _add_services(self) -> None:
        books = Books(self._engine.pool, self._table, self.identity, self.assignment)
        worker = WorkerService(
            self._table,
            self.identity,
            self._engine.fingerprint,
            self.assignment,
            self._load,
            lambda: books.inspect(self._landing.books() + self._sender.books()),
        )
        worker_pb2_grpc.add_WorkerServicer_to_server(worker, self._rpc.aio)
        pages = PageTransferService(
            self._table.offered, self._table.wanted, self._landing, self._engine.fingerprint
        )
        transfer_pb2_grpc.add_PageTransferServicer_to_server(pages, self._rpc.aio)
        self._rpc.add("twolane.v1.Worker", "twolane.v1.PageTransfer")

    def _name(self, port: int) -> None:
        host = self._config.advertise_host or self._config.host
        self.identity.address = f"{host}:{port}"
        self.identity.worker_id = self._config.worker_id or f"{socket.gethostname()}:{port}"

    def _wake(self) -> None:
        self._steps.wake()

    def _info(self) -> broker_pb2.WorkerInfo:
        return broker_pb2.WorkerInfo(
            worker_id=self.identity.worker_id,
            address=self.identity.address,
            role=role_to_proto(self.assignment.role),
            lane=lane_to_proto(self.assignment.lane),
            fingerprint=fingerprint_to_proto(self._engine.fingerprint),
            host_id=host_id(),
            transports=list(self._codecs),
            load=self._load(),
            draining=self._table.draining,
        )

    def _load(self) -> worker_pb2.Load:
        parts, pool = self._parts, self._engine.pool
        load = worker_pb2.Load(
            running=len(parts.decode),
            held_tokens=sum(len(each.tokens) for each in parts.decode.members()),
            free_pages=pool.free,
            total_pages=pool.n_pages,
            predicted_peak_pages=parts.decode.predicted_peak_pages(),
        )
        self._meter.fill(load)
        short = parts.prefill.waiting(Lane.SHORT, self._meter.prefill)
        long = parts.prefill.waiting(Lane.LONG, self._meter.prefill)
        load.waiting_short, load.waiting_short_s = short.prompts, short.seconds
        load.waiting_long, load.waiting_long_s = long.prompts, long.seconds
        load.waiting_tokens = short.tokens + long.tokens
        load.boundary_tokens = parts.prefill.boundary_tokens
        self._metrics.observe_load(load, pool.cached, pool.page_tokens)
        self._metrics.waiting_for_pages.set(parts.intake.waiting)
        self._transfers.pinned_pages.set(self._sender.pinned_pages())
        return load

    def _too_many_pinned(self) -> bool:
        return self._sender.waiting_pages() > self._config.max_pinned_share * self._engine.pool.n_pages

    async def _keep_leases(self) -> None:
        await self._leases.keep_alive(self._table.lease_expired)

    async def _watch_readiness(self) -> None:
        ready = False
        while True:
            if (now_ready := self.why_not_ready() is None) != ready:
                ready = now_ready
                await self._rpc.set_ready(ready)
            await asyncio.sleep(0.1)

    async def _shut_down(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                log.error("stopping: %s", error)
        failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._membership.leave()
        await self._wants.close()
        await self._leases.close()
        await self._sender.close()
        await self._streams.stop()
        await self._rpc.stop(1.0)
        await self._probes.stop()
        await self._broker.close()
        self._store.close()
        with contextlib.suppress(StopIteration):
            raise next(error for error in failed if error is not None)
