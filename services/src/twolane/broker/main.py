"""The broker as a process: assembles state, upkeep, gRPC and probes; ends on SIGTERM or SIGINT.

`twolane broker` calls `main`; tests start a Broker inside their own loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import uuid
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

# Before anything that imports gRPC: it quiets gRPC's C core.
import twolane.telemetry  # noqa: F401
from twolane.broker.config import BrokerConfig
from twolane.broker.metrics import BrokerMetrics
from twolane.broker.role_control import RoleControl
from twolane.broker.service import BrokerService
from twolane.broker.upkeep import Upkeep
from twolane.core.clock import Clock
from twolane.core.errors import ConfigError
from twolane.rpc.server import RpcServer
from twolane.rpc.tls import open_tls
from twolane.state.contract import BrokerState
from twolane.state.memory import MemoryState
from twolane.state.redis import NAMESPACE, RedisState
from twolane.telemetry import metrics
from twolane.telemetry.logs import configure_logging
from twolane.telemetry.probes import ProbeServer
from twolane.telemetry.process import stop_requested, write_port_file
from twolane.telemetry.tracing import configure_tracing, shutdown_tracing
from twolane.v1.broker_pb2_grpc import add_BrokerServicer_to_server

log = logging.getLogger(__name__)

SERVICE = "twolane.v1.Broker"


def make_state(config: BrokerConfig, clock: Clock) -> BrokerState:
    """The state the configuration names: Redis, or this process's memory."""
    if config.redis_url:
        # Braces: in a Redis cluster all keys of one deployment must lie on one node.
        namespace = f"{{{config.redis_namespace}}}" if config.redis_namespace else NAMESPACE
        return RedisState(config.redis_url, namespace=namespace, timeout_s=config.redis_timeout_s)
    return MemoryState(clock, first_number=time.time_ns() // 1000)


class Broker:
    """One broker inside a running event loop.

    Attributes:
        ports: bound ports, "grpc" and "http", once started.
        upkeep: the loops' single steps, for tests that own the clock.
    """

    def __init__(
        self,
        config: BrokerConfig,
        *,
        state: BrokerState | None = None,
        clock: Clock = time.monotonic,
        registry: CollectorRegistry = metrics.registry,
    ) -> None:
        self.ports: dict[str, int] = {}
        self._config = config
        self._state = state if state is not None else make_state(config, clock)
        counts = BrokerMetrics(registry)
        self.upkeep = Upkeep(config, self._state, counts, clock)
        tls = open_tls(config.tls_dir)
        if tls is not None:
            tls.watch_expiry(registry)
        self._rpc = RpcServer(config.process, config.host, config.port, registry=registry, tls=tls)
        service = BrokerService(config, self._state, self.upkeep, counts)
        add_BrokerServicer_to_server(service, self._rpc.aio)
        self._rpc.add(SERVICE)
        self._probes = ProbeServer(config.host, config.http_port, registry, self.not_ready)
        self._roles = RoleControl(config, self._state, counts, clock, name=f"{uuid.uuid4()}")
        self._roles.tls = tls
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def not_ready(self) -> str | None:
        """Why no traffic should come, or None."""
        return "the broker stops" if self._stopping else self.upkeep.trouble()

    async def start(self) -> None:
        """Listens and begins the upkeep.

        Raises:
            ConfigError: an address can't be bound.
        """
        self.ports = {"grpc": await self._rpc.start()}
        try:
            self.ports["http"] = await self._probes.start()
        except ConfigError:
            await self._rpc.stop(0.0)
            raise
        # Redis remembers over a restart of the broker: there is nobody to wait for.
        settle_s = 0.0 if self._config.redis_url else self._config.settle_s
        self._tasks = [
            asyncio.create_task(self.upkeep.follow_forever(), name="broker-follow"),
            asyncio.create_task(self.upkeep.settle(settle_s), name="broker-settle"),
            asyncio.create_task(self.upkeep.sweep_forever(), name="broker-sweep"),
            asyncio.create_task(self._report_readiness(), name="broker-readiness"),
        ]
        if self._config.role_control:
            self._tasks.append(asyncio.create_task(self._roles.run_forever(), name="broker-roles"))

    async def stop(self) -> None:
        """Ends watches, lets running calls end within the grace, frees everything."""
        self._stopping = True
        await self._rpc.set_ready(False)
        self.upkeep.watchers.close()
        await self._rpc.stop(self._config.stop_grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._probes.stop()
        await self._state.close()

    async def _report_readiness(self) -> None:
        shown = False
        while True:
            ready = self.not_ready() is None
            if ready != shown:
                shown = ready
                await self._rpc.set_ready(ready)
            await asyncio.sleep(0.1)


async def serve(config: BrokerConfig) -> None:
    """Runs a broker until SIGTERM or SIGINT.

    Raises:
        ConfigError: an address can't be bound, or the port file can't be written.
    """
    configure_logging(config.process, config.log_level)
    configure_tracing(config.process, config.otlp_endpoint, config.otlp_sample_ratio)
    stop = stop_requested()
    broker = Broker(config)
    try:
        await broker.start()
        if config.port_file:
            write_port_file(config.port_file, broker.ports)
        log.info(
            "listening", extra={"ports": broker.ports, "state": "redis" if config.redis_url else "memory"}
        )
        await stop.wait()
        log.info("stopping")
    finally:
        await broker.stop()
        shutdown_tracing()
    log.info("stopped")


def main(argv: Sequence[str]) -> int:
    """Runs a broker with these flags; returns the process's exit status (2: bad configuration)."""
    try:
        asyncio.run(serve(BrokerConfig.from_args(argv)))
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
