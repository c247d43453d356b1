"""Reads normalised request traces, for the simulator and the load generator.

A trace is a CSV file (optionally gzipped) with the columns arrival_s, input_tokens, output_tokens and
optionally prefix_hit_tokens; further columns are ignored. Traces of sessions (t_s instead of arrival_s)
have a reader of their own, which draws the starts of the sessions.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twolane.core.errors import InvalidRequest, NotFound

REQUIRED_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
SESSION_COLUMNS = ("session", "t_s", "input_tokens", "output_tokens")
CACHED_COLUMN = "prefix_hit_tokens"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request to offer.

    Attributes:
        arrival_s: seconds after the start of the trace.
        input_tokens: tokens of the whole prompt, at least 1.
        output_tokens: tokens of the answer, at least 1.
        cached_tokens: leading prompt tokens that a warm prefix cache holds; always below input_tokens.
    """

    arrival_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that a prefill worker must compute; at least 1."""
        return self.input_tokens - self.cached_tokens


def read_trace(path: Path, *, rate_scale: float = 1.0, limit: int | None = None) -> list[TraceRequest]:
    """Reads a trace in order of arrival, the first request at 0.

    Args:
        path: a .csv or .csv.gz file.
        rate_scale: arrivals come this many times faster; 2 halves every gap.
        limit: keep this many requests at most.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: a column is missing, a cell is no number, or an argument is out of range.
    """
    _check_scale(rate_scale)
    requests: list[TraceRequest] = []
    for line, row in _rows(path, REQUIRED_COLUMNS):
        if limit is not None and len(requests) >= limit:
            break
        requests.append(_request(path, line, row, _number(path, line, row, "arrival_s") / rate_scale))
    return _rebased(requests)


def read_sessions(
    path: Path,
    *,
    sessions_per_s: float,
    rng: np.random.Generator,
    max_input_tokens: int,
    limit: int | None = None,
) -> list[TraceRequest]:
    """Reads a trace of sessions as one open-loop trace, with Poisson starts of the sessions.

    The requests keep their distance from the start of their session, whatever the server does, so this
    is an approximation of a closed loop. Requests longer than `max_input_tokens` are left out.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: a column is missing, a cell is no number, or an argument is out of range.
    """
    _check_scale(sessions_per_s, "sessions_per_s")
    starts: dict[str, float] = {}
    clock_s = 0.0
    requests = []
    for line, row in _rows(path, SESSION_COLUMNS):
        if row["session"] not in starts:
            clock_s += float(rng.exponential(1.0 / sessions_per_s))
            starts[row["session"]] = clock_s
        request = _request(path, line, row, starts[row["session"]] + _number(path, line, row, "t_s"))
        if request.input_tokens <= max_input_tokens:
            requests.append(request)
    return _rebased(requests)[:limit]


def spread_ties(requests: Sequence[TraceRequest], rng: np.random.Generator) -> list[TraceRequest]:
    """Spreads requests with equal times uniformly up to the next time, for traces with coarse clocks."""
    times = sorted({request.arrival_s for request in requests})
    following = dict(zip(times, [*times[1:], times[-1]], strict=True)) if times else {}
    spread = []
    for request in requests:
        gap_s = following[request.arrival_s] - request.arrival_s
        spread.append(_moved(request, request.arrival_s + float(rng.random()) * gap_s))
    return sorted(spread, key=lambda request: request.arrival_s)


def overlaid(requests: Sequence[TraceRequest], copies: int, rng: np.random.Generator) -> list[TraceRequest]:
    """So many copies of a trace at once: more load of the same daily shape, without its bursts adding up.

    Each copy but the first is turned by up to a twentieth of the trace's length; what leaves at its end comes
    in at its beginning.
    """
    if copies < 1:
        raise InvalidRequest(f"copies must be at least 1, not {copies}", param="copies")
    if copies == 1 or not requests:
        return list(requests)
    span_s = max(1e-9, requests[-1].arrival_s)
    turns = [0.0, *(rng.random(copies - 1) * span_s / 20.0).tolist()]
    found = [_moved(one, (one.arrival_s + turn_s) % span_s) for turn_s in turns for one in requests]
    return sorted(found, key=lambda request: request.arrival_s)


def scaled_to_rate(requests: Sequence[TraceRequest], rate_per_s: float) -> list[TraceRequest]:
    """The same requests with all gaps stretched or squeezed so that the mean rate is `rate_per_s`."""
    _check_scale(rate_per_s, "rate_per_s")
    span_s = requests[-1].arrival_s - requests[0].arrival_s if requests else 0.0
    if span_s <= 0.0:
        raise InvalidRequest("a trace needs two requests at different times before its rate can be set")
    factor = len(requests) / span_s / rate_per_s
    return [_moved(request, request.arrival_s * factor) for request in requests]


def _moved(request: TraceRequest, arrival_s: float) -> TraceRequest:
    return TraceRequest(arrival_s, request.input_tokens, request.output_tokens, request.cached_tokens)


def _rebased(requests: list[TraceRequest]) -> list[TraceRequest]:
    ordered = sorted(requests, key=lambda request: request.arrival_s)
    return [_moved(request, request.arrival_s - ordered[0].arrival_s) for request in ordered]


def _check_scale(value: float, name: str = "rate_scale") -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise InvalidRequest(f"{name} must be a positive number, not {value}", param=name)


def _rows(path: Path, required: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yields line number and cells of every row; raises before the first when a column is missing."""
    if not path.is_file():
        raise NotFound(f"there is no trace {path}; give the path of a .csv or .csv.gz file")
    try:
        content = path.read_bytes()
        plain = gzip.decompress(content) if path.suffix == ".gz" else content
        reader = csv.DictReader(io.StringIO(plain.decode("utf-8"), newline=""))
        columns = reader.fieldnames or []
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise InvalidRequest(f"{path.name} is no readable CSV file: {error}") from error
    missing = [name for name in required if name not in columns]
    if missing:
        raise InvalidRequest(_missing(path, missing, columns))
    for row in reader:
        yield reader.line_num, row


def _missing(path: Path, missing: Sequence[str], columns: Sequence[str]) -> str:
    hint = ""
    if "arrival_s" in missing and {"session", "t_s"} <= set(columns):
        hint = "; this is a trace of sessions: read it with a rate of session starts"
    return f"{path.name} lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}{hint}"


def _number(path: Path, line: int, row: Mapping[str, str | None], column: str) -> float:
    text = row.get(column)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0.0:
        raise InvalidRequest(f"{path.name}, line {line}: {column} is {text!r}, not a number of at least 0")
    return value


def _request(path: Path, line: int, row: Mapping[str, str], arrival_s: float) -> TraceRequest:
    """Builds a request; at least one prompt token stays uncached, as a worker needs one to compute."""
    input_tokens = max(1, int(_number(path, line, row, "input_tokens")))
    output_tokens = max(1, int(_number(path, line, row, "output_tokens")))
    cached = int(_number(path, line, row, CACHED_COLUMN)) if row.get(CACHED_COLUMN) else 0
    return TraceRequest(arrival_s, input_tokens, output_tokens, min(cached, input_tokens - 1))
