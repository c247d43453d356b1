"""How far simulated latencies are off those of the real scheduler and engine, in the processor's time.

Run by hand: `PYTHONPATH=. python tests/bench/step_time_error.py [--out FOLDER]`. The worker's own scheduler
runs under virtual time with the real engine on the demo model: a step lasts as long as the processor worked
on it, so that other load on the machine, which simulation_error.py suffers from, hardly matters. There is no
router and no RPC here: what is compared is queueing and the cost of steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from simulation_error import SHORT_TOKENS, WORKER, errors, percentiles, table

from tests.sim.live_worker import Ask, LiveWorker
from twolane.bench.machine import machine_facts
from twolane.cli import profile as profiling
from twolane.cli.topology import UpConfig, model_folder
from twolane.engine.config import EngineConfig
from twolane.engine.engine import Engine
from twolane.policies.decode import decode_by_name
from twolane.policies.registry import by_name
from twolane.sim.cluster import Simulation
from twolane.sim.profile import EngineProfile
from twolane.sim.profile_file import load_profile
from twolane.sim.settings import SimSettings
from twolane.workload.generator import MixSettings, generate_mix
from twolane.workload.traces import TraceRequest

POLICIES = ("fcfs", "laps")
MIX = MixSettings(
    rate_per_s=6.0,
    duration_s=60.0,
    short_share=0.9,
    long_high_tokens=4000,
    turns_max=1,
    output_median_tokens=16.0,
    output_max_tokens=32,
)

Times = dict[str, dict[str, float]]


def real(requests: list[TraceRequest], policy: str, profile: EngineProfile) -> Times:
    """One mixed worker: production scheduler, real steps."""
    engine = Engine.load(EngineConfig(model_folder(UpConfig()), device="cpu", kv_memory_bytes=256 << 20))
    worker = LiveWorker(
        profile, by_name(policy, WORKER), decode_by_name("past_future"), WORKER, 64, engine=engine
    )
    asks = [
        Ask(str(index), one.arrival_s, one.input_tokens, one.output_tokens)
        for index, one in enumerate(requests)
    ]
    worker.replay(asks)
    found: dict[str, tuple[list[float], list[float]]] = {"short": ([], []), "long": ([], []), "all": ([], [])}
    for ask in asks:
        times = worker.tokens[ask.name]
        for name in ("short" if ask.prompt_tokens <= SHORT_TOKENS else "long", "all"):
            found[name][0].append(times[0] - ask.arrival_s)
            if len(times) > 1:
                found[name][1].append((times[-1] - times[0]) / (len(times) - 1))
    return {name: percentiles(*values) for name, values in found.items()}


def simulated(requests: list[TraceRequest], policy: str, profile: EngineProfile) -> Times:
    """The same requests on one simulated mixed worker."""
    settings = SimSettings(
        mixed_workers=1, prefill_policy=policy, prefill=WORKER, max_rows=64, short_tokens=SHORT_TOKENS
    )
    columns = Simulation(settings, requests, profile).run().columns
    found = {}
    for name, chosen in (("short", [0]), ("long", [1]), ("all", [0, 1])):
        rows = np.isin(columns.class_index, chosen)
        tpot = columns.tpot_s[rows]
        found[name] = percentiles(columns.ttft_s[rows].tolist(), tpot[~np.isnan(tpot)].tolist())
    return found


def main() -> None:
    """Profiles, runs both sides per policy, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/step-time-error"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    path = arguments.out / "profile.json"
    profiling.main(["--clock", "processor", "--rounds", "5", "--budget-s", "90", "--out", str(path)])
    profile = load_profile(str(path))
    runs: list[dict[str, Any]] = []
    for seed in range(arguments.rounds):
        requests = generate_mix(MIX, np.random.default_rng(seed))
        for policy in POLICIES:
            print(f"round {seed + 1}: {policy}", file=sys.stderr, flush=True)
            ours = real(requests, policy, profile.profile)
            theirs = simulated(requests, policy, profile.profile)
            found = errors(ours, theirs)
            runs.append(
                {"policy": policy, "seed": seed, "measured": ours, "simulated": theirs, "errors": found}
            )
    document = {"machine": asdict(machine_facts()), "fit": profile.fit, "runs": runs}
    (arguments.out / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "table.md").write_text(table(runs) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
