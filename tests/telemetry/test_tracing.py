"""Spans reach a real OTLP collector with the right parents; without one nothing is recorded."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from twolane.core.errors import ConfigError
from twolane.telemetry.tracing import configure_tracing, current_traceparent, start_span, tracing_enabled

PROGRAM = Path(__file__).with_name("traced_program.py")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.services: set[str] = set()

    async def Export(self, request: Any, context: Any) -> Any:
        """Takes a batch."""
        for resource in request.resource_spans:
            for attribute in resource.resource.attributes:
                if attribute.key == "service.name":
                    self.services.add(attribute.value.string_value)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[f"{span.name}/{span.kind}"] = span
        return trace_service_pb2.ExportTraceServiceResponse()


async def run_program(endpoint: str, ratio: str) -> dict[str, Any]:
    """Runs the traced program in a process of its own: a tracer provider can't be taken back."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        endpoint,
        ratio,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    answer: dict[str, Any] = json.loads(output)
    return answer


async def test_spans_of_client_and_server_form_one_trace() -> None:
    """Parent by text, then inner, then the client's and the server's span of the unary call."""
    collector = Collector()
    server = grpc.aio.server()
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    answer = await run_program(f"http://127.0.0.1:{port}", "0.0")
    await server.stop(0.0)
    spans = collector.spans
    internal, serving, calling = 1, 2, 3
    outer, inner = spans[f"outer/{internal}"], spans[f"inner/{internal}"]
    called = spans[f"/twolane.v1.Broker/Inspect/{calling}"]
    served = spans[f"/twolane.v1.Broker/Inspect/{serving}"]
    assert {span.trace_id.hex() for span in (outer, inner, called, served)} == {TRACE_ID}
    assert outer.parent_span_id.hex() == PARENT_ID
    assert inner.parent_span_id == outer.span_id
    assert called.parent_span_id == inner.span_id
    assert served.parent_span_id == called.span_id
    assert answer["inside"] == f"00-{TRACE_ID}-{outer.span_id.hex()}-01"
    assert [(a.key, a.value.string_value) for a in outer.attributes] == [("twolane.lane", "short")]
    assert "why it failed" in spans[f"failing/{internal}"].status.message
    assert collector.services == {"twolane-test"}
    # The caller's decision wins over our ratio of 0; what begins here is not recorded.
    assert f"malformed/{internal}" not in spans
    assert not any(name == f"/twolane.v1.Broker/Watch/{serving}" for name in spans)
    assert answer["enabled"] is True
    assert answer["outside"] == ""


async def test_without_an_endpoint_the_parent_still_travels() -> None:
    """Nothing is recorded, yet a caller's trace is not cut at this process."""
    answer = await run_program("", "1.0")
    assert answer["enabled"] is False
    assert answer["inside"] == PARENT
    assert (answer["malformed"], answer["outside"]) == ("", "")


def test_spans_cost_nothing_when_tracing_is_off() -> None:
    """The block gets a span that ignores everything; exceptions pass."""
    assert not tracing_enabled()
    with start_span("x", attributes={"a": 1}) as span:
        assert not span.is_recording()
        assert current_traceparent() == ""
    with pytest.raises(KeyError), start_span("x"):
        raise KeyError


def test_a_ratio_outside_zero_to_one_is_refused() -> None:
    """Before anything is set up."""
    with pytest.raises(ConfigError, match=r"1\.5"):
        configure_tracing("test", "http://127.0.0.1:1", 1.5)
