"""A comparison of policies as Markdown tables and as JSON that stays small.

Also which targets a policy meets against fcfs, and in how many cells it is better or worse than each rival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from twolane.sim.compare import BASELINE, Cell

Row = Mapping[str, Any]

HEADER = (
    "| workload | load | policy | short TTFT p90 (s) | ratio to fcfs | long TTFT p99, ratio | SLO misses "
    "| goodput, ratio | TPOT p99 (ms) |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def comparison_tables(rows: Sequence[Row]) -> str:
    """A table per workload: means over seeds, ratios paired with fcfs and their 95 % intervals."""
    parts = []
    for name in dict.fromkeys(row["workload"] for row in rows):
        lines = [_line(row) for row in sorted(rows, key=_load) if row["workload"] == name]
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


def _load(row: Row) -> float:
    return float(row["load"])


# Targets against fcfs at equal load, and from which share of fcfs's own misses on they can be met.
SHORT_P90, MISSES, GOODPUT, LONG_P99 = 0.4, 0.5, 1.5, 1.1
LEAST_MISSES, GOODPUT_MISSES = 0.005, 1 / 3
TARGET_HEADER = (
    "| workload | load | seeds | short TTFT p90 (at most 0.4) | SLO misses, fcfs → policy (at most half) "
    "| goodput (1.5 where fcfs misses a third) | long TTFT p99 (at most 1.1) |\n" + "| --- " * 7 + "|"
)

HEAVY = 0.7
MET_HEADER = f"| policy | from {100 * HEAVY:.0f} % load on | all loads |\n" + "| --- " * 3 + "|"


def target_table(rows: Sequence[Row], policy: str) -> str:
    """Every cell of a policy against its targets: ratios to fcfs with intervals; missed ones in bold."""
    base = _by_cell(rows, BASELINE)
    lines = []
    for row in sorted(rows, key=_load):
        pair = base.get((row["workload"], row["load"]))
        if row["policy"] == policy and pair is not None:
            lines.append((row["workload"], _targets(row, pair)))
    order = list(dict.fromkeys(row["workload"] for row in rows))
    lines.sort(key=lambda line: order.index(line[0]))
    return "\n".join([f"## {policy} against fcfs\n", TARGET_HEADER, *(line for _, line in lines)]) + "\n"


def _by_cell(rows: Sequence[Row], policy: str) -> dict[tuple[str, float], Row]:
    """A policy's rows by workload and load."""
    return {(row["workload"], row["load"]): row for row in rows if row["policy"] == policy}


def _targets(row: Row, pair: Row) -> str:
    ours, theirs = row["slo_miss"][0], pair["slo_miss"][0]
    short, long, goodput = (
        row[f"{name}_ratio"] for name in ("short_ttft_p90_s", "long_ttft_p99_s", "goodput_per_s")
    )
    is_mixed = row["mixed"]
    cells = [
        row["workload"],
        f"{100 * row['load']:.0f}%",
        str(row["seeds"]),
        _judged(_interval(short), is_mixed and short[0] is not None and short[0] > SHORT_P90),
        _judged(
            f"{theirs:.1%} → {ours:.1%}",
            ours > max(LEAST_MISSES, MISSES * theirs if is_mixed else theirs + LEAST_MISSES),
        ),
        _judged(_interval(goodput), goodput[0] < (GOODPUT if is_mixed and theirs > GOODPUT_MISSES else 0.98)),
        _judged(_interval(long), long[0] is not None and long[0] > LONG_P99),
    ]
    return "| " + " | ".join(cells) + " |"


def _judged(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text


def met_table(rows: Sequence[Row]) -> str:
    """In how many cells with short and long prompts each policy meets all its targets at once."""
    base = _by_cell(rows, BASELINE)
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        theirs = _by_cell(rows, policy)
        pairs = [(row, base[cell]) for cell, row in theirs.items() if row["mixed"] and cell in base]
        met = [row["load"] for row, pair in pairs if "**" not in _targets(row, pair)]
        heavy = [row for row, _ in pairs if row["load"] >= HEAVY]
        shown = f"{sum(load >= HEAVY for load in met)} of {len(heavy)} | {len(met)} of {len(pairs)}"
        lines.append(f"| {policy} | {shown} |")
    return "\n".join(["## Cells in which all targets are met\n", MET_HEADER, *lines]) + "\n"


# Metrics of the comparison with rivals, and what counts as equal: a share of the rival's, or points.
RIVAL_METRICS = (
    ("slo_miss", "SLO misses", 0.0, 0.005),
    ("short_ttft_p90_s", "short TTFT p90", 0.05, 0.0),
    ("long_ttft_p99_s", "long TTFT p99", 0.05, 0.0),
    ("tpot_p99_s", "TPOT p99", 0.05, 0.0),
)


def rival_table(cells: Sequence[Cell], policy: str) -> str:
    """In how many cells a policy is better than, equal to and worse than each rival, on seeds both have."""
    by_key = {(cell.workload, cell.load, cell.variant): cell for cell in cells}
    labels = [label for _, label, _, _ in RIVAL_METRICS]
    lines = [
        f"## {policy} against each rival: cells better / equal / worse\n",
        "Equal: within half a point of misses, or within 5 %.\n",
        "| rival | " + " | ".join(labels) + " |",
        "| --- " * (len(labels) + 1) + "|",
    ]
    for rival in dict.fromkeys(cell.variant for cell in cells):
        if rival == policy:
            continue
        counts = {metric: [0, 0, 0] for metric, _, _, _ in RIVAL_METRICS}
        for cell in cells:
            other = by_key.get((cell.workload, cell.load, rival))
            if cell.variant == policy and other is not None:
                _count(counts, cell, other)
        shown = [" / ".join(map(str, found)) for found in counts.values()]
        lines.append(f"| {rival} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _count(counts: Mapping[str, list[int]], ours: Cell, theirs: Cell) -> None:
    both = [seed for seed in ours.runs if seed in theirs.runs]
    for metric, _, share, points in RIVAL_METRICS:
        pairs = [(ours.runs[seed][metric], theirs.runs[seed][metric]) for seed in both]
        pairs = [pair for pair in pairs if pair[0] == pair[0] and pair[1] == pair[1]]
        if pairs:
            mine, other = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
            slack = max(points, share * other)
            counts[metric][0 if mine < other - slack else 2 if mine > other + slack else 1] += 1


# Policies with this name have no separate pools.
COLOCATED = "colocated"
BOUND_HEADER = (
    "| rival | fewer misses | of these with its long TTFT p99 at most ×1.1 of fcfs | beyond: cells, "
    "median and largest ratio | more misses, its long p99 at most ×1.1 | more misses, all |\n"
    + "| --- " * 6
    + "|"
)


def bound_table(rows: Sequence[Row], policy: str) -> str:
    """In how many cells each rival in separate pools has fewer misses, and in how many it keeps fcfs's tail.

    Also lists those where it does: there the policy loses.
    """
    ours = _by_cell(rows, policy)
    lines, losses = [], []
    for rival in dict.fromkeys(row["policy"] for row in rows):
        if rival == policy or rival.startswith(COLOCATED):
            continue
        pairs = [(row, ours[cell]) for cell, row in _by_cell(rows, rival).items() if cell in ours]
        fewer = [(row, our) for row, our in pairs if row["slo_miss"][0] < our["slo_miss"][0] - LEAST_MISSES]
        more = [row for row, our in pairs if row["slo_miss"][0] > our["slo_miss"][0] + LEAST_MISSES]
        kept = [(row, our) for row, our in fewer if _tail(row) <= LONG_P99]
        beyond = sorted(_tail(row) for row, _ in fewer if _tail(row) > LONG_P99)
        shown = f"{len(beyond)}: ×{beyond[len(beyond) // 2]:.2f}, ×{beyond[-1]:.2f}" if beyond else "0"
        held = sum(_tail(row) <= LONG_P99 for row in more)
        lines.append(f"| {rival} | {len(fewer)} | {len(kept)} | {shown} | {held} | {len(more)} |")
        losses += [_loss(row, our) for row, our in kept]
    parts = [
        f"## {policy} and its rivals under the bound on long prompts\n",
        "Cells that differ by more than half a point of misses.\n",
        BOUND_HEADER,
        *lines,
    ]
    if losses:
        header = "| rival | workload | load | misses | long TTFT p99 | misses of {0} | its long TTFT p99 |"
        parts += ["\nFewer misses within the bound:\n", header.format(policy), "| --- " * 7 + "|", *losses]
    return "\n".join(parts) + "\n"


def _loss(row: Row, ours: Row) -> str:
    shown = [f"{each['slo_miss'][0]:.1%} | ×{_tail(each):.2f}" for each in (row, ours)]
    return f"| {row['policy']} | {row['workload']} | {100 * row['load']:.0f}% | {' | '.join(shown)} |"


def _tail(row: Row) -> float:
    """Its long p99 as a multiple of that of fcfs; 1 without long prompts."""
    ratio = row.get("long_ttft_p99_s_ratio")
    return 1.0 if ratio is None or ratio[0] is None else float(ratio[0])


def compact_json(rows: Sequence[Row]) -> bytes:
    """One row a line, numbers with four significant digits."""
    return b"[\n" + b",\n".join(orjson.dumps(_short(row)) for row in rows) + b"\n]\n"


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
