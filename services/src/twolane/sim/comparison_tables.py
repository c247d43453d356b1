"""A comparison of policies as Markdown tables and as JSON that stays small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

Row = Mapping[str, Any]

HEADER = (
    "| workload | load | policy | short TTFT p90 (s) | ratio to fcfs | long TTFT p99, ratio | SLO misses "
    "| goodput, ratio | TPOT p99 (ms) |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def comparison_tables(rows: Sequence[Row]) -> str:
    """A table per workload: means over seeds, ratios paired with fcfs and their 95 % intervals."""
    parts = []
    for name in dict.fromkeys(row["workload"] for row in rows):
        lines = [_line(row) for row in rows if row["workload"] == name]
        parts.append("\n".join([f"## {name}\n", HEADER, *lines]))
    return "\n\n".join(parts) + "\n"


def _line(row: Row) -> str:
    cells = [
        row["workload"],
        f"{100 * row['load']:.0f}%",
        row["policy"],
        _number(row["short_ttft_p90_s"][0], "{:.3f}"),
        _interval(row.get("short_ttft_p90_s_ratio")),
        _interval(row.get("long_ttft_p99_s_ratio")),
        _number(row["slo_miss"][0], "{:.2%}"),
        _interval(row.get("goodput_per_s_ratio")),
        _number(row["tpot_p99_s"][0], "{:.1f}", 1e3),
    ]
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "–" if value is None else form.format(factor * value)


def _interval(triple: Sequence[float | None] | None) -> str:
    if triple is None or triple[0] is None:
        return "–"
    mean, low, high = triple
    return f"{mean:.2f} ({low:.2f}–{high:.2f})"


def compact_json(rows: Sequence[Row]) -> bytes:
    """One row a line, numbers with four significant digits."""
    return b"[\n" + b",\n".join(orjson.dumps(_short(row)) for row in rows) + b"\n]\n"


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
