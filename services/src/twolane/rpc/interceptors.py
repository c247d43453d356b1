"""What happens around every served call: request id, error mapping, latency, trace.

RpcServer installs them; servicers raise TwolaneError and know nothing of statuses.
"""

from __future__ import annotations

import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeAlias
from weakref import WeakKeyDictionary

import grpc
import grpc.aio
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from prometheus_client import CollectorRegistry, Histogram

from twolane.core.errors import Forbidden, Internal, TwolaneError
from twolane.rpc.errors import grpc_status_of, to_grpc_status
from twolane.rpc.options import is_long_lived, is_plumbing
from twolane.rpc.tls import Tls
from twolane.telemetry.logs import request_id_var
from twolane.telemetry.metrics import FAST_BUCKETS_S

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"

Context = grpc.aio.ServicerContext[Any, Any]
# Quoted: generic in the type stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]"
Wrapper = Callable[[Any, str], Any]

_latencies: WeakKeyDictionary[CollectorRegistry, Histogram] = WeakKeyDictionary()


def latency_histogram(registry: CollectorRegistry) -> Histogram:
    """The registry's one histogram of served calls, made on first use."""
    if registry not in _latencies:
        _latencies[registry] = Histogram(
            "twolane_rpc_server_duration_seconds",
            "Time to answer a gRPC call, streams that last as long as a connection excepted.",
            ("method", "code"),
            buckets=FAST_BUCKETS_S,
            registry=registry,
        )
    return _latencies[registry]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what a servicer raises into a status and measures the call; refuses strangers first."""

    def __init__(self, registry: CollectorRegistry, tls: Tls | None = None) -> None:
        """`tls`: if it is mutual, callers must be of its deployment."""
        self._latency = latency_histogram(registry)
        self._tls = tls if tls is not None and tls.mutual else None

    async def intercept_service(  # type: ignore[override]
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Wraps the handler of the method called; None when the method is not served."""
        handler: Handler | None = await continuation(handler_call_details)
        if handler is None or is_plumbing(handler_call_details.method):
            return handler
        return _rewrap(handler, self._wrap, handler_call_details.method)

    def _wrap(self, behavior: Any, method: str) -> Any:
        if inspect.isasyncgenfunction(behavior):

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                async with self._guard(method, context):
                    async for response in behavior(request, context):
                        yield response

            return stream

        async def unary(request: Any, context: Context) -> Any:
            async with self._guard(method, context):
                return await behavior(request, context)

        return unary

    @asynccontextmanager
    async def _guard(self, method: str, context: Context) -> AsyncIterator[None]:
        request_id_var.set(_request_id(context))
        began = time.perf_counter()
        code = grpc.StatusCode.OK
        try:
            if self._tls is not None:
                _refuse_strangers(self._tls, context)
            yield
        except TwolaneError as error:
            if isinstance(error, Internal):
                log.exception("internal error", extra={"method": method})
            code = grpc_status_of(error)
            await _abort(context, error)
        except grpc.aio.AbortError:
            code = grpc.StatusCode.ABORTED
            raise
        except Exception:
            log.exception("unexpected error", extra={"method": method})
            code = grpc.StatusCode.INTERNAL
            # The exception's words may show paths or data: the client gets only where to look.
            where = request_id_var.get()
            await _abort(context, Internal(f"internal error; the log has it under request {where}"))
        except BaseException:
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            if not is_long_lived(method):
                self._latency.labels(method, code.name).observe(time.perf_counter() - began)


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """OpenTelemetry's server interceptor for the calls that belong to one request."""

    def __init__(self) -> None:
        self._traced = aio_server_interceptor()  # type: ignore[no-untyped-call]

    async def intercept_service(  # type: ignore[override]
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Adds a span unless the call is plumbing, long-lived, or writes by its context."""
        method = handler_call_details.method
        if is_plumbing(method) or is_long_lived(method):
            return await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        if handler is None or _writes_by_context(handler):
            return handler

        async def found(_details: grpc.HandlerCallDetails) -> Handler:
            return handler

        traced: Handler = await self._traced.intercept_service(found, handler_call_details)
        return traced


def _refuse_strangers(tls: Tls, context: Context) -> None:
    """An authority may have signed for other deployments too: the name in the certificate decides."""
    found = context.auth_context().get("x509_subject_alternative_name", ())
    names = tuple(name.decode(errors="replace") for name in found)
    if not tls.is_ours(names):
        log.warning(
            "a caller of another deployment was refused", extra={"names": names, "peer": context.peer()}
        )
        whose = ", ".join(names) or "nobody"
        raise Forbidden(f"your certificate is for {whose}; only processes of {tls.deployment} may call")


async def _abort(context: Context, error: TwolaneError) -> NoReturn:
    status = to_grpc_status(error)
    await context.abort(status.code, status.details, status.trailing_metadata)


def _writes_by_context(handler: Handler) -> bool:
    behavior = handler.unary_stream or handler.stream_stream
    return behavior is not None and not inspect.isasyncgenfunction(behavior)


def _rewrap(handler: Handler, wrap: Wrapper, method: str) -> Handler:
    codecs = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(wrap(handler.unary_unary, method), **codecs)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(wrap(handler.unary_stream, method), **codecs)
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(wrap(handler.stream_unary, method), **codecs)
    return grpc.stream_stream_rpc_method_handler(wrap(handler.stream_stream, method), **codecs)


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_HEADER and isinstance(value, str) and 0 < len(value) <= 128:
            return value
    return uuid.uuid4().hex
