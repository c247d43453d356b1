"""The command `twolane bench scaling`: flags in, runs and a table out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from twolane.core.errors import TwolaneError
from twolane.sim.scaling_cases import SPREADS, Size
from twolane.sim.scaling_compare import PLANNER, POSSIBLE, RIVALS, Plan, Row, run_plan
from twolane.sim.scaling_summary import settings_table, summary, table

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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run per trace and seed")
    parser.add_argument("--clients", nargs="+", choices=tuple(SPREADS), default=list(SPREADS))
    parser.add_argument("--hours", type=float, default=1.0, help="hours of a trace at most")
    parser.add_argument("--workers", type=float, default=6.0, help="workers' worth of work on average")
    parser.add_argument(
        "--goal", type=float, nargs="+", default=[0.99, 0.95], help="shares of requests within their targets"
    )
    parser.add_argument("--quick", action="store_true", help="few settings of the baselines")
    parser.add_argument(
        "--only", nargs="+", choices=(PLANNER, POSSIBLE, *RIVALS), help="play these, keep the rest of --out"
    )
    parser.add_argument("--out", type=Path, help="folder for scaling.json and scaling.md")
    return parser


def _compare(options: argparse.Namespace, say: Say | None) -> None:
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
    families = tuple(options.only or (PLANNER, POSSIBLE, *RIVALS))
    size = Size(options.hours, options.workers)
    plan = Plan(options.traces, options.seeds, options.goal, size, options.quick, families, options.clients)
    rows = _kept(options.out, plan) if options.only and options.out else []
    for fresh in run_plan(plan, tell):
        rows += fresh
        if options.out is not None:
            # A long comparison that is ended keeps what it has.
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "scaling.json").write_bytes(orjson.dumps({"runs": rows}))
    complete = all(any(row["family"] == family for row in rows) for family in (PLANNER, *RIVALS))
    tables = [table(rows, goal) for goal in options.goal] if complete else []
    text = "\n".join([*tables, settings_table(rows)])
    if options.out is not None:
        found = [summary(rows, goal) for goal in options.goal] if complete else []
        (options.out / "scaling.json").write_bytes(orjson.dumps({"summary": found, "runs": rows}))
        (options.out / "scaling.md").write_text(text, encoding="utf-8")
    (say or print)(text)


def _kept(folder: Path, plan: Plan) -> list[Row]:
    """Rows of earlier runs that are not played again."""
    path = folder / "scaling.json"
    if not path.exists():
        return []
    rows: list[Row] = orjson.loads(path.read_bytes())["runs"]
    traces = {trace.name.split(".")[0] for trace in plan.traces}
    again = {*plan.families, *(("work",) if POSSIBLE in plan.families else ())}
    return [
        row
        for row in rows
        if row["family"] not in again
        or row["trace"] not in traces
        or row["seed"] not in plan.seeds
        or row["clients"] not in plan.clients
    ]
