"""The one error tree; interceptors and the REST front map it, nobody else maps anything.

TwolaneError
├── InvalidRequest            400  invalid_request         the client must change the request
│   ├── ContextTooLong        413  context_too_long
│   ├── BodyTooLarge          413  body_too_large
│   └── MethodNotAllowed      405  method_not_allowed
├── Unauthenticated           401  invalid_api_key
├── Forbidden                 403  forbidden               a caller whom we know and do not serve
├── ModelNotFound             404  model_not_found
├── NotFound                  404  not_found
├── Incompatible              409  incompatible            two parties that must agree differ
├── Overloaded                429  overloaded              retry later
├── Unavailable               503  unavailable             no worker can take it now
│   ├── WorkerLost            503  worker_lost
│   └── Draining              503  draining
├── LeaseInvalid              409  lease_invalid           a write under an old or expired lease
├── DeadlineExceeded          504  deadline_exceeded
├── Cancelled                 499  cancelled               the client went away
├── ConfigError               500  config_error            a process can't start as configured
└── Internal                  500  internal                a defect of ours
"""

from __future__ import annotations

from typing import ClassVar


class TwolaneError(Exception):
    """An error with a stable code.

    Attributes:
        code: stable label for clients, metrics and logs.
        grpc_status: name of the gRPC status it maps to.
        http_status: HTTP status it maps to.
        retryable: whether the same request can succeed later.
        param: the request field at fault, or "".
        retry_after_s: seconds after which a retry makes sense, or 0.
    """

    code: ClassVar[str] = "internal"
    grpc_status: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(TwolaneError):
    """The request can't be served as it is; the message names the field and the allowed values."""

    code, grpc_status, http_status = "invalid_request", "INVALID_ARGUMENT", 400


class MethodNotAllowed(InvalidRequest):
    """The address exists, but not for this HTTP method."""

    code, http_status = "method_not_allowed", 405


class ContextTooLong(InvalidRequest):
    """Prompt plus answer exceed the model's context."""

    code, http_status = "context_too_long", 413


class BodyTooLarge(InvalidRequest):
    """The HTTP body exceeds the configured limit."""

    code, http_status = "body_too_large", 413


class Unauthenticated(TwolaneError):
    """No API key, or one that is not known."""

    code, grpc_status, http_status = "invalid_api_key", "UNAUTHENTICATED", 401


class Forbidden(TwolaneError):
    """The caller has shown who it is, and may not do this."""

    code, grpc_status, http_status = "forbidden", "PERMISSION_DENIED", 403


class ModelNotFound(TwolaneError):
    """Nobody here serves the model asked for."""

    code, grpc_status, http_status = "model_not_found", "NOT_FOUND", 404


class NotFound(TwolaneError):
    """The thing named (a worker, a lease, a path) is not known."""

    code, grpc_status, http_status = "not_found", "NOT_FOUND", 404


class Incompatible(TwolaneError):
    """Two parties that must agree on a model, a layout or a version differ."""

    code, grpc_status, http_status = "incompatible", "FAILED_PRECONDITION", 409


class Overloaded(TwolaneError):
    """Every queue or page pool that could take the request is full."""

    code, grpc_status, http_status, retryable = "overloaded", "RESOURCE_EXHAUSTED", 429, True


class Unavailable(TwolaneError):
    """No worker, or no broker, can take the request now."""

    code, grpc_status, http_status, retryable = "unavailable", "UNAVAILABLE", 503, True


class WorkerLost(Unavailable):
    """A worker went away in the middle of the request."""

    code = "worker_lost"


class Draining(Unavailable):
    """The process is about to stop and takes nothing new."""

    code = "draining"


class LeaseInvalid(TwolaneError):
    """A write under a lease that is unknown, expired, or of an older fence or incarnation."""

    code, grpc_status, http_status = "lease_invalid", "FAILED_PRECONDITION", 409


class DeadlineExceeded(TwolaneError):
    """The request's own deadline passed."""

    code, grpc_status, http_status = "deadline_exceeded", "DEADLINE_EXCEEDED", 504


class Cancelled(TwolaneError):
    """The client went away or closed the call."""

    code, grpc_status, http_status = "cancelled", "CANCELLED", 499


class ConfigError(TwolaneError):
    """A process can't start as configured; the message names the setting and what to do."""

    code, grpc_status, http_status = "config_error", "INTERNAL", 500


class Internal(TwolaneError):
    """A defect of ours; the log has the trace under the request's id."""


def _tree(root: type[TwolaneError]) -> dict[str, type[TwolaneError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


ERRORS_BY_CODE: dict[str, type[TwolaneError]] = _tree(TwolaneError) | {Internal.code: Internal}


def error_from_code(code: str, message: str, *, param: str = "", retry_after_s: float = 0.0) -> TwolaneError:
    """Rebuilds an error that travelled as a code; an unknown code becomes Internal."""
    kind = ERRORS_BY_CODE.get(code, Internal)
    return kind(message, param=param, retry_after_s=retry_after_s)
