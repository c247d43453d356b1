"""One JSON object a line, with the request's id, and no secret in any part of it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twolane.core.errors import ConfigError
from twolane.telemetry.logs import configure_logging, request_id_var
from twolane.telemetry.redaction import REDACTED, redact, redact_value

log = logging.getLogger("twolane.test")
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Configures logging into a buffer; returns what was written, parsed. Undone after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure_logging("router", "debug", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def test_a_record_is_one_json_object_in_a_fixed_order(lines: Lines) -> None:
    """Time in UTC, then who and what, extra fields last."""
    log.info("page %d freed", 7, extra={"worker_id": "w", "pages": [1, 2]})
    [line] = lines()
    assert list(line) == ["ts", "level", "process", "logger", "msg", "worker_id", "pages"]
    assert (line["level"], line["process"], line["logger"]) == ("INFO", "router", "twolane.test")
    assert (line["msg"], line["worker_id"], line["pages"]) == ("page 7 freed", "w", [1, 2])
    assert line["ts"].endswith("Z")
    assert datetime.fromisoformat(line["ts"]).utcoffset() is not None


def test_the_request_id_of_the_running_task_is_shown(lines: Lines) -> None:
    """Only while it is set; an explicit one wins."""
    log.info("before")
    token = request_id_var.set("req-1")
    log.info("inside")
    log.info("other", extra={"request_id": "req-2"})
    request_id_var.reset(token)
    assert [line.get("request_id") for line in lines()] == [None, "req-1", "req-2"]


def test_an_exception_is_one_field_of_the_same_line(lines: Lines) -> None:
    """Newlines do not break the format; warnings of libraries come too."""
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old call", stacklevel=1)
    failed, warned = lines()
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("ValueError: first\nsecond")
    assert "old call" in warned["msg"]


def test_values_that_json_lacks_are_written_as_text(lines: Lines) -> None:
    """Bytes, objects, non-finite numbers: a log call never fails."""
    log.info("odd", extra={"raw": b"\x00\xff", "thing": object, "number": float("nan"), "deep": {1: {"a"}}})
    [line] = lines()
    assert line["raw"] == "\x00\\xff"
    assert "object" in line["thing"]
    assert line["deep"] == {"1": ["a"]}


def test_levels_below_the_configured_one_are_dropped(lines: Lines) -> None:
    """Any case is understood, an unknown word is refused."""
    configure_logging("router", "Warning", io.StringIO())
    assert logging.getLogger().level == logging.WARNING
    with pytest.raises(ConfigError, match="DEBUG, INFO"):
        configure_logging("router", "LOUD")
    assert lines() == []


SECRET = "s3cr3t-V4lue_xyz"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: {SECRET}",
        f"headers: {{'Authorization': 'Bearer {SECRET}'}}",
        f"[(b'authorization', b'Bearer {SECRET}')]",
        f'{{"api_key": "{SECRET}"}}',
        f"x-api-key={SECRET}",
        f"api-key: {SECRET}, other: 1",
        f"key sk-{SECRET} was used",
        f"redis://:{SECRET}@host:6379/0",
        f"rediss://user:{SECRET}@host/0",
        f"password={SECRET}",
        f"Proxy-Authorization: Basic {SECRET}",
        f"BEARER  {SECRET}",
    ],
)
def test_no_secret_gets_out_by_any_part_of_a_record(lines: Lines, text: str) -> None:
    """Message, argument, extra field, exception."""
    log.info(text)
    log.info("argument %s", text)
    log.info("extra", extra={"detail": text, "deep": {"list": [text]}})
    try:
        raise RuntimeError(text)
    except RuntimeError:
        log.exception("failed")
    written = lines()
    assert len(written) == 4
    assert SECRET not in json.dumps(written)
    assert json.dumps(written).count(REDACTED) >= 5


@pytest.mark.parametrize("field", ["authorization", "api_key", "API-Key", "password", "token", "cookie"])
def test_a_field_named_like_a_secret_is_hidden_whole(lines: Lines, field: str) -> None:
    """Whatever its value looks like, also inside other fields."""
    log.info("x", extra={field: SECRET, "headers": {field: SECRET}})
    [line] = lines()
    assert line[field] == REDACTED
    assert line["headers"] == {field: REDACTED}


@pytest.mark.parametrize(
    "text",
    [
        "prompt_tokens=12, max_tokens: 5",
        "worker prefill-0 at 10.0.0.1:9100",
        "http://host:4317/path",
        "sk-7",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    """Logs are for reading."""
    assert redact(text) == text


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_redaction_keeps_the_shape_of_values(value: Any) -> None:
    """Lists stay lists of the same length; None, numbers and truth values pass."""
    kept = redact_value(value)
    assert isinstance(kept, type(value))
    if isinstance(value, list):
        assert len(kept) == len(value)
