"""What latencies of a run say: percentiles, SLO attainment and goodput per length class.

The load generator builds one RequestRecord per request, the simulator fills LatencyColumns directly;
both get the same summary. Goodput follows DistServe (arXiv 2401.09670): requests per second within
both the TTFT and the TPOT limit; a failed request is a miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from twolane.core.errors import InvalidRequest

ALL_CLASSES = "all"


class Outcome(Enum):
    """How a request ended, as its client saw it."""

    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What a client measured of one request; times on one clock.

    Attributes:
        length_class: "short" or "long" (the lane), or any other grouping.
        arrival_s: when the request was due to be sent (open loop), not when the socket was free.
        first_token_s: when the first token came, or None.
        last_token_s: when the last token came, or None.
        output_tokens: tokens received.
        worst_gap_s: longest pause between two tokens; 0 with fewer than two.
        outcome: how it ended.
        ttft_limit_s: this request's own limit, or None for its class's.
    """

    length_class: str
    arrival_s: float
    first_token_s: float | None
    last_token_s: float | None
    output_tokens: int
    worst_gap_s: float
    outcome: Outcome
    ttft_limit_s: float | None = None

    @classmethod
    def from_token_times(
        cls, length_class: str, arrival_s: float, token_times_s: Sequence[float], outcome: Outcome
    ) -> RequestRecord:
        """Builds a record from the arrival times of every token, in order."""
        gaps = [after - before for before, after in pairwise(token_times_s)]
        first = token_times_s[0] if token_times_s else None
        last = token_times_s[-1] if token_times_s else None
        return cls(length_class, arrival_s, first, last, len(token_times_s), max(gaps, default=0.0), outcome)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first; None with fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class SloLimits:
    """Limits that an answer must keep to count.

    Attributes:
        ttft_s: limit of the time to the first token by class; a class not named has none.
        tpot_s: limit of the mean time per further token, all classes.
    """

    ttft_s: Mapping[str, float] = field(default_factory=lambda: {"short": 0.4, "long": 2.0})
    tpot_s: float = 0.1


@dataclass(frozen=True, slots=True)
class LatencyColumns:
    """The requests of a run as arrays of one length.

    Attributes:
        classes: names, indexed by class_index.
        class_index: [n] int, class of each request.
        ttft_s: [n] float, NaN without a first token.
        tpot_s: [n] float, NaN with fewer than two tokens.
        worst_gap_s: [n] float.
        done: [n] bool, ended well.
        ttft_limit_s: [n] float, inf where there is none.
    """

    classes: tuple[str, ...]
    class_index: NDArray[np.int64]
    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    worst_gap_s: NDArray[np.float64]
    done: NDArray[np.bool_]
    ttft_limit_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """Numbers of one class; seconds, shares of 1, requests per second. NaN where nothing was measured."""

    count: int
    failed: int
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    worst_gap_s: float
    slo_attainment: float
    goodput_per_s: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds with its bootstrap confidence interval."""

    mean: float
    low: float
    high: float


def columns_of(records: Iterable[RequestRecord], slo: SloLimits) -> LatencyColumns:
    """Turns records into columns, with each request's own limit or its class's."""
    rows = list(records)
    classes = tuple(sorted({row.length_class for row in rows}))
    index = {name: position for position, name in enumerate(classes)}
    limits = [
        slo.ttft_s.get(row.length_class, np.inf) if row.ttft_limit_s is None else row.ttft_limit_s
        for row in rows
    ]
    return LatencyColumns(
        classes=classes,
        class_index=np.array([index[row.length_class] for row in rows], dtype=np.int64),
        ttft_s=np.array([np.nan if row.ttft_s is None else row.ttft_s for row in rows], dtype=np.float64),
        tpot_s=np.array([np.nan if row.tpot_s is None else row.tpot_s for row in rows], dtype=np.float64),
        worst_gap_s=np.array([row.worst_gap_s for row in rows], dtype=np.float64),
        done=np.array([row.outcome is Outcome.DONE for row in rows], dtype=np.bool_),
        ttft_limit_s=np.array(limits, dtype=np.float64),
    )


def summarize(columns: LatencyColumns, slo: SloLimits, duration_s: float) -> dict[str, ClassSummary]:
    """Summary per class, and of all requests under "all".

    Args:
        columns: the requests; leave out those of the warm-up.
        slo: the limits.
        duration_s: seconds over which the requests arrived, for goodput.

    Raises:
        InvalidRequest: the duration is not positive.
    """
    if not duration_s > 0.0:
        raise InvalidRequest(f"duration_s must be above 0, not {duration_s}", param="duration_s")
    met = columns.done & (columns.ttft_s <= columns.ttft_limit_s)
    met &= np.isnan(columns.tpot_s) | (columns.tpot_s <= slo.tpot_s)
    everything = np.ones(len(columns.done), dtype=np.bool_)
    found = {ALL_CLASSES: _summary(columns, met, everything, duration_s)}
    for position, name in enumerate(columns.classes):
        found[name] = _summary(columns, met, columns.class_index == position, duration_s)
    return found


def summarize_records(
    records: Iterable[RequestRecord], slo: SloLimits, duration_s: float
) -> dict[str, ClassSummary]:
    """`summarize` for records."""
    return summarize(columns_of(records, slo), slo, duration_s)


def bootstrap_interval(
    values: Sequence[float], rng: np.random.Generator, *, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Mean of per-seed values and the percentile bootstrap interval of that mean.

    NaN values (nothing measured for a seed) are left out; with one value the interval is that value.
    """
    kept = np.array([value for value in values if not np.isnan(value)], dtype=np.float64)
    if kept.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    means = kept[rng.integers(0, kept.size, (resamples, kept.size))].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(kept.mean()), float(low), float(high))


def intervals_over_seeds(runs: Sequence[ClassSummary], rng: np.random.Generator) -> dict[str, Interval]:
    """An interval for every number of the summaries of one class, one summary per seed."""
    names = [item.name for item in fields(ClassSummary)]
    return {name: bootstrap_interval([float(getattr(run, name)) for run in runs], rng) for name in names}


def _summary(
    columns: LatencyColumns, met: NDArray[np.bool_], chosen: NDArray[np.bool_], duration_s: float
) -> ClassSummary:
    count = int(chosen.sum())
    inside = int((met & chosen).sum())
    ttft, tpot = columns.ttft_s[chosen], columns.tpot_s[chosen]
    gaps = columns.worst_gap_s[chosen]
    return ClassSummary(
        count=count,
        failed=int((chosen & ~columns.done).sum()),
        ttft_p50_s=_quantile(ttft, 0.5),
        ttft_p90_s=_quantile(ttft, 0.9),
        ttft_p99_s=_quantile(ttft, 0.99),
        tpot_p50_s=_quantile(tpot, 0.5),
        tpot_p99_s=_quantile(tpot, 0.99),
        worst_gap_s=float(gaps.max()) if gaps.size else float("nan"),
        slo_attainment=inside / count if count else float("nan"),
        goodput_per_s=inside / duration_s,
    )


def _quantile(values: NDArray[np.float64], share: float) -> float:
    kept = values[~np.isnan(values)]
    return float(np.quantile(kept, share)) if kept.size else float("nan")
