"""The gRPC server that every process listens with: limits, health, reflection, errors, traces.

A process makes one RpcServer, adds its servicers to `.aio`, names them with `add`, and starts it.
Servicers raise TwolaneError; streams are async generators.
"""

from __future__ import annotations

import asyncio
import logging

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from twolane.core.errors import ConfigError
from twolane.rpc.interceptors import ErrorInterceptor, TracingInterceptor
from twolane.rpc.options import SERVER_OPTIONS
from twolane.rpc.tls import Tls
from twolane.telemetry import metrics
from twolane.telemetry.tracing import tracing_enabled

log = logging.getLogger(__name__)

LIVENESS, READINESS = "liveness", "readiness"
"""Health services for probes; every served service reports what readiness reports."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class RpcServer:
    """One process's gRPC server.

    Attributes:
        aio: the grpc.aio server to add servicers to before `start`.
        port: the bound port once started; the one asked for before.
    """

    def __init__(
        self,
        process: str,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry = metrics.registry,
        tls: Tls | None = None,
    ) -> None:
        """Call it after `configure_tracing`: whether calls are traced is decided here.

        With `tls` plain text is refused, and so is, when it is mutual, every caller of another deployment.
        """
        errors = ErrorInterceptor(registry, tls)
        interceptors = [TracingInterceptor(), errors] if tracing_enabled() else [errors]
        self.aio: grpc.aio.Server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        self.port = port
        self._process = process
        self._host = host
        self._tls = tls
        self._services: list[str] = []
        self._health = health.aio.HealthServicer()
        self._stopped = False
        self._following: asyncio.Task[None] | None = None

    def add(self, *services: str) -> None:
        """Names served services ("twolane.v1.Broker") for health and reflection, before `start`."""
        self._services.extend(services)

    async def start(self) -> int:
        """Listens and returns the bound port; live at once, ready only after `set_ready(True)`.

        Raises:
            ConfigError: the address can't be bound.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.aio)
        names = [*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self.aio)
        await self._health.set(LIVENESS, _SERVING)
        await self.set_ready(False)
        try:
            # An IPv6 address needs brackets before its port.
            host = f"[{self._host}]" if ":" in self._host and self._host[0] != "[" else self._host
            self.port = self._bind(f"{host}:{self.port}")
        except RuntimeError as error:
            await self.stop(0.0)
            raise ConfigError(
                f"{self._process} can't listen for gRPC on {self._host}:{self.port}; "
                "choose another port, or 0 for any free one",
                param="port",
            ) from error
        await self.aio.start()
        if self._tls is not None:
            self._following = asyncio.create_task(self._tls.follow(), name="certificates")
        return self.port

    def _bind(self, address: str) -> int:
        if self._tls is None:
            return self.aio.add_insecure_port(address)
        return self.aio.add_secure_port(address, self._tls.server_credentials())

    async def set_ready(self, ready: bool) -> None:
        """Tells health watchers whether new traffic may come."""
        status = _SERVING if ready else _NOT_SERVING
        for service in ("", READINESS, *self._services):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, waits up to `grace_s` for running ones, cancels the rest. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._following is not None:
            self._following.cancel()
        await self._health.enter_graceful_shutdown()
        await self.aio.stop(grace_s)
