"""Records what clients of `twolane up` see, on this CPU: while it is idle, then under a mix.

`simulation_error.py` compares such records with simulations. Each run is a file of its own, so that a busy
machine can make them one by one: `python tests/bench/stack_runs.py --policy fcfs --seed 0 --out FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from first_in_line import go_first
from live_schedulers import TWOLANE, serving

from twolane.bench.machine import machine_facts
from twolane.cli import topology
from twolane.cli.topology import UpConfig

# Every page of both pools is written once: a page's first use costs the system's memory management.
FIRST_USE = {
    "--duration-s": "14",
    "--rate-per-s": "1.4",
    "--short-share": "0",
    "--long-low-tokens": "3900",
    "--long-high-tokens": "4000",
    "--max-output-tokens": "2",
    "--turns-max": "1",
    "--requests": "18",
}
# Short prompts alone, rarely two at once, but often enough that processors are as warm as under the mix.
PROBE = {
    "--duration-s": "20",
    "--rate-per-s": "4",
    "--short-share": "1",
    "--max-output-tokens": "32",
    "--turns-max": "1",
    "--requests": "100",
}
MIX = {
    "--duration-s": "60",
    "--rate-per-s": "5",
    "--short-share": "0.9",
    "--long-high-tokens": "4000",
    "--max-output-tokens": "32",
    "--turns-max": "1",
    "--requests": "400",
}
# Of a request: what a comparison needs.
KEPT = (
    "due_s",
    "sent_s",
    "first_s",
    "last_s",
    "worst_gap_s",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
)

Record = dict[str, Any]


def record(policy: str, seed: int) -> Record:
    """One stack: its pages used once, then probed with few requests, then under the mix."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["TWOLANE_WORKER_STEP_LOG_DIR"] = scratch
        with serving(policy, folder) as url:
            bench(url, FIRST_USE, 2000 + seed, folder)
            probe = bench(url, PROBE, 1000 + seed, folder)
            before, begun = processor_s(), logged(folder)
            busy = bench(url, MIX, seed, folder)
            spent = processor_s()
        steps = {name: lines[len(begun[name]) :] for name, lines in logged(folder).items()}
    return {
        "policy": policy,
        "seed": seed,
        "load": os.getloadavg()[0],
        "machine": asdict(machine_facts()),
        "failed": busy["errors"],
        "probe": [kept(one) for one in probe["requests"] if one["outcome"] == "done"],
        "busy": [kept(one) for one in busy["requests"] if one["outcome"] == "done"],
        "processor_s": {name: round(spent[name] - before.get(name, 0.0), 2) for name in spent},
        "steps": steps,
    }


def bench(url: str, load: Mapping[str, str], seed: int, folder: Path) -> Record:
    """One replay against the stack."""
    flags = ["--url", url, "--seed", str(seed), "--output", str(folder / "run")]
    flags += [word for pair in load.items() for word in pair]
    flags += ["--model-dir", str(topology.model_folder(UpConfig()))]
    subprocess.run([*TWOLANE, "bench", "serve", *flags], check=True, capture_output=True, timeout=400)
    report: Record = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
    return report


def kept(request: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a request, times to a hundredth of a millisecond."""
    return {name: round(request[name], 5) for name in KEPT}


def logged(folder: Path) -> dict[str, list[str]]:
    """Lines of the workers' step logs so far, by role; the last ones may still be in a worker's memory."""
    return {
        path.name.split("-")[0]: path.read_text(encoding="ascii").splitlines()
        for path in sorted(folder.glob("*-*.csv"))
    }


def processor_s() -> dict[str, float]:
    """Processor seconds of every process that runs twolane below this one, by what it is."""
    found: dict[str, float] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            stat = (path / "stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        except OSError:
            continue
        if b"twolane.cli.main" in words and int(stat[3]) == os.getsid(0):
            role = words[words.index(b"--role" if b"--role" in words else b"twolane.cli.main") + 1]
            found[role.decode()] = (int(stat[11]) + int(stat[12])) / tick
    return found


def main() -> None:
    """Records one run, or times the engine alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="fcfs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--profile", action="store_true", help="instead, write profile.json of a loop of steps"
    )
    parser.add_argument("--out", type=Path, default=Path("results/stack-runs"))
    arguments = parser.parse_args()
    if not go_first():
        print("no right to go before other processes: timings hold on an idle machine only", file=sys.stderr)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.profile:
        flags = ["--rounds", "7", "--budget-s", "60", "--out", str(arguments.out / "profile.json")]
        subprocess.run([*TWOLANE, "profile", *flags], check=True, timeout=400)
        return
    found = record(arguments.policy, arguments.seed)
    path = arguments.out / f"{arguments.policy}-{arguments.seed}.json"
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
