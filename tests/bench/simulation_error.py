"""How far simulated latencies are off the measured ones: real processes with the demo model on this CPU.

Run by hand: `python tests/bench/simulation_error.py [--rounds 3] [--out FOLDER]`. Profiles the engine, probes
the idle stack, replays a mix against `twolane up`, simulates the very same requests with the profile, and
prints the error of every percentile per class.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from live_schedulers import TWOLANE, serving

from twolane.bench.machine import machine_facts
from twolane.cli import topology
from twolane.cli.topology import UpConfig
from twolane.policies.decode import DecodeSettings
from twolane.policies.settings import PrefillSettings
from twolane.sim.cluster import Simulation
from twolane.sim.fit import Probe, with_service
from twolane.sim.profile import EngineProfile
from twolane.sim.profile_file import load_profile
from twolane.sim.settings import SimSettings
from twolane.workload.traces import TraceRequest

METRICS = ("ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s")
POLICIES = ("fcfs", "laps")
MIX = {
    "--duration-s": "40",
    "--rate-per-s": "5",
    "--short-share": "0.9",
    "--long-high-tokens": "4000",
    "--max-output-tokens": "32",
    "--turns-max": "1",
    "--requests": "400",
}
IDLE = {
    "--duration-s": "30",
    "--rate-per-s": "1.5",
    "--short-share": "1",
    "--max-output-tokens": "48",
    "--turns-max": "1",
    "--requests": "40",
}
# What workers are started with; see worker.config.
WORKER = PrefillSettings(boundary_min_tokens=256, long_chunk_tokens=512, max_batch_tokens=2048)

SHORT_TOKENS = 256
SERVICE = ("arrival_s", "reply_s", "between_steps_s", "transfer_latency_s")

Report = dict[str, Any]


def bench(url: str, load: Mapping[str, str], seed: int, folder: Path) -> Report:
    """One replay against the stack."""
    flags = ["--url", url, "--seed", str(seed), "--output", str(folder / "run")]
    flags += [word for pair in load.items() for word in pair]
    flags += ["--model-dir", str(topology.model_folder(UpConfig()))]
    subprocess.run([*TWOLANE, "bench", "serve", *flags], check=True, capture_output=True, timeout=400)
    report: Report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
    return report


def probes_of(report: Report) -> list[Probe]:
    """The requests of an idle run."""
    return [
        Probe(
            one["prompt_tokens"] - one["cached_tokens"],
            one["cached_tokens"],
            one["output_tokens"],
            one["first_s"] - one["sent_s"],
            one["last_s"] - one["sent_s"],
        )
        for one in report["requests"]
        if one["outcome"] == "done"
    ]


def requests_of(report: Report) -> list[TraceRequest]:
    """What was sent, by the server's own counts."""
    found = [
        TraceRequest(one["due_s"], one["prompt_tokens"], one["output_tokens"], one["cached_tokens"])
        for one in report["requests"]
        if one["outcome"] == "done"
    ]
    return sorted(found, key=lambda request: request.arrival_s)


def measured(report: Report) -> dict[str, dict[str, float]]:
    """Per class what clients saw; classes by the uncached tokens that the server counted."""
    found: dict[str, tuple[list[float], list[float]]] = {"short": ([], []), "long": ([], []), "all": ([], [])}
    for one in report["requests"]:
        if one["outcome"] != "done":
            continue
        name = "short" if one["prompt_tokens"] - one["cached_tokens"] <= SHORT_TOKENS else "long"
        for ttft, tpot in (found[name], found["all"]):
            ttft.append(one["first_s"] - one["due_s"])
            if one["output_tokens"] > 1:
                tpot.append((one["last_s"] - one["first_s"]) / (one["output_tokens"] - 1))
    return {name: percentiles(*values) for name, values in found.items()}


def simulated(
    requests: Sequence[TraceRequest], policy: str, profile: EngineProfile
) -> dict[str, dict[str, float]]:
    """Per class what the simulator says of the same requests on the same stack."""
    settings = SimSettings(
        prefill_policy=policy,
        prefill=WORKER,
        decode=DecodeSettings(max_output_tokens=64),
        max_rows=64,
        placement="least_wait",
        short_tokens=SHORT_TOKENS,
    )
    columns = Simulation(settings, requests, profile).run().columns
    found: dict[str, dict[str, float]] = {}
    for name, chosen in (("short", [0]), ("long", [1]), ("all", [0, 1])):
        rows = np.isin(columns.class_index, chosen)
        tpot = columns.tpot_s[rows]
        found[name] = percentiles(columns.ttft_s[rows].tolist(), tpot[~np.isnan(tpot)].tolist())
    return found


def percentiles(ttft_s: Sequence[float], tpot_s: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 of both; nothing of what there is none of."""
    found: dict[str, float] = {}
    for name, values in (("ttft", ttft_s), ("tpot", tpot_s)):
        if values:
            cuts = np.quantile(values, (0.5, 0.9, 0.99))
            found |= {f"{name}_p{cut}_s": float(at) for cut, at in zip((50, 90, 99), cuts, strict=True)}
    return found


def errors(
    measurement: Mapping[str, Mapping[str, float]], simulation: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Per class and metric: simulated over measured, less one; what one side lacks is left out."""
    return {
        name: {
            metric: simulation[name][metric] / ours - 1.0
            for metric, ours in values.items()
            if ours > 0.0 and metric in simulation.get(name, {})
        }
        for name, values in measurement.items()
    }


def table(runs: Sequence[Report]) -> str:
    """Medians over rounds: measured and simulated milliseconds, and the error."""
    lines = ["| policy | class | metric | measured (ms) | simulated (ms) | error |", "| --- " * 6 + "|"]
    for policy in dict.fromkeys(run["policy"] for run in runs):
        chosen = [run for run in runs if run["policy"] == policy]
        for name in ("short", "long", "all"):
            for metric in METRICS:
                known = [run for run in chosen if metric in run["errors"].get(name, {})]
                if not known:
                    continue
                ours, theirs = (
                    statistics.median(1e3 * run[side][name][metric] for run in known)
                    for side in ("measured", "simulated")
                )
                error = statistics.median(run["errors"][name][metric] for run in known)
                label = metric.removesuffix("_s").replace("_", " ")
                lines.append(f"| {policy} | {name} | {label} | {ours:.1f} | {theirs:.1f} | {error:+.0%} |")
    return "\n".join(lines)


def profiled(folder: Path, clock: str) -> EngineProfile:
    """The engine's steps, timed in a process of its own."""
    path = folder / "profile.json"
    flags = ["--rounds", "7", "--budget-s", "60", "--clock", clock, "--out", str(path)]
    done = subprocess.run([*TWOLANE, "profile", *flags], check=True, capture_output=True, timeout=600)
    print(done.stdout.decode(), file=sys.stderr)
    return load_profile(str(path)).profile


def measure(policy: str, seed: int, steps: EngineProfile) -> Report:
    """One stack: probed while idle, then under the mix, then simulated."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with serving(policy, folder) as url:
            idle = bench(url, IDLE, 1000 + seed, folder)
            busy = bench(url, MIX, seed, folder)
    profile = with_service(steps, probes_of(idle))
    ours, theirs = measured(busy), simulated(requests_of(busy), policy, profile)
    return {
        "policy": policy,
        "seed": seed,
        "worst_lag_s": busy["totals"]["worst_lag_s"],
        "failed": busy["errors"],
        "service": {name: getattr(profile, name) for name in SERVICE},
        "measured": ours,
        "simulated": theirs,
        "errors": errors(ours, theirs),
    }


def main() -> None:
    """Runs all rounds, prints the table and saves it with every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("elapsed", "processor"), default="elapsed")
    parser.add_argument("--out", type=Path, default=Path("results/simulation-error"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        steps = profiled(Path(scratch), arguments.clock)
    runs = []
    for seed in range(arguments.rounds):
        for policy in POLICIES:
            print(f"round {seed + 1}: {policy}", file=sys.stderr, flush=True)
            runs.append(measure(policy, seed, steps))
    arguments.out.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": asdict(machine_facts()),
        "steps": asdict(replace(steps, arrival_s=0.0, reply_s=0.0)),
        "runs": runs,
    }
    (arguments.out / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "table.md").write_text(table(runs) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
