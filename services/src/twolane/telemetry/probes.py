"""A small HTTP server beside every gRPC process: /healthz, /readyz and /metrics.

Kubernetes probes and Prometheus call it; broker and workers start it, the router serves the same
paths on its own HTTP port.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from twolane.core.errors import ConfigError

log = logging.getLogger(__name__)


class ProbeServer:
    """Serves probes and metrics of one process.

    Attributes:
        port: the bound port once started; the one asked for before.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], str | None]
    ) -> None:
        """`ready` returns None, or the reason why no traffic should come; it must not block."""
        self._host = host
        self.port = port
        self._registry = registry
        self._ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listens and returns the bound port.

        Raises:
            ConfigError: the address can't be bound.
        """
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self.port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"can't listen for HTTP on {self._host}:{self.port}: {error.strerror or error}; "
                "choose another http port, or 0 for any free one",
                param="http_port",
            ) from error
        self._runner = runner
        self.port = int(runner.addresses[0][1])
        return self.port

    async def stop(self) -> None:
        """Closes the server; harmless when it never started."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        try:
            reason = self._ready()
        except Exception:
            log.exception("readiness check failed")
            reason = "the readiness check failed; see the log"
        if reason is None:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"{reason}\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})
