"""One request is one trace over all four processes, received by a real OTLP collector service."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import openai
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

from tests.e2e.conftest import Product, eventually

PROCESSES = {"twolane-router", "twolane-worker", "twolane-broker"}


class Collector(pb_grpc.TraceServiceServicer):
    """Keeps spans by trace: (service, span name, request id)."""

    def __init__(self) -> None:
        self.traces: dict[bytes, set[tuple[str, str]]] = defaultdict(set)
        self.server = grpc.server(ThreadPoolExecutor(2))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        pb_grpc.add_TraceServiceServicer_to_server(self, self.server)  # type: ignore[no-untyped-call]

    def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:
        """Takes spans."""
        for resource in request.resource_spans:
            service = next(
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            )
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.traces[span.trace_id].add((service, span.name))
        return pb.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A listening collector."""
    made = Collector()
    made.server.start()
    yield made
    made.server.stop(0).wait(5)


def test_one_trace_joins_all_processes(new_product: Callable[..., Product], collector: Collector) -> None:
    """Router, both workers and the broker's lease show up under the trace the client began."""
    endpoint = f"http://127.0.0.1:{collector.port}"
    names = ("ROUTER", "WORKER", "BROKER")
    product = new_product(**{f"TWOLANE_{name}_OTLP_ENDPOINT": endpoint for name in names})
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    product.client().chat.completions.create(
        model="twolane-demo",
        messages=[{"role": "user", "content": "Hello!"}],
        max_completion_tokens=8,
        extra_body={"ignore_eos": True},
        extra_headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-request-id": "trace-me"},
    )

    parts = {"worker.prefill", "worker.transfer", "worker.receive", "worker.decode"}

    def joined() -> bool:
        spans = collector.traces[bytes.fromhex(trace_id)]
        return {service for service, _ in spans} >= PROCESSES and {name for _, name in spans} >= parts

    # Each process sends its spans every few seconds.
    eventually(joined, deadline_s=30)


def test_logs_are_json_and_carry_the_request_id(new_product: Callable[..., Product]) -> None:
    """A failed request can be followed by its id over the processes' logs."""
    product = new_product(TWOLANE_ROUTER_REQUEST_TIMEOUT_S="0.3")
    with pytest.raises(openai.APIStatusError):
        product.client().chat.completions.create(
            model="twolane-demo",
            messages=[{"role": "user", "content": "Hello!"}],
            max_completion_tokens=5000,
            extra_body={"ignore_eos": True},
            extra_headers={"x-request-id": "follow-me"},
        )

    def lines(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in product.log(name).splitlines() if line.endswith("}")]

    def ids() -> set[str]:
        found = [line for line in lines("router") if line.get("client_request_id") == "follow-me"]
        return {line["request_id"] for line in found if "request_id" in line}

    # A process writes its line when its part is over, which may be after the answer.
    eventually(lambda: len(ids()) == 1)
    (request_id,) = ids()
    for name in ("prefill-0", "decode-0"):
        eventually(partial(_mentions, partial(lines, name), request_id))


def _mentions(lines: Callable[[], list[dict[str, str]]], request_id: str) -> bool:
    """Whether a log has a line of this request."""
    return any(line.get("request_id", "").startswith(request_id) for line in lines())
