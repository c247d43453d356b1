"""Errors over a real connection: every class of the tree, in every shape of call, there and back."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import grpc.aio
import pytest

from twolane.core.errors import (
    ERRORS_BY_CODE,
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    Incompatible,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    TwolaneError,
    Unauthenticated,
    Unavailable,
)
from twolane.rpc.errors import (
    ERROR_DOMAIN,
    raise_twolane_error,
    silence_or_error,
    to_grpc_status,
    to_twolane_error,
)
from twolane.telemetry.logs import request_id_var

SHAPES = ["Unary", "Stream", "Written", "Collect", "Talk"]


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def raising(text: str, _context: Any) -> str:
    """Raises the error whose code is the text; "ok" passes."""
    if text in ERRORS_BY_CODE:
        raise ERRORS_BY_CODE[text](f"about {text} – ünïcode", param="field", retry_after_s=2.5)
    if text == "defect":
        raise KeyError("/private/path with secrets")
    return text


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_error_of_the_tree_arrives_as_it_was_raised(start_echo: Any, shape: str) -> None:
    """Class, message, param, retry_after_s and the status of the tree."""
    echo = await start_echo(raising)
    for code, kind in ERRORS_BY_CODE.items():
        raw = await failure(echo.say(shape, code))
        error = to_twolane_error(raw)
        assert type(error) is kind
        assert error.message == f"about {code} – ünïcode"
        assert (error.param, error.retry_after_s) == ("field", 2.5)
        assert raw.code().name == kind.grpc_status
    assert await echo.say(shape, "ok") == ["ok"]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_defect_is_internal_and_keeps_its_words_to_itself(
    start_echo: Any, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets the id under which the log has the trace."""
    echo = await start_echo(raising)
    error = to_twolane_error(await failure(echo.say(shape, "defect", metadata=(("x-request-id", "req-7"),))))
    assert type(error) is Internal
    assert "req-7" in error.message
    assert "private" not in error.message
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert "private" in str(record.exc_info[1])


async def test_the_request_id_of_the_caller_is_set_while_the_call_is_served(start_echo: Any) -> None:
    """Without one, each call gets its own."""
    echo = await start_echo(lambda _text, _context: request_id_var.get())
    assert await echo.say("Unary", "", metadata=(("x-request-id", "mine"),)) == ["mine"]
    first, second = [await echo.say("Stream", "") for _ in range(2)]
    assert first != second
    assert all(len(answer) == 32 for answer in (*first, *second))
    overlong = await echo.say("Unary", "", metadata=(("x-request-id", "x" * 500),))
    assert len(overlong[0]) == 32


async def test_an_abort_by_the_servicer_passes_as_it_is(start_echo: Any) -> None:
    """Libraries abort by themselves; the status is then all there is."""

    async def script(_text: str, context: Any) -> str:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        return "unreachable"

    echo = await start_echo(script)
    raw = await failure(echo.say("Unary", ""))
    assert (raw.code(), raw.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
    assert isinstance(to_twolane_error(raw), NotFound)


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "x", InvalidRequest),
        (grpc.StatusCode.OUT_OF_RANGE, "x", InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, "x", Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, "x", Forbidden),
        (grpc.StatusCode.NOT_FOUND, "x", NotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, "x", Incompatible),
        (grpc.StatusCode.UNIMPLEMENTED, "x", Incompatible),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "x", Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)", BodyTooLarge),
        (grpc.StatusCode.UNAVAILABLE, "x", Unavailable),
        (grpc.StatusCode.ABORTED, "x", Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "x", DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, "x", Cancelled),
        (grpc.StatusCode.DATA_LOSS, "x", Internal),
        (grpc.StatusCode.UNKNOWN, "", Internal),
    ],
)
def test_a_bare_status_becomes_the_closest_error(
    status: grpc.StatusCode, details: str, kind: type[TwolaneError]
) -> None:
    """Proxies and other servers name no code of ours; an empty message names the status."""
    error = to_twolane_error(aio_error(status, details))
    assert type(error) is kind
    assert error.message == (details or "the peer answered UNKNOWN")


def test_a_silent_peer_is_no_deadline_of_the_request() -> None:
    """A limit that a caller sets for itself must not end the request: another peer may answer."""
    silent = silence_or_error(aio_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), "the peer")
    assert (type(silent), silent.retryable) == (Unavailable, True)
    assert silent.message == "the peer did not answer in time"
    [(key, value)] = to_grpc_status(DeadlineExceeded("m")).trailing_metadata
    assert isinstance(value, bytes)
    said = silence_or_error(aio_error(grpc.StatusCode.DEADLINE_EXCEEDED, "m", ((key, value),)), "the peer")
    assert type(said) is DeadlineExceeded
    refused = silence_or_error(aio_error(grpc.StatusCode.NOT_FOUND, "none"), "the peer")
    assert type(refused) is NotFound


def test_trailers_of_strangers_do_not_mislead() -> None:
    """Another domain, garbage bytes, or a status that contradicts itself: the status counts."""
    foreign = to_grpc_status(Overloaded("m"))
    [(key, value)] = foreign.trailing_metadata
    assert isinstance(value, bytes)
    other_domain = value.replace(ERROR_DOMAIN.encode(), b"x" * len(ERROR_DOMAIN))
    for data, code in (
        (other_domain, "RESOURCE_EXHAUSTED"),
        (b"\xff\xff", "NOT_FOUND"),
        (value, "NOT_FOUND"),
    ):
        error = to_twolane_error(aio_error(grpc.StatusCode[code], "m", ((key, data),)))
        assert type(error) is {"RESOURCE_EXHAUSTED": Overloaded, "NOT_FOUND": NotFound}[code]


def test_an_rpc_error_that_is_no_call_is_unavailable() -> None:
    """grpc raises bare RpcError when a channel is closed under a call."""
    with pytest.raises(Unavailable, match="the call failed"):
        raise_twolane_error(grpc.RpcError("channel closed"))


def test_a_malformed_retry_time_is_none() -> None:
    """A newer peer may word it in another way."""
    status = to_grpc_status(Overloaded("m", retry_after_s=1.5))
    [(key, value)] = status.trailing_metadata
    assert isinstance(value, bytes)
    raw = aio_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "m", ((key, value.replace(b"1.5", b"1,5")),))
    assert to_twolane_error(raw).retry_after_s == 0.0


def aio_error(
    status: grpc.StatusCode, details: str, trailers: tuple[tuple[str, bytes], ...] = ()
) -> grpc.aio.AioRpcError:
    """The exception a client gets."""
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)
