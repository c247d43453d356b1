"""How a TwolaneError crosses gRPC: status, google.rpc.ErrorInfo in the trailers, and back.

The server's interceptor writes it, `to_twolane_error` reads it; nobody else maps anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from twolane.core.errors import (
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
    error_from_code,
)
from twolane.rpc.handshake import meaning

ERROR_DOMAIN = "twolane.dev"
"""Domain of the ErrorInfo: its `reason` is then a code of the error tree."""

_BY_STATUS: Mapping[grpc.StatusCode, type[TwolaneError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: Incompatible,
    # A peer of another version lacks the method.
    grpc.StatusCode.UNIMPLEMENTED: Incompatible,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def grpc_status_of(error: TwolaneError) -> grpc.StatusCode:
    """The status that the error tree names for this error."""
    return grpc.StatusCode[error.grpc_status]


def to_grpc_status(error: TwolaneError) -> grpc.Status:
    """Status with code, message and trailers (ErrorInfo: reason, domain, param, retry_after_s)."""
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=ERROR_DOMAIN)
    if error.param:
        info.metadata["param"] = error.param
    if error.retry_after_s:
        info.metadata["retry_after_s"] = repr(error.retry_after_s)
    rich = status_pb2.Status(code=grpc_status_of(error).value[0], message=error.message)
    rich.details.add().Pack(info)
    status: grpc.Status = rpc_status.to_status(rich)
    return status


def to_twolane_error(error: grpc.RpcError) -> TwolaneError:
    """The error the peer raised, or the closest one to the status when the peer named none."""
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return Unavailable(f"the call failed: {error}")
    code, message = error.code(), error.details() or ""
    info = _error_info(error)
    if info is not None:
        return error_from_code(
            info.reason,
            message,
            param=info.metadata.get("param", ""),
            retry_after_s=_seconds(info.metadata.get("retry_after_s", "")),
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        # gRPC refused the message by its size: a retry can't help.
        return BodyTooLarge(message)
    kind = _BY_STATUS.get(code, Internal)
    if code is grpc.StatusCode.UNAVAILABLE and (words := meaning(message)):
        message = f"{words} [{message}]"
    return kind(message or f"the peer answered {code.name}")


def silence_or_error(error: grpc.RpcError, name: str) -> TwolaneError:
    """The same for a call whose time limit is our own: a peer that is silent is unavailable.

    The deadline of the request that the call was made for has not passed: others may do it.
    """
    known = to_twolane_error(error)
    named = isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) and _error_info(error) is not None
    if isinstance(known, DeadlineExceeded) and not named:
        return Unavailable(f"{name} did not answer in time")
    return known


def raise_twolane_error(error: grpc.RpcError) -> NoReturn:
    """Raises what the peer raised, with the gRPC error as its cause."""
    raise to_twolane_error(error) from error


def _error_info(error: grpc.Call | grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    try:
        rich = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        # Trailers of another party that contradict the status: the status counts.
        return None
    for detail in rich.details if rich is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            if info.domain == ERROR_DOMAIN:
                return info
    return None


def _seconds(text: str) -> float:
    try:
        return float(text) if text else 0.0
    except ValueError:
        return 0.0
