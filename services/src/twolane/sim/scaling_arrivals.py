"""Traces at the size of a fleet: a trace laid over itself many times, as arrays.

A trace of one request a second keeps one worker busy at most. Each copy stands for as many clients as
the trace has and is shifted by some minutes, so that the shape over minutes and hours stays the trace's
while the bursts of single clients meet only by chance, as those of more clients would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twolane.core.errors import InvalidRequest
from twolane.sim.profile import EngineProfile
from twolane.sim.settings import SimSettings
from twolane.workload.traces import TraceRequest

Floats = NDArray[np.float64]
SPREAD_S = 300.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in order of arrival; all arrays of one length.

    Attributes:
        time_s: arrival.
        uncached: prompt tokens to compute; prompt: all prompt tokens; output: answer tokens.
        work_s: seconds of a prefill worker, its share of constant costs left out.
        alone_s: seconds of the prompt alone on an idle worker.
        limit_s: seconds in which the first token should come.
        is_short: class of the request.
        duration_s: seconds from the start to the end of the trace.
    """

    time_s: Floats
    uncached: Floats
    prompt: Floats
    output: Floats
    work_s: Floats
    alone_s: Floats
    limit_s: Floats
    is_short: NDArray[np.bool_]
    duration_s: float

    def __len__(self) -> int:
        return len(self.time_s)

    def requests(self) -> list[TraceRequest]:
        """The same as trace requests, for the fine simulator."""
        rows = zip(self.time_s, self.prompt, self.output, self.prompt - self.uncached, strict=True)
        return [TraceRequest(float(t), int(p), int(o), int(c)) for t, p, o, c in rows]


def arrivals_of(
    requests: Sequence[TraceRequest],
    copies: float,
    profile: EngineProfile,
    settings: SimSettings,
    rng: np.random.Generator,
    spread_s: float = SPREAD_S,
) -> Arrivals:
    """Lays `copies` of a trace over each other (the last one thinned) and prices them by the profile.

    Raises:
        InvalidRequest: nothing arrives.
    """
    if not requests or copies <= 0.0:
        raise InvalidRequest("a scaling run needs requests and a positive number of copies")
    table = np.array(
        [(one.arrival_s, one.uncached_tokens, one.input_tokens, one.output_tokens) for one in requests]
    )
    table[:, 0] -= table[0, 0]
    duration_s = float(table[-1, 0]) + 1.0
    whole = int(copies)
    parts = [table] * whole + [table[rng.random(len(table)) < copies - whole]]
    shifts = rng.uniform(-spread_s, spread_s, len(parts))
    many = np.concatenate(parts)
    many[:, 0] += np.repeat(shifts, [len(part) for part in parts])
    # What falls out at one end comes in at the other.
    many[:, 0] %= duration_s
    many = many[np.argsort(many[:, 0], kind="stable")]
    time_s, uncached, prompt, output = (np.ascontiguousarray(column) for column in many.T)
    most = profile.capacity_tokens // 2
    cached = np.minimum(prompt - uncached, most - 1)
    prompt = np.minimum(prompt, most)
    uncached = np.maximum(1.0, np.minimum(uncached, prompt - cached))
    cached = prompt - uncached
    output = np.minimum(output, settings.decode.max_output_tokens)
    attention_s = profile.attention_s * uncached * (uncached + 2.0 * cached)
    memory_s = profile.weights_s + profile.cached_read_s * cached
    work_s = profile.token_s * uncached + attention_s
    alone_s = profile.overhead_s + np.maximum(memory_s, profile.token_s * uncached) + attention_s
    is_short = uncached <= settings.short_tokens
    slow_s = np.maximum(settings.long_ttft_s, settings.long_slowdown * alone_s)
    limit_s = np.where(is_short, settings.short_ttft_s, slow_s)
    return Arrivals(time_s, uncached, prompt, output, work_s, alone_s, limit_s, is_short, duration_s)


def decode_work_s(arrivals: Arrivals, profile: EngineProfile, max_rows: int) -> Floats:
    """Seconds of a decode worker that each answer takes, in batches as full as pages and rows allow."""
    output = arrivals.output - 1.0
    pages = output * (arrivals.prompt + arrivals.output / 2.0) / profile.capacity_tokens
    full_s = profile.decode_constant_s(max_rows) + profile.decode_read_s * profile.capacity_tokens
    by_rows = output / max_rows
    rows_s = profile.decode_constant_s(max_rows)
    return np.maximum(pages * full_s, by_rows * rows_s)


def stretch(requests: Sequence[TraceRequest], start_s: float, duration_s: float) -> list[TraceRequest]:
    """The requests of a part of a trace."""
    return [one for one in requests if start_s <= one.arrival_s < start_s + duration_s]
