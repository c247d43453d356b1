"""Compares prefill policies with real processes: `twolane up` per policy, the same load for each.

Run by hand: `python tests/bench/live_schedulers.py [--rounds 3] [--out FOLDER]`. The policies take turns in
every round; the table shows medians over rounds with their spread, and the ratio to first come, first served.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twolane.cli import topology
from twolane.cli.topology import UpConfig

POLICIES = ("fcfs", "hrrn", "laps_fixed", "laps")
TWOLANE = (sys.executable, "-m", "twolane.cli.main")
START_TIMEOUT_S = 120.0
# A mix under which first come, first served misses some targets with the demo model on two cores.
LOAD = {
    "--duration-s": "20",
    "--rate-per-s": "14",
    "--short-share": "0.9",
    "--long-high-tokens": "4000",
    "--max-output-tokens": "24",
    "--turns-max": "1",
    "--requests": "600",
}

Report = dict[str, Any]


@contextlib.contextmanager
def serving(policy: str, folder: Path) -> Iterator[str]:
    """A product with this policy; its address."""
    flags = ("up", "--port", "0", "--grpc-port", "0", "--scheduler", policy, "--log-dir", str(folder))
    with (folder / "up.txt").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen([*TWOLANE, *flags], stdout=output, stderr=subprocess.STDOUT)
        try:
            yield wait_for_address(process, folder / "up.txt")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def wait_for_address(process: subprocess.Popen[bytes], output: Path) -> str:
    """The address that the launcher prints; raises RuntimeError with its output when none comes."""
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and process.poll() is None:
        if found := re.search(r"is ready: (http://\S+)", output.read_text(encoding="utf-8")):
            return found.group(1)
        time.sleep(0.1)
    raise RuntimeError(output.read_text(encoding="utf-8"))


def measure(policy: str, seed: int) -> Report:
    """One run of the load."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with serving(policy, folder) as url:
            flags = ["--url", url, "--seed", str(seed), "--output", str(folder / "run")]
            flags += [word for pair in LOAD.items() for word in pair]
            flags += ["--model-dir", str(topology.model_folder(UpConfig()))]
            subprocess.run([*TWOLANE, "bench", "serve", *flags], check=True, capture_output=True, timeout=300)
        report: Report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
        return {"classes": report["classes"], "machine": report["machine"], "errors": report["errors"]}


def table(runs: dict[str, list[Report]]) -> str:
    """Medians in milliseconds with their spread, and the median ratio to fcfs within a round."""
    rows = ["| policy | short TTFT p50 | p99 | ratio | long TTFT p50 | p99 | ratio | within SLO |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for policy, reports in runs.items():
        cells = [policy]
        for lane in ("short", "long"):
            cells += [spread_ms(reports, lane, "ttft_p50_s"), spread_ms(reports, lane, "ttft_p99_s")]
            pairs = zip(reports, runs["fcfs"], strict=True)
            ratios = [value(a, lane, "ttft_p99_s") / value(b, lane, "ttft_p99_s") for a, b in pairs]
            cells.append(f"×{statistics.median(ratios):.2f}")
        met = statistics.median(value(report, "all", "slo_attainment") for report in reports)
        rows.append("| " + " | ".join([*cells, f"{met:.1%}"]) + " |")
    return "\n".join(rows)


def value(report: Report, lane: str, name: str) -> float:
    """One number of a report."""
    return float(report["classes"][lane][name])


def spread_ms(reports: list[Report], lane: str, name: str) -> str:
    """Median (least to most) in milliseconds."""
    values = sorted(1000 * value(report, lane, name) for report in reports)
    return f"{statistics.median(values):.0f} ({values[0]:.0f}–{values[-1]:.0f})"


def main() -> None:
    """Runs all rounds, prints the table and saves it with every report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/live-schedulers"))
    arguments = parser.parse_args()
    runs: dict[str, list[Report]] = {policy: [] for policy in POLICIES}
    for round_number in range(arguments.rounds):
        for policy in POLICIES:
            print(f"round {round_number + 1}: {policy}", file=sys.stderr, flush=True)
            runs[policy].append(measure(policy, seed=round_number))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "table.md").write_text(table(runs) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
