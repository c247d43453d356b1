"""The commands `twolane simulate` and `twolane bench policies`: flags in, files and a table out.

The command line calls `simulate_main` and `compare_main` with the arguments after the verb; both return
an exit status.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from twolane.core.errors import InvalidRequest, TwolaneError
from twolane.policies.decode import DECODE_POLICIES
from twolane.policies.least_wait import PLACEMENT_POLICIES
from twolane.policies.registry import PREFILL_POLICIES
from twolane.sim.cluster import Simulation
from twolane.sim.compare import (
    ABLATION,
    POLICIES,
    Cell,
    Plan,
    Variant,
    default_settings,
    summary_rows,
)
from twolane.sim.comparison_runs import RunBook, processors, run_plan
from twolane.sim.comparison_tables import (
    bound_table,
    compact_json,
    comparison_tables,
    met_table,
    rival_table,
    target_table,
)
from twolane.sim.plots import by_load
from twolane.sim.profile_file import BUILT_IN, DEFAULT
from twolane.sim.progress import shown_progress
from twolane.sim.report import simulation_html, simulation_json
from twolane.sim.settings import Failure, SimSettings
from twolane.sim.workloads import Workload, mix_workloads, trace_workload
from twolane.workload.generator import MixSettings, generate_mix
from twolane.workload.traces import TraceRequest, overlaid, read_trace

PROFILE_HELP = f"a file of `twolane profile`, or one of {', '.join(BUILT_IN)}"
Say = Callable[[str], None]

# The most telling ones first: a comparison may be stopped early.
LOADS = (1.0, 0.7, 0.9, 1.1, 0.3, 0.5)
QUICK_LOADS = (0.7, 0.9, 1.0)
PANELS = {
    "short_ttft_p90_s": "short TTFT p90 (s)",
    "long_ttft_p99_s": "long TTFT p99 (s)",
    "slo_miss": "share of SLO misses",
    "goodput_per_s": "goodput (requests/s)",
}


def simulate_main(argv: Sequence[str], say: Say | None = None) -> int:
    """Plays a trace or a generated mix through a simulated cluster.

    Args:
        argv: the arguments after the verb.
        say: takes progress lines and the result; standard error and output by default.

    Returns:
        0, or 2 for bad input, whose message goes to standard error.
    """
    options = _simulate_parser().parse_args(list(argv))
    return _guarded(lambda: _simulate(options, say))


def compare_main(argv: Sequence[str], say: Say | None = None) -> int:
    """Compares prefill policies over mixes, traces, loads and seeds; arguments as for simulate_main."""
    options = _compare_parser().parse_args(list(argv))
    return _guarded(lambda: _compare(options, say or _to_stderr))


def _guarded(action: Callable[[], None]) -> int:
    try:
        action()
    except TwolaneError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    return 0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _simulate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("twolane simulate", description="Simulate a cluster under a workload.")
    source = parser.add_argument_group("workload")
    source.add_argument(
        "--trace", type=Path, help="normalised trace (.csv or .csv.gz); else a mix is generated"
    )
    source.add_argument(
        "--rate-scale", type=float, default=1.0, help="a trace arrives this many times faster"
    )
    source.add_argument(
        "--copies", type=int, default=1, help="so many of the trace at once, each turned to another start"
    )
    source.add_argument("--limit", type=int, help="requests at most")
    source.add_argument("--rate", type=float, default=20.0, help="requests per second of the mix")
    source.add_argument("--duration-s", type=float, default=300.0, help="seconds of the mix")
    source.add_argument("--short-share", type=float, default=0.8, help="share of short prompts in the mix")
    source.add_argument(
        "--arrival-cv", type=float, default=1.0, help="variation of gaps in the mix; 1 is Poisson"
    )
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--policy", choices=PREFILL_POLICIES, default="laps")
    cluster.add_argument("--decode-policy", choices=DECODE_POLICIES, default="past_future")
    cluster.add_argument("--profile", default=DEFAULT, help=PROFILE_HELP)
    cluster.add_argument("--prefill-workers", type=int, default=1)
    cluster.add_argument("--decode-workers", type=int, default=2)
    cluster.add_argument(
        "--mixed-workers", type=int, default=0, help="instead of both kinds: workers that do both parts"
    )
    cluster.add_argument("--graphs", action="store_true", help="small steps run as captured graphs")
    cluster.add_argument(
        "--placement", choices=tuple(PLACEMENT_POLICIES), default="", help="a placement policy of the router"
    )
    cluster.add_argument("--lane-groups", action="store_true", help="one lane per prefill worker")
    cluster.add_argument("--roles", action="store_true", help="let the role controller move workers")
    cluster.add_argument(
        "--skip-disaggregation", action="store_true", help="allow short prompts on decode workers"
    )
    cluster.add_argument(
        "--fail",
        action="append",
        default=[],
        metavar="AT:WORKER:DOWN",
        help="a worker fails (seconds, number, seconds)",
    )
    parser.add_argument("--warmup-s", type=float, default=0.0, help="requests before are not counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for simulation.json and simulation.html")
    return parser


def _simulate(options: argparse.Namespace, say: Say | None) -> None:
    requests = _requests(options)
    if not requests:
        raise InvalidRequest("the workload holds no request; raise --rate, --duration-s or --limit")
    settings = SimSettings(
        profile=options.profile,
        prefill_workers=options.prefill_workers,
        decode_workers=options.decode_workers,
        mixed_workers=options.mixed_workers,
        graphs=options.graphs,
        prefill_policy=options.policy,
        decode_policy=options.decode_policy,
        placement=options.placement,
        lane_groups=options.lane_groups,
        roles=options.roles,
        skip_disaggregation=options.skip_disaggregation,
        warmup_s=options.warmup_s,
        sample_s=max(0.1, requests[-1].arrival_s / 2000.0),
        failures=tuple(_failure(text) for text in options.fail),
        seed=options.seed,
    )
    tell = say or _to_stderr
    with shown_progress(len(requests), tell) as progress:
        outcome = Simulation(settings, requests).run(progress)
    document = simulation_json(outcome, settings)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "simulation.json").write_bytes(document)
        title = f"twolane simulation: {options.policy}"
        (options.out / "simulation.html").write_text(
            simulation_html(outcome, settings, title), encoding="utf-8"
        )
        tell(f"wrote simulation.json and simulation.html to {options.out}")
    print(document.decode()) if say is None else say(document.decode())


def _requests(options: argparse.Namespace) -> list[TraceRequest]:
    if options.trace is not None:
        requests = read_trace(options.trace, rate_scale=options.rate_scale, limit=options.limit)
        return overlaid(requests, options.copies, np.random.default_rng(options.seed))
    mix = MixSettings(
        rate_per_s=options.rate,
        duration_s=options.duration_s,
        short_share=options.short_share,
        arrival_cv=options.arrival_cv,
    )
    return generate_mix(mix, np.random.default_rng(options.seed))[: options.limit]


def _failure(text: str) -> Failure:
    try:
        at_s, worker, down_s = text.split(":")
        return Failure(float(at_s), int(worker), float(down_s))
    except ValueError as error:
        raise InvalidRequest(f"--fail {text!r} must be SECONDS:WORKER:SECONDS, as in 60:0:30") from error


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "twolane bench policies", description="Compare prefill policies in simulation."
    )
    parser.add_argument(
        "--traces", type=Path, nargs="*", default=[], help="normalised traces to add to the mixes"
    )
    parser.add_argument("--workloads", nargs="*", help="only these mixes and traces, by name")
    parser.add_argument("--policies", nargs="*", help="only these policies (fcfs always runs)")
    parser.add_argument("--loads", type=float, nargs="*", help="shares of the fcfs capacity")
    parser.add_argument("--seeds", type=int, default=5, help="runs per cell")
    parser.add_argument("--requests", type=int, default=3000, help="requests per run")
    parser.add_argument("--prefill-workers", type=int, default=2)
    parser.add_argument("--profile", default=DEFAULT, help=PROFILE_HELP)
    parser.add_argument(
        "--jobs", type=int, default=processors(), help="runs at a time; one per processor by default"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="begin nothing new after so long; the same command goes on later where this one ended",
    )
    parser.add_argument(
        "--any-code", action="store_true", help="go on in --out even if its runs were made by other code"
    )
    parser.add_argument(
        "--ablation", action="store_true", help="compare the parts of laps instead of all policies"
    )
    parser.add_argument("--quick", action="store_true", help="three loads, two seeds, 1,000 requests")
    parser.add_argument(
        "--out", type=Path, help="folder for runs, tables and figures; what is there is not run again"
    )
    return parser


def _compare(options: argparse.Namespace, say: Say) -> None:
    quick = options.quick
    variants: tuple[Variant, ...] = ABLATION if options.ablation else POLICIES
    if options.policies:
        unknown = set(options.policies) - {variant.name for variant in variants}
        if unknown:
            raise InvalidRequest(f"unknown policies {', '.join(sorted(unknown))}")
        variants = tuple(one for one in variants if one.name in options.policies or one.name == "fcfs")
    plan = Plan(
        workloads=_workloads(options),
        variants=variants,
        loads=options.loads or (QUICK_LOADS if quick else LOADS),
        seeds=range(2 if quick else options.seeds),
        requests=1000 if quick else options.requests,
        settings=replace(
            default_settings(), prefill_workers=options.prefill_workers, profile=options.profile
        ),
    )
    if options.jobs < 1:
        raise InvalidRequest(f"--jobs {options.jobs}: must be at least 1")
    book = RunBook.open(options.out, plan, any_code=options.any_code)
    run_plan(plan, book, say, options.jobs, 60.0 * options.minutes)
    if options.out is not None:
        cells = book.cells(plan)
        _save_comparison(options.out, plan, cells)
        runs = sum(len(cell.runs) for cell in cells)
        full = len(plan.workloads) * len(plan.loads) * len(plan.variants) * len(plan.seeds)
        say(f"{runs} of {full} runs; wrote tables and {len(plan.workloads)} figures to {options.out}")


def _save_comparison(folder: Path, plan: Plan, cells: list[Cell]) -> None:
    rows = summary_rows(cells)
    (folder / "comparison.json").write_bytes(compact_json(rows))
    (folder / "tables.md").write_text(comparison_tables(rows), encoding="utf-8")
    ours = [name for name in ("laps", "+adaptive") if any(row["policy"] == name for row in rows)]
    text = "\n".join(
        "\n".join(
            [target_table(rows, name), met_table(rows), rival_table(cells, name), bound_table(rows, name)]
        )
        for name in ours
    )
    (folder / "targets.md").write_text(text, encoding="utf-8")
    for name in dict.fromkeys(cell.workload for cell in cells):
        (folder / f"{name}.svg").write_text(by_load(rows, name, PANELS), encoding="utf-8")


def _workloads(options: argparse.Namespace) -> list[Workload]:
    found = [*mix_workloads(), *(trace_workload(path) for path in options.traces)]
    if options.workloads is None:
        return found
    names = [workload.name for workload in found]
    unknown = [name for name in options.workloads if name not in names]
    if unknown:
        raise InvalidRequest(f"unknown workloads {', '.join(unknown)}; there are {', '.join(names)}")
    return [workload for workload in found if workload.name in options.workloads]
