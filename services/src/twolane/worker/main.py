"""Starts a worker process: `twolane worker`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import uvloop

from twolane.rpc.tls import open_tls
from twolane.telemetry.logs import configure_logging
from twolane.telemetry.process import stop_requested, write_port_file
from twolane.telemetry.tracing import configure_tracing, shutdown_tracing
from twolane.transfer.page_store import PageStore
from twolane.worker.config import WorkerConfig
from twolane.worker.process import WorkerProcess, load_engine
from twolane.worker.ranks import companions, follow, settle

log = logging.getLogger(__name__)


async def serve(config: WorkerConfig) -> None:
    """Loads the model and serves until SIGTERM or SIGINT.

    Raises:
        TwolaneError: the model can't be loaded, a port is taken, or the broker refuses this worker.
    """
    stop = stop_requested()
    # Read again later: what is wrong with it must show now, and not after minutes of loading.
    open_tls(config.tls_dir)
    config = settle(config)
    with companions(config):
        await _serve_rank(config, stop)


async def _serve_rank(config: WorkerConfig, stop: asyncio.Event) -> None:
    store = PageStore()
    loading = asyncio.create_task(asyncio.to_thread(load_engine, config, store))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopped}, return_when=asyncio.FIRST_COMPLETED)
    engine = await loading
    stopped.cancel()
    if engine.ranks is not None and not engine.ranks.is_first:
        # A wish to stop is rank 0's to fulfil, even one that came this early.
        await follow(config, engine, stop)
        return
    if stop.is_set():
        await asyncio.to_thread(engine.close)
        return
    if engine.ranks is not None:
        loop = asyncio.get_running_loop()
        engine.ranks.meeting.on_stop = lambda: _ask(loop, stop)
    worker = WorkerProcess(config, engine, store)

    def started(ports: dict[str, int]) -> None:
        worker_id = worker.identity.worker_id
        log.info("listening", extra={"ports": ports, "role": config.role, "worker_id": worker_id})
        if config.port_file is not None:
            write_port_file(config.port_file, ports)

    await worker.run(stop, started)
    await asyncio.to_thread(engine.close)


def _ask(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    loop.call_soon_threadsafe(stop.set)


def main(argv: Sequence[str]) -> int:
    """Runs a worker; returns the exit status."""
    config = WorkerConfig.from_args(argv)
    rank = config.tensor_parallel_rank
    configure_logging(f"worker-rank{rank}" if rank else "worker", config.log_level)
    configure_tracing("worker", config.otlp_endpoint, config.otlp_sample_ratio)
    try:
        uvloop.run(serve(config))
    finally:
        shutdown_tracing()
    return 0
