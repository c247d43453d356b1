"""How far simulated latencies are off the measured ones: real processes with the demo model on this CPU.

Run by hand: first `stack_runs.py --profile` and `stack_runs.py --policy P --seed N` for some rounds into one
folder, then `python tests/bench/simulation_error.py --records FOLDER [--out FOLDER]`. Each run is simulated
with what the *other* rounds have shown: by a profile of the steps that workers logged, and by one of the
engine in a loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from twolane.policies.decode import DecodeSettings
from twolane.policies.settings import PrefillSettings
from twolane.sim.cluster import Simulation
from twolane.sim.fit import Probe, with_service
from twolane.sim.logged_steps import LoggedStep, fit_logged, read_steps
from twolane.sim.profile import EngineProfile
from twolane.sim.profile_file import load_profile
from twolane.sim.settings import SimSettings
from twolane.workload.traces import TraceRequest

METRICS = ("ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s")
# What workers are started with; see worker.config.
WORKER = PrefillSettings(boundary_min_tokens=256, long_chunk_tokens=512, max_batch_tokens=2048)

SHORT_TOKENS = 256
# A worker's loop from the end of a logged step to the begin of the next, as a trace of it showed. Probes
# can't tell it from colder steps.
BETWEEN_STEPS_S = 0.0003
# What a profile is made of: the steps of the other rounds, or an engine that does nothing else.
SOURCES = ("steps", "loop")

Report = dict[str, Any]


def probes_of(requests: Sequence[Mapping[str, float]]) -> list[Probe]:
    """The requests of a probe."""
    return [
        Probe(
            int(one["prompt_tokens"] - one["cached_tokens"]),
            int(one["cached_tokens"]),
            int(one["output_tokens"]),
            one["first_s"] - one["sent_s"],
            one["last_s"] - one["sent_s"],
        )
        for one in requests
    ]


def requests_of(requests: Sequence[Mapping[str, float]]) -> list[TraceRequest]:
    """What was sent, by the server's own counts."""
    found = [
        TraceRequest(
            one["due_s"], int(one["prompt_tokens"]), int(one["output_tokens"]), int(one["cached_tokens"])
        )
        for one in requests
    ]
    return sorted(found, key=lambda request: request.arrival_s)


def measured(requests: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Per class what clients saw; classes by the uncached tokens that the server counted."""
    found: dict[str, tuple[list[float], list[float]]] = {"short": ([], []), "long": ([], []), "all": ([], [])}
    for one in requests:
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
    """Medians over rounds: measured and simulated milliseconds, and the error with its extremes."""
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
                found = sorted(run["errors"][name][metric] for run in known)
                shown = f"{statistics.median(found):+.0%}"
                if len(found) > 1:
                    shown += f" ({found[0]:+.0%} to {found[-1]:+.0%})"
                label = metric.removesuffix("_s").replace("_", " ")
                lines.append(f"| {policy} | {name} | {label} | {ours:.1f} | {theirs:.1f} | {shown} |")
    return "\n".join(lines)


def profile_for(record: Report, records: Sequence[Report], loop: EngineProfile, source: str) -> EngineProfile:
    """The profile for a run, from the rounds of other seeds."""
    others = [each for each in records if each["seed"] != record["seed"]]
    probes = probes_of([one for each in others for one in each["probe"]])
    if source == "loop":
        return with_service(loop, probes)
    return with_service(fit_logged(logged(others), loop), probes, BETWEEN_STEPS_S)


def logged(records: Sequence[Report]) -> list[LoggedStep]:
    """All steps of some runs under the mix."""
    found = []
    for record in records:
        for role, lines in record["steps"].items():
            found += read_steps(lines, f"{record['policy']}-{record['seed']} {role}")
    return found


def compare(record: Report, profile: EngineProfile, source: str) -> Report:
    """One run beside its simulation."""
    ours = measured(record["busy"])
    theirs = simulated(requests_of(record["busy"]), record["policy"], profile)
    return {
        "source": source,
        "policy": record["policy"],
        "seed": record["seed"],
        "load": record["load"],
        "requests": len(record["busy"]),
        "failed": record["failed"],
        "processor_s": record["processor_s"],
        "profile": asdict(profile),
        "measured": ours,
        "simulated": theirs,
        "errors": errors(ours, theirs),
    }


def main() -> None:
    """Compares all records, prints the tables and saves them with every run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/simulation-error"))
    arguments = parser.parse_args()
    loop = load_profile(str(arguments.records / "profile.json"))
    paths = sorted(arguments.records.glob("*-*.json"))
    records: list[Report] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = [
        compare(record, profile_for(record, records, loop.profile, source), source)
        for source in SOURCES
        for record in records
    ]
    document = {"machine": records[0]["machine"], "loop": asdict(loop.profile), "runs": runs}
    (arguments.out / "processes.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for source in SOURCES:
        text = table([run for run in runs if run["source"] == source])
        (arguments.out / f"processes-{source}.md").write_text(text + "\n", encoding="utf-8")
        print(f"\nprofile of {source}\n\n{text}")


if __name__ == "__main__":
    main()
