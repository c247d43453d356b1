"""Spans over processes: OTLP when an endpoint is configured, next to nothing otherwise.

Each process calls `configure_tracing` once. gRPC and HTTP carry the trace context in headers; inside
a multiplexed stream it travels in `Submit.traceparent`, which `start_span` takes as the parent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from twolane.core.errors import ConfigError

Attribute = str | bool | int | float

# A proxy: spans are recorded as soon as a provider is installed, whoever imported this first.
tracer: Tracer = trace.get_tracer("twolane")

_propagator = TraceContextTextMapPropagator()


def configure_tracing(process: str, endpoint: str | None, sample_ratio: float) -> None:
    """Exports this process's spans to an OTLP collector.

    Args:
        process: becomes the service name "twolane-<process>".
        endpoint: "http://host:4317" or "host:4317" (plain text), "https://host:4317" (TLS); empty or
            None records nothing.
        sample_ratio: share of traces that begin here and are recorded, 0 to 1; a caller's decision wins.

    Raises:
        ConfigError: the ratio is outside [0, 1].
    """
    if not 0.0 <= sample_ratio <= 1.0:
        raise ConfigError(f"sample ratio {sample_ratio} is outside 0 to 1", param="otlp_sample_ratio")
    if not endpoint:
        return
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=Resource.create({"service.name": f"twolane-{process}", "service.namespace": "twolane"}),
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def tracing_enabled() -> bool:
    """Whether a provider that records spans is installed."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


def shutdown_tracing() -> None:
    """Sends what is still buffered; call it once, last."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def current_traceparent() -> str:
    """W3C traceparent of the running span, or "" when there is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent", "")


@contextmanager
def start_span(
    name: str, traceparent: str = "", attributes: Mapping[str, Attribute] | None = None
) -> Iterator[Span]:
    """Runs the block inside a new span; an exception marks the span as failed and goes on.

    Args:
        name: what is done, for example "prefill.queue".
        traceparent: parent that came inside a message; "": the running span. A malformed one starts a
            new trace.
        attributes: facts known at the start.
    """
    if not tracing_enabled() and not traceparent:
        yield trace.INVALID_SPAN
        return
    parent = parent_context(traceparent)
    with tracer.start_as_current_span(name, context=parent, attributes=attributes) as span:
        yield span


def parent_context(traceparent: str) -> otel_context.Context | None:
    """Context to start a span in when its parent came as text; None keeps the running span."""
    if not traceparent:
        return None
    return _propagator.extract({"traceparent": traceparent}, context=otel_context.Context())
