"""One span per part of a request in this worker: queue, prefill and transfer, or wait and decode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import INVALID_SPAN, Status, StatusCode, use_span

from twolane.telemetry.tracing import parent_context, tracer, tracing_enabled
from twolane.worker.request import Request


class Spans:
    """Begins and ends the spans of requests; does nothing when tracing is off."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def begin(self, request: Request, traceparent: str) -> None:
        """The request has arrived."""
        if tracing_enabled():
            self._parents[request.request_id] = traceparent
            self._start(request, "prefill" if request.state.value == "queued" else "receive")

    def move(self, request: Request, name: str) -> None:
        """The current part is over and the named one begins."""
        if request.span is not None:
            request.span.end()
            self._start(request, name)

    @contextmanager
    def current(self, request: Request) -> Iterator[None]:
        """Calls made inside belong to the request's current part."""
        with use_span(request.span or INVALID_SPAN, end_on_exit=False):
            yield

    def end(self, request: Request, outcome: str) -> None:
        """The request has ended here."""
        self._parents.pop(request.request_id, None)
        if request.span is not None:
            request.span.set_attribute("twolane.outcome", outcome)
            if outcome not in {"finished", "handed_over", "cancelled"}:
                request.span.set_status(Status(StatusCode.ERROR, outcome))
            request.span.end()

    def _start(self, request: Request, name: str) -> None:
        request.span = tracer.start_span(
            f"worker.{name}",
            context=parent_context(self._parents.get(request.request_id, "")),
            attributes={
                "twolane.request_id": request.request_id,
                "twolane.phase": request.phase.value,
                "twolane.prompt_tokens": request.sequence.n_prompt,
            },
        )
