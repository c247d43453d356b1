"""JSON lines on stderr, one object per record, with the request's id and without secrets.

Every process calls `configure_logging` once at its start; code logs through the standard library
and sets `request_id_var` where a request enters.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from twolane.core.errors import ConfigError
from twolane.telemetry.redaction import redact_value

request_id_var: ContextVar[str] = ContextVar("twolane_request_id", default="")
"""Id of the request that the running task serves; "" outside of one."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_OWN_NAMES = ("ts", "level", "process", "logger", "msg", "request_id", "exception", "stack")
# Libraries that speak at INFO about every connection or request.
_TALKATIVE = ("aiohttp.access", "uvicorn.access", "httpx", "httpcore", "grpc", "asyncio")


class _Formatter(JsonFormatter):
    """Renders a record as one JSON object in the order of `_OWN_NAMES`, extra fields last."""

    def __init__(self, process: str) -> None:
        super().__init__([], reserved_attrs=[*RESERVED_ATTRS, *_OWN_NAMES])
        self._process = process

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Fills `log_data` with our names first, then with what the library collects."""
        moment = datetime.fromtimestamp(record.created, tz=UTC)
        log_data["ts"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        log_data["level"] = record.levelname
        log_data["process"] = self._process
        log_data["logger"] = record.name
        log_data["msg"] = record.message
        request_id = getattr(record, "request_id", "") or request_id_var.get()
        if request_id:
            log_data["request_id"] = request_id
        super().add_fields(log_data, record, message_dict)
        for theirs, ours in (("exc_info", "exception"), ("stack_info", "stack")):
            text = log_data.pop(theirs, None)
            if text:
                log_data[ours] = text

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Replaces secrets in every field, the exception's text included."""
        return {name: redact_value(value, name) for name, value in log_data.items()}


def configure_logging(process: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends every record of this process to stderr as one JSON object a line.

    Args:
        process: word for the `process` field, for example "broker".
        level: least level shown, any case.
        stream: where to write instead of stderr.

    Raises:
        ConfigError: the level has no such name.
    """
    name = level.upper()
    if name not in LEVELS:
        raise ConfigError(f"unknown log level {level!r}; known: {', '.join(LEVELS)}", param="log_level")
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_Formatter(process))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(name)
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
