"""The command `twolane bench scaling`: flags in, runs and a table out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from twolane.core.errors import TwolaneError
from twolane.sim.scaling_compare import Plan, Row, candidates, families, run_plan, summary

Say = Callable[[str], None]


def scaling_main(argv: Sequence[str], say: Say | None = None) -> int:
    """Compares scalers over traces.

    Args:
        argv: the arguments after the verb.
        say: takes progress lines and the table; standard error and output by default.

    Returns:
        0, or 2 for bad input, whose message goes to standard error.
    """
    options = _parser().parse_args(list(argv))
    try:
        _compare(options, say)
    except TwolaneError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "twolane bench scaling",
        description="Compare the scaling planner with other scalers in simulation, at equal SLO attainment.",
    )
    parser.add_argument("traces", type=Path, nargs="+", help="normalised traces (.csv or .csv.gz)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per trace")
    parser.add_argument("--hours", type=float, default=2.0, help="hours of a trace at most")
    parser.add_argument("--workers", type=float, default=6.0, help="workers' worth of work on average")
    parser.add_argument("--goal", type=float, default=0.98, help="share of requests within their targets")
    parser.add_argument("--quick", action="store_true", help="few settings of the baselines")
    parser.add_argument("--out", type=Path, help="folder for scaling.json and scaling.md")
    return parser


def _compare(options: argparse.Namespace, say: Say | None) -> None:
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
    scalers = candidates(options.goal, quick=options.quick)
    plan = Plan(options.traces, options.seeds, options.hours, options.workers, scalers)
    rows = run_plan(plan, tell)
    found = summary(rows)
    text = table(rows, found)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scaling.json").write_bytes(orjson.dumps({"summary": found, "runs": rows}))
        (options.out / "scaling.md").write_text(text, encoding="utf-8")
    (say or print)(text)


def table(rows: Sequence[Row], found: Row) -> str:
    """The results as Markdown."""
    planner = found["planner"]
    lines = [
        f"Planner: {planner['gpu_hours']:.1f} GPU-hours a run, {100 * planner['attainment']:.2f} % of "
        f"requests within their targets, {planner['swings']:.2f} swings an hour, "
        f"{planner['moves']:.1f} role moves a run.",
        "",
        "| against | compared at | GPU-hours, ratio (95 %) | attainment | swings/h | runs never matched |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family in families(rows):
        per_run, single = found[family].values()
        ratio = _ratio(per_run["gpu_hours_ratio"])
        never = f"{per_run['never_reached']} of {per_run['runs']}"
        lines.append(
            f"| {family} | its best setting for each run, in hindsight | {ratio} | equal | | {never} |"
        )
        lines.append(f"| {family} | {_single(single)} |")
    lines += ["", "| trace, clients | " + " | ".join(families(rows)) + " |"]
    lines.append("| --- |" + " --- |" * len(families(rows)))
    traces = dict.fromkeys(f"{row['trace']}, {row['clients']}" for row in rows)
    for trace in traces:
        cells = [
            found[family]["best setting of each run"]["by_trace"].get(trace) for family in families(rows)
        ]
        lines.append(f"| {trace} | " + " | ".join("never" if c is None else _ratio(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _single(found: Row) -> str:
    if found["setting"] is None:
        return f"one setting for all runs | none is enough | {100 * found['best_attainment']:.2f} % | |"
    words = f"one setting for all runs: {found['setting']} | {_ratio(found['gpu_hours_ratio'])}"
    return f"{words} | {100 * found['attainment']:.2f} % | {found['swings']:.2f} |"


def _ratio(interval: Sequence[float]) -> str:
    return f"{interval[0]:.2f} ({interval[1]:.2f}–{interval[2]:.2f})"
