"""Two revisions on one Redis: real books, real namespaces, no worker seen by the other side."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from tests.state.redis_server import RedisServer
from twolane.broker.config import BrokerConfig
from twolane.broker.main import make_state
from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.types_pb2 import ROLE_DECODE


async def test_brokers_of_two_revisions_do_not_see_each_other(tmp_path: Path) -> None:
    """What one revision's worker registers is in its own books alone."""
    server = RedisServer(tmp_path)
    server.start()
    try:
        async with contextlib.AsyncExitStack() as stack:
            states = {}
            for revision in ("r1", "r2"):
                args = ["--redis-url", server.url, "--redis-namespace", f"team/demo/{revision}"]
                states[revision] = make_state(BrokerConfig.from_args(args), time.time)
                stack.push_async_callback(states[revision].close)
            worker = WorkerInfo(worker_id="w", address="h:1", role=ROLE_DECODE)
            await states["r1"].register(worker, [], 30.0)
            assert [found.worker_id for found in await states["r1"].workers()] == ["w"]
            assert await states["r2"].workers() == []
    finally:
        server.stop()
