"""The router's HTTP addresses: the generating endpoints and the small ones around them.

Models, probes and metrics are short responses; whatever is not known gets an error in OpenAI's shape.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from twolane.core.errors import NotFound, TwolaneError
from twolane.router.asgi import JSON, client_request_id, header, send_body, send_error
from twolane.router.openai_api import ChatEndpoint, CompletionEndpoint
from twolane.router.serving import Serving

_TEXT = (b"content-type", b"text/plain; charset=utf-8")

Responder = Callable[[Scope, Send], Awaitable[None]]


def make_routes(
    serving: Serving, max_body_bytes: int, ready: Callable[[], str | None], registry: CollectorRegistry
) -> ASGIApp:
    """The ASGI application; `ready` gives the reason why no traffic should come, or None."""
    small = _Small(serving, ready, registry)
    routes = [
        Route("/v1/chat/completions", ChatEndpoint(serving, max_body_bytes)),
        Route("/v1/completions", CompletionEndpoint(serving, max_body_bytes)),
        Route("/v1/models", _Endpoint(small.models)),
        Route("/v1/models/{name:path}", _Endpoint(small.model)),
        Route("/healthz", _Endpoint(small.healthz)),
        Route("/readyz", _Endpoint(small.readyz)),
        Route("/metrics", _Endpoint(small.metrics)),
    ]
    router = Router(routes, default=_Endpoint(small.unknown), redirect_slashes=False)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await router(scope, receive, send)

    return application


class _Endpoint:
    """Maps the errors of a small endpoint."""

    def __init__(self, respond: Responder) -> None:
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        del receive
        try:
            await self._respond(scope, send)
        except TwolaneError as error:
            await send_error(send, error, [(b"x-request-id", client_request_id(scope).encode())])


class _Small:
    """Responses that need no worker."""

    def __init__(
        self, serving: Serving, ready: Callable[[], str | None], registry: CollectorRegistry
    ) -> None:
        self._serving = serving
        self._ready = ready
        self._registry = registry
        self._started = int(time.time())

    async def models(self, scope: Scope, send: Send) -> None:
        """GET /v1/models."""
        self._serving.keys.check(header(scope, b"authorization"))
        body = orjson.dumps({"object": "list", "data": [self._model()]})
        await send_body(send, 200, [JSON], body)

    async def model(self, scope: Scope, send: Send) -> None:
        """GET /v1/models/{name}."""
        self._serving.keys.check(header(scope, b"authorization"))
        self._serving.check_model(scope["path_params"]["name"])
        await send_body(send, 200, [JSON], orjson.dumps(self._model()))

    def _model(self) -> dict[str, object]:
        serving = self._serving
        return {
            "id": serving.model_name,
            "object": "model",
            "created": self._started,
            "owned_by": "twolane",
            "max_model_len": serving.max_model_len,
        }

    async def healthz(self, scope: Scope, send: Send) -> None:
        """The process lives."""
        del scope
        await send_body(send, 200, [_TEXT], b"ok\n")

    async def readyz(self, scope: Scope, send: Send) -> None:
        """Traffic may come, or why not."""
        del scope
        reason = self._ready()
        body = b"ok\n" if reason is None else f"{reason}\n".encode()
        await send_body(send, 200 if reason is None else 503, [_TEXT], body)

    async def metrics(self, scope: Scope, send: Send) -> None:
        """Prometheus metrics."""
        encode, content_type = choose_encoder(header(scope, b"accept"))
        await send_body(send, 200, [(b"content-type", content_type.encode())], encode(self._registry))

    async def unknown(self, scope: Scope, send: Send) -> None:
        """Any other address."""
        del send
        raise NotFound(f"{scope['method']} {scope['path']!r:.200} is not served here")
