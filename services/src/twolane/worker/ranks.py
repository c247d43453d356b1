"""The ranks of a tensor-parallel worker: rank 0 starts the others on its host unless somebody does.

`main` asks for the settings of a rank, starts its companions, and runs the ranks that only follow. If one
ends, all end: rank 0 sees its children end, and every rank watches the others (`engine.meeting`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import torch

from twolane.core.errors import ConfigError
from twolane.engine.engine import Engine
from twolane.engine.meeting import end_process
from twolane.engine.parallel import Ranks
from twolane.engine.parallel_settings import TensorParallel
from twolane.telemetry import metrics
from twolane.telemetry.probes import ProbeServer
from twolane.telemetry.process import LAUNCHER_FD, write_port_file
from twolane.transfer.device_store import DeviceStore
from twolane.transfer.sharded_store import ShardedStore, ShardServer
from twolane.worker.config import WorkerConfig

log = logging.getLogger(__name__)

LOCAL = "127.0.0.1"
STOP_TIMEOUT_S = 20.0


def place(config: WorkerConfig) -> TensorParallel | None:
    """This process's rank, or None without tensor parallelism."""
    if config.tensor_parallel_size == 1:
        return None
    return TensorParallel(
        config.tensor_parallel_rank or 0,
        config.tensor_parallel_size,
        config.tensor_parallel_address,
        config.tensor_parallel_timeout_s,
    )


def settle(config: WorkerConfig) -> WorkerConfig:
    """The settings of rank 0 where it starts the others: address, device, its share of threads.

    Raises:
        ConfigError: there are fewer GPUs than ranks.
    """
    size = config.tensor_parallel_size
    if size == 1 or config.tensor_parallel_rank is not None:
        return config
    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    if on_gpu and torch.cuda.device_count() < size:
        raise ConfigError(
            f"--tensor-parallel-size {size} needs as many GPUs, this host has {torch.cuda.device_count()}; "
            "start ranks one by one on several hosts with --tensor-parallel-rank"
        )
    threads = config.num_threads or max(1, (os.cpu_count() or 1) // size)
    changed = {
        "tensor_parallel_address": config.tensor_parallel_address or _free_address(),
        "device": "cuda:0" if on_gpu else config.device,
        "num_threads": config.num_threads if on_gpu else threads,
    }
    return config.model_copy(update=changed)


@contextlib.contextmanager
def companions(config: WorkerConfig) -> Iterator[None]:
    """Runs ranks 1 and up as processes of this host, where this one is to start them; `config` is settled.

    They end with this process, however it ends; this process ends at once when one of them does.
    """
    if config.tensor_parallel_size == 1 or config.tensor_parallel_rank is not None:
        yield
        return
    read_end, write_end = os.pipe()
    closing = threading.Event()
    children = [_start(config, rank, read_end) for rank in range(1, config.tensor_parallel_size)]
    for rank, child in enumerate(children, 1):
        threading.Thread(target=_watch, args=(rank, child, closing), daemon=True, name="rank-child").start()
    try:
        yield
    finally:
        closing.set()
        os.close(read_end)
        # Without a launcher they stop.
        os.close(write_end)
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_TIMEOUT_S)
            if child.poll() is None:
                child.kill()


def sharded_store(engine: Engine, ranks: Ranks) -> ShardedStore:
    """All ranks' pages as one memory, on rank 0."""
    others = range(1, ranks.shard.size)
    places = [ranks.meeting.wait_for(f"shard/{rank}", ranks.timeout_s) for rank in others]
    return ShardedStore(DeviceStore(engine.kv), places, lambda: ranks.completed.steps, ranks.timeout_s)


async def follow(config: WorkerConfig, engine: Engine, stop: asyncio.Event) -> None:
    """Computes what rank 0 says until that ends; serves probes, and this rank's pages to rank 0.

    A wish to stop is passed on to rank 0, which lets requests end first.

    Raises:
        ConfigError: the port of the probes is taken.
    """
    ranks = engine.ranks
    assert ranks is not None
    host = _reachable(config)
    server = ShardServer(DeviceStore(engine.kv), host, ranks.completed.wait_for, ranks.timeout_s)
    probes = ProbeServer(config.host, config.http_port, metrics.registry, lambda: None)
    ports = {"http": await probes.start()}
    ranks.meeting.put(f"shard/{ranks.shard.rank}", server.place)
    log.info("following", extra={"rank": ranks.shard.rank, "ports": ports})
    if config.port_file is not None:
        write_port_file(config.port_file, ports)
    following = asyncio.create_task(asyncio.to_thread(engine.follow), name="follow")
    asked = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({following, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not following.done():
            await asyncio.to_thread(ranks.meeting.request_stop)
        await following
        await asyncio.to_thread(engine.close)
    finally:
        asked.cancel()
        server.close()
        await probes.stop()


def _watch(rank: int, child: subprocess.Popen[bytes], closing: threading.Event) -> None:
    status = child.wait()
    if not closing.is_set():
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        end_process(f"tensor-parallel rank {rank} ended {how}; its own lines say why")


def _start(config: WorkerConfig, rank: int, launcher_fd: int) -> subprocess.Popen[bytes]:
    device = f"cuda:{rank}" if config.device.startswith("cuda") else config.device
    own = {"tensor_parallel_rank": rank, "device": device, "http_port": 0, "port_file": None}
    prefix = f"TWOLANE_{WorkerConfig.process.upper()}_"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefix)}
    environment[LAUNCHER_FD] = str(launcher_fd)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "twolane.cli.main", "worker", *arguments(config.model_copy(update=own))],
        stdin=subprocess.DEVNULL,
        env=environment,
        pass_fds=(launcher_fd,),
        process_group=0,
    )


def arguments(config: WorkerConfig) -> list[str]:
    """The command line that gives these settings."""
    words = []
    for name, value in config.model_dump(mode="json").items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None and value != "":
            words.append(f"--{flag}={value}")
    return words


def _free_address() -> str:
    with socket.socket() as free:
        free.bind((LOCAL, 0))
        return f"{LOCAL}:{free.getsockname()[1]}"


def _reachable(config: WorkerConfig) -> str:
    """An address of this host that rank 0 can reach: the one by which this host reaches rank 0."""
    host, _, port = config.tensor_parallel_address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), config.tensor_parallel_timeout_s) as probe:
        return str(probe.getsockname()[0])
