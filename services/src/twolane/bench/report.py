"""What a run says: a table for people, JSON for programs, both from the same samples.

Failures are counted by code and are misses in every goodput; nothing is left out quietly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from twolane.bench.client import Sample
from twolane.bench.machine import MachineFacts
from twolane.workload.latency import (
    ALL_CLASSES,
    ClassSummary,
    Outcome,
    RequestRecord,
    SloLimits,
    summarize_records,
)

REPORT_FORMAT = 1
MIN_DURATION_S = 1e-3


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run.

    Attributes:
        settings: what was asked for, without secrets.
        samples: one a request, in the order of the plan.
        left_out: requests of the load that were too long to send.
        elapsed_s: seconds from the first arrival to the last answer.
        interrupted: whether somebody stopped the run before its end.
        slo: the limits of goodput.
        machine: where the load generator ran.
    """

    settings: dict[str, Any]
    samples: Sequence[Sample]
    left_out: int
    elapsed_s: float
    interrupted: bool
    slo: SloLimits
    machine: MachineFacts

    @property
    def arrival_span_s(self) -> float:
        """Seconds over which requests arrived; for a single one, the time it took."""
        span_s = max(sample.due_s for sample in self.samples)
        return span_s if span_s > 0 else max(self.elapsed_s, MIN_DURATION_S)

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests by code, most frequent first."""
        return dict(
            Counter(s.error_code for s in self.samples if s.outcome is not Outcome.DONE).most_common()
        )

    @property
    def worst_lag_s(self) -> float:
        """Most that a request was sent later than due: above some milliseconds the generator was too slow."""
        return max(sample.sent_s - sample.due_s for sample in self.samples)

    def summaries(self) -> dict[str, ClassSummary]:
        """Numbers per length class, and of all."""
        return summarize_records([_record(s) for s in self.samples], self.slo, self.arrival_span_s)


def _record(sample: Sample) -> RequestRecord:
    return RequestRecord(
        length_class=sample.length_class,
        arrival_s=sample.due_s,
        first_token_s=sample.first_s,
        last_token_s=sample.last_s,
        output_tokens=sample.output_tokens,
        worst_gap_s=sample.worst_gap_s,
        outcome=sample.outcome,
    )


def as_json(result: RunResult) -> dict[str, Any]:
    """The whole run as JSON values; numbers that were not measured are null."""
    totals = {
        "requests": len(result.samples),
        "left_out_too_long": result.left_out,
        "prompt_tokens": sum(s.prompt_tokens for s in result.samples),
        "cached_tokens": sum(s.cached_tokens for s in result.samples),
        "output_tokens": sum(s.output_tokens for s in result.samples),
        "elapsed_s": result.elapsed_s,
        "arrival_span_s": result.arrival_span_s,
        "worst_lag_s": result.worst_lag_s,
    }
    found: dict[str, Any] = _without_nan(
        {
            "format": REPORT_FORMAT,
            "settings": result.settings,
            "slo": {"ttft_s": dict(result.slo.ttft_s), "tpot_s": result.slo.tpot_s},
            "interrupted": result.interrupted,
            "totals": totals,
            "classes": {name: asdict(summary) for name, summary in result.summaries().items()},
            "errors": result.errors,
            "machine": asdict(result.machine),
            "requests": [asdict(sample) | {"outcome": sample.outcome.value} for sample in result.samples],
        }
    )
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def class_table(result: RunResult) -> Table:
    """One row a length class, all requests last; times in milliseconds. Fits 80 columns."""
    title = f"{len(result.samples)} requests in {result.elapsed_s:.1f} s (times in ms)"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("class", no_wrap=True)
    for header in ("sent", "failed", "TTFT\np50", "\np90", "\np99", "TPOT\np50", "\np99"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in ("worst\ngap", "in SLO", "goodput\n1/s"):
        table.add_column(header, justify="right", no_wrap=True)
    summaries = result.summaries()
    for name in (*sorted(set(summaries) - {ALL_CLASSES}), ALL_CLASSES):
        row = summaries[name]
        times = (row.ttft_p50_s, row.ttft_p90_s, row.ttft_p99_s, row.tpot_p50_s, row.tpot_p99_s)
        cells = [str(row.count), str(row.failed), *map(_ms, times), _ms(row.worst_gap_s)]
        table.add_row(name, *cells, f"{row.slo_attainment:.1%}", f"{row.goodput_per_s:.2f}")
    return table


def footnotes(result: RunResult) -> list[str]:
    """What the table doesn't say: limits, failures, throughput, and doubts about the measurement."""
    ttft = ", ".join(f"{name} {limit_s * 1000:.0f} ms" for name, limit_s in result.slo.ttft_s.items())
    lines = [f"SLO: TTFT {ttft}; TPOT {result.slo.tpot_s * 1000:.0f} ms. A failed request is a miss."]
    output = sum(s.output_tokens for s in result.samples)
    prompt = sum(s.prompt_tokens for s in result.samples)
    cached = sum(s.cached_tokens for s in result.samples)
    rate = output / max(result.elapsed_s, MIN_DURATION_S)
    lines.append(
        f"{prompt} prompt tokens ({cached} from caches), {output} answer tokens, {rate:.1f} per second"
    )
    if result.interrupted:
        lines.append("the run was stopped before its end; what was not sent is not in these numbers")
    if result.left_out:
        lines.append(
            f"{result.left_out} requests of the load were left out: prompts above --max-input-tokens"
        )
    if result.errors:
        listed = ", ".join(f"{code} ×{count}" for code, count in result.errors.items())
        lines.append(f"failed: {listed}")
    if result.worst_lag_s > 0.05:
        lines.append(
            f"caution: a request was sent {result.worst_lag_s * 1000:.0f} ms late; this machine is too busy"
        )
    return lines


def _ms(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    return f"{seconds * 1000:.1f}" if seconds < 0.0999 else f"{seconds * 1000:.0f}"
