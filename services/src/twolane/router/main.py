"""Runs a router process: `twolane router`.

Reads the configuration, sets up logs and traces, serves until SIGTERM or SIGINT, and leaves nothing
behind.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import uvloop

from twolane.router.app import RouterApp
from twolane.router.config import RouterConfig
from twolane.telemetry.logs import configure_logging
from twolane.telemetry.process import stop_requested
from twolane.telemetry.tracing import configure_tracing, shutdown_tracing


async def serve(config: RouterConfig, stop: asyncio.Event | None = None) -> None:
    """Serves until `stop` is set; without one until the process is told to stop.

    Raises:
        ConfigError: the router can't start as configured.
    """
    stop = stop_requested() if stop is None else stop
    app = RouterApp(config)
    await app.start()
    try:
        await stop.wait()
    finally:
        await app.stop()


def main(argv: Sequence[str]) -> int:
    """Entry of `twolane router`; returns the exit status.

    Raises:
        ConfigError: the router can't start as configured.
    """
    config = RouterConfig.from_args(argv)
    configure_logging("router", config.log_level)
    configure_tracing("router", config.otlp_endpoint, config.otlp_sample_ratio)
    try:
        uvloop.run(serve(config))
    finally:
        shutdown_tracing()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
