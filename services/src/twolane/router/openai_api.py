"""The two generating endpoints, POST /v1/chat/completions and /v1/completions, as plain ASGI callables.

A request is authenticated, checked and tokenized here, then runs in the dispatcher; the sinks write
what comes. A client that goes away ends its request wherever it is.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from twolane.core.errors import Cancelled, Internal, InvalidRequest, MethodNotAllowed, TwolaneError
from twolane.router.asgi import JSON, Headers, client_request_id, header, read_json, send_body, send_error
from twolane.router.generation import Generation, GenerationRequest
from twolane.router.http_protocol import DIRECT_CHUNK
from twolane.router.openai_format import ChatFormat, CompletionFormat, Format
from twolane.router.openai_types import ChatBody, CompletionBody, GenerationBody, read_body
from twolane.router.prompts import read_messages
from twolane.router.sampling import SamplingRequest
from twolane.router.serving import Serving, new_request_id, now_s
from twolane.router.sinks import StreamSink, WholeSink
from twolane.telemetry.logs import request_id_var
from twolane.telemetry.tracing import current_traceparent, start_span

log = logging.getLogger(__name__)

_EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that buffer would hold back tokens.
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True)
class _Call:
    """One HTTP call as it came."""

    scope: Scope
    receive: Receive
    send: Send
    client_id: str
    arrival_s: float

    @property
    def headers(self) -> Headers:
        """Headers of every response to it."""
        return [(b"x-request-id", self.client_id.encode())]


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that passed every check."""

    request: GenerationRequest
    form: Format
    stream: bool
    include_usage: bool

    def sink(self, scope: Scope) -> StreamSink | WholeSink:
        """Takes what the request brings."""
        logprobs = self.request.sampling[0].top_logprobs is not None
        if self.stream:
            write_now = scope.get("extensions", {}).get(DIRECT_CHUNK, {}).get("write")
            return StreamSink(self.form, logprobs=logprobs, write_now=write_now)
        return WholeSink(len(self.request.prompts) * self.request.n, logprobs=logprobs)


class _Endpoint(ABC):
    """What both endpoints share."""

    def __init__(self, serving: Serving, max_body_bytes: int) -> None:
        self._serving = serving
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        call = _Call(scope, receive, send, client_request_id(scope), now_s())
        attributes = {"http.route": str(scope["path"]), "twolane.client_request_id": call.client_id}
        with start_span("router.request", header(scope, b"traceparent"), attributes) as span:
            try:
                job = await self._read(call)
                sink = job.sink(scope)
                generation = await self._serving.start(job.request, sink)
            except TwolaneError as error:
                span.set_attribute("twolane.outcome", error.code)
                self._serving.metrics.refused(error.code)
                await send_error(send, error, call.headers)
                return
            except Exception:
                log.exception("a request failed", extra={"client_request_id": call.client_id})
                hint = Internal(f"internal error; the log has it under {call.client_id}")
                await send_error(send, hint, call.headers)
                return
            await self._deliver(call, job, sink, generation)
            outcome = "ok" if generation.error is None else generation.error.code
            span.set_attribute("twolane.outcome", outcome)
        _log_end(generation, call.client_id)

    async def _read(self, call: _Call) -> _Job:
        """The checked request; what is refused here was never sent to a worker."""
        if call.scope["method"] != "POST":
            raise MethodNotAllowed(f"{call.scope['method']} is not served here; use POST")
        self._serving.keys.check(header(call.scope, b"authorization"))
        # Before the work of reading a prompt that nobody can take.
        self._serving.dispatcher.check_admission(1)
        fields = await read_json(call.scope, call.receive, self._max_body_bytes)
        job = await self._job(fields, call)
        request_id_var.set(job.request.request_id)
        return job

    @abstractmethod
    async def _job(self, fields: dict[str, Any], call: _Call) -> _Job:
        """Checks the body and tokenizes the prompts."""

    async def _deliver(
        self, call: _Call, job: _Job, sink: StreamSink | WholeSink, generation: Generation
    ) -> None:
        watcher = asyncio.create_task(_watch(call.receive, generation))
        try:
            if isinstance(sink, StreamSink):
                await sink.run(call.send, [*call.headers, *_EVENT_STREAM], _usage_event(job, generation))
            else:
                await sink.wait()
                body = job.form.whole(sink.choices, generation.usage())
                await send_body(call.send, 200, [*call.headers, JSON], body)
        except TwolaneError as error:
            # To a client that is gone, the server sends nothing.
            await send_error(call.send, error, call.headers)
        finally:
            watcher.cancel()
            # Does nothing after the ordinary end.
            generation.fail(Cancelled("the call was given up"))

    def _request(
        self, kind: str, body: GenerationBody, asked: SamplingRequest, prompts: list[list[int]], call: _Call
    ) -> GenerationRequest:
        serving = self._serving
        return GenerationRequest(
            request_id=new_request_id(kind),
            prompts=tuple(prompts),
            sampling=tuple(serving.resolve(asked, len(prompt)) for prompt in prompts),
            stop=tuple(body.stop),
            n=body.n or 1,
            continues_prompt=kind == "cmpl",
            cache_salt=body.cache_salt or "",
            priority=body.priority or 0,
            ttft_slo_ms=_slo_ms(call.scope),
            timeout_s=serving.request_timeout_s - (now_s() - call.arrival_s),
            arrival_s=call.arrival_s,
            traceparent=current_traceparent(),
        )

    def _names(self, request: GenerationRequest) -> tuple[str, str, str]:
        return request.request_id, self._serving.model_name, self._serving.system_fingerprint


class ChatEndpoint(_Endpoint):
    """POST /v1/chat/completions."""

    async def _job(self, fields: dict[str, Any], call: _Call) -> _Job:
        body = read_body(ChatBody, fields)
        self._serving.check_model(body.model or "")
        asked = body.sampling()
        prompt = await self._serving.prompts.chat(read_messages(body.messages), body.chat_template_kwargs)
        request = self._request("chatcmpl", body, asked, [prompt], call)
        form = ChatFormat("chat.completion", self._names(request), self._serving.tokenizer)
        return _job(body, request, form)


class CompletionEndpoint(_Endpoint):
    """POST /v1/completions."""

    async def _job(self, fields: dict[str, Any], call: _Call) -> _Job:
        body = read_body(CompletionBody, fields)
        self._serving.check_model(body.model or "")
        asked = body.sampling()
        prompts = await self._serving.prompts.completion(body.prompt)
        request = self._request("cmpl", body, asked, prompts, call)
        form = CompletionFormat("text_completion", self._names(request), self._serving.tokenizer)
        return _job(body, request, form)


def _job(body: GenerationBody, request: GenerationRequest, form: ChatFormat | CompletionFormat) -> _Job:
    if body.stream:
        form.stream(announce_usage=body.include_usage)
    elif body.stream_options is not None:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
    return _Job(request, form, bool(body.stream), body.include_usage)


def _usage_event(job: _Job, generation: Generation) -> Any:
    return lambda: job.form.usage(generation.usage()) if job.include_usage else b""


def _slo_ms(scope: Scope) -> int | None:
    given = header(scope, b"x-twolane-ttft-slo-ms")
    if not given:
        return None
    if not given.isdecimal() or int(given) > 3_600_000:
        raise InvalidRequest(
            "x-twolane-ttft-slo-ms must be a number of milliseconds from 0 to 3600000",
            param="x-twolane-ttft-slo-ms",
        )
    return int(given)


async def _watch(receive: Receive, generation: Generation) -> None:
    """Ends the request when its client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.fail(Cancelled("the client went away"))


def _log_end(generation: Generation, client_id: str) -> None:
    error, usage = generation.error, generation.usage()
    fields = {
        "client_request_id": client_id,
        "outcome": "ok" if error is None else error.code,
        "lane": generation.lane.value,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": round(now_s() - generation.request.arrival_s, 4),
    }
    if error is None or isinstance(error, Cancelled):
        log.info("request ended", extra=fields)
    else:
        log.warning("request failed", extra=fields | {"error": error.message})
