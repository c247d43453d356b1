"""Run as a program: serves one call under tracing and makes it; prints what it saw as JSON.

Arguments: the collector's endpoint ("" for none) and the share of traces to record.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from twolane.broker.config import BrokerConfig
from twolane.broker.main import Broker
from twolane.rpc.channel import open_channel
from twolane.telemetry.tracing import (
    configure_tracing,
    current_traceparent,
    shutdown_tracing,
    start_span,
    tracing_enabled,
)
from twolane.v1 import broker_pb2 as pb
from twolane.v1.broker_pb2_grpc import BrokerStub

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def run(endpoint: str, ratio: float) -> dict[str, Any]:
    """One span with a parent by text, around one unary and one streaming call."""
    configure_tracing("test", endpoint, ratio)
    config = BrokerConfig(port=0, http_port=0, settle_s=0.0, stop_grace_s=0.5)
    broker = Broker(config)
    await broker.start()
    channel = open_channel(f"127.0.0.1:{broker.ports['grpc']}")
    stub: Any = BrokerStub(channel)
    with start_span("outer", PARENT, {"twolane.lane": "short"}):
        inside = current_traceparent()
        with start_span("inner"):
            await stub.Inspect(pb.BrokerInspectRequest())
            watch = stub.Watch(pb.WatchRequest())
            await anext(aiter(watch))
            watch.cancel()
    with start_span("malformed", "not a traceparent"):
        malformed = current_traceparent()
    try:
        with start_span("failing", PARENT):
            raise ValueError("why it failed")
    except ValueError:
        pass
    await channel.close()
    await broker.stop()
    shutdown_tracing()
    return {
        "enabled": tracing_enabled(),
        "inside": inside,
        "malformed": malformed,
        "outside": current_traceparent(),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1], float(sys.argv[2])))))
