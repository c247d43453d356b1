"""Turns timings into rows: throughput, share of the physical limit, spread over rounds, error against the
reference."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from twolane.kernels.bench.case import Case
from twolane.kernels.bench.measure import Ceilings


@dataclass(frozen=True)
class Row:
    """One contender at one case; ``share`` is the limit's time over the measured time, 1 is the limit
    itself."""

    op: str
    case: str
    contender: str
    time_us: float
    spread_percent: float
    gigabytes_per_s: float
    teraflops_per_s: float
    limit: str
    share: float
    error: float | None


def make_row(
    case: Case, contender: str, rounds_s: Sequence[float], ceilings: Ceilings, error: float | None
) -> Row:
    """Median over rounds; the limit is the larger of the time to move the bytes and to compute the FLOPs."""
    median = statistics.median(rounds_s)
    bytes_s = case.bytes_moved / ceilings.copy_bytes_per_s
    flops_s = case.flops / ceilings.matmul_flops_per_s
    return Row(
        op=case.op,
        case=case.label,
        contender=contender,
        time_us=median * 1e6,
        spread_percent=100 * (max(rounds_s) - min(rounds_s)) / median,
        gigabytes_per_s=case.bytes_moved / median / 1e9,
        teraflops_per_s=case.flops / median / 1e12,
        limit="bytes" if bytes_s >= flops_s else "FLOPs",
        share=max(bytes_s, flops_s) / median,
        error=error,
    )


def table(rows: Sequence[Row], *, head: bool) -> str:
    """Fixed-width text, one line per row, under a line of column names if asked for."""
    names = (
        f"{'operation':24} {'case':34} {'contender':14} {'µs':>9} {'±%':>5} {'GB/s':>7} {'TFLOP/s':>8}"
        f" {'limit':>6} {'share':>6}  error"
    )
    return "\n".join([*([names] if head else []), *(_line(row) for row in rows)])


def _line(row: Row) -> str:
    error = "" if row.error is None else f"{row.error:.1e}"
    return (
        f"{row.op:24} {row.case:34} {row.contender:14} {row.time_us:9.1f} {row.spread_percent:5.1f}"
        f" {row.gigabytes_per_s:7.0f} {row.teraflops_per_s:8.1f} {row.limit:>6} {row.share:6.1%}  {error}"
    )
