"""Command line of the benchmarks: ``python -m twolane.kernels.bench [--op NAME] [--json PATH]``.

Measures the device's ceilings, checks every kernel against its reference, tunes it, then times kernel and
peers in interleaved rounds. A case that fails leaves the others alone. Exits 2 without a CUDA device, 1 when
a kernel failed or its result is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton

from twolane.kernels import launch, tuning
from twolane.kernels.bench.attention_cases import attention_cases
from twolane.kernels.bench.case import FULL, Case, CaseBuilder, Sizes
from twolane.kernels.bench.elementwise_cases import elementwise_cases
from twolane.kernels.bench.logits_cases import logits_cases
from twolane.kernels.bench.measure import Ceilings, EventTimer, Timer, measure_ceilings
from twolane.kernels.bench.report import Row, make_row, table


def all_cases(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[CaseBuilder]:
    """Every case of every operation, to be built one at a time."""
    yield from elementwise_cases(sizes, device, dtype)
    yield from attention_cases(sizes, device, dtype)
    yield from logits_cases(sizes, device)


def check(case: Case) -> tuple[float, bool]:
    """Tune on first sight. Largest absolute error of one run, and whether all of it is within the case's
    tolerance."""
    # The reference first: some kernels change their input. The first run tunes on scratch data, then
    # computes.
    expected = case.expected().float()
    with tuning.measuring():
        actual = case.run().float()
    same = actual == expected
    error = torch.where(same, 0.0, (actual - expected).abs())
    allowed = case.tolerance * (1.0 + torch.where(same, 0.0, expected.abs()))
    return float(error.max()), bool((error <= allowed).all())


def run_case(case: Case, timer: Timer, ceilings: Ceilings, n_rounds: int) -> tuple[list[Row], list[str]]:
    """Rows of the kernel and its peers, timed in turn within each round; and what went wrong, in words."""
    error, right = check(case)
    failed = [] if right else [f"{case.op}, {case.label}: wrong result, error {error}"]
    replays = {"twolane": timer.capture(case.run)}
    for name, run in case.peers.items():
        try:
            replays[name] = timer.capture(run)
        except Exception as problem:
            failed.append(f"{case.op}, {case.label}, peer {name}: {_first_line(problem)}")
    rounds: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(n_rounds):
        for name, replay in replays.items():
            rounds[name].append(timer.round_s(replay))
    rows = [
        make_row(case, name, times, ceilings, error if name == "twolane" else None)
        for name, times in rounds.items()
    ]
    return rows, failed


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"


def run_cases(cases: Iterable[CaseBuilder], timer: Timer, n_rounds: int, record: Record) -> None:
    """Runs case by case until none is left or the time is up; the record is written after each."""
    for op, build in cases:
        if record.is_over():
            record.failed.append(f"{op}: no time left")
            break
        try:
            case = build()
            rows, failed = run_case(case, timer, record.ceilings, n_rounds)
        except Exception as problem:
            traceback.print_exc()
            rows, failed = [], [f"{op}: {_first_line(problem)}"]
        if rows:
            print(table(rows, head=not record.rows), flush=True)
        record.add(rows, failed)


@dataclass
class Record:
    """What was measured so far.

    Attributes:
        path: where it is written as JSON after every case, so that whoever stops the run keeps it.
        ends_s: when no further case begins, of time.monotonic.
    """

    ceilings: Ceilings
    path: Path | None
    ends_s: float
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.ends_s

    def add(self, rows: list[Row], failed: list[str]) -> None:
        """Takes up a case."""
        self.rows += rows
        self.failed += failed
        if self.path is not None:
            written = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "triton": triton.__version__,
                "ceilings": asdict(self.ceilings),
                "rows": [asdict(row) for row in self.rows],
                "failed": self.failed,
            }
            self.path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the selected cases, print the table, write JSON if asked; return the exit status."""
    began_s = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m twolane.kernels.bench", description=__doc__)
    parser.add_argument(
        "--op", nargs="+", default=[""], help="only operations whose name contains one of these"
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per case")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="no case begins later than this")
    parser.add_argument("--json", type=Path, help="also write ceilings and rows to this file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or launch.INTERPRETED:
        print(
            "bench: no CUDA device (or TRITON_INTERPRET is set); kernels are timed on a GPU only",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    timer = EventTimer(device)
    ceilings = measure_ceilings(timer, device)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, Triton {triton.__version__}")
    print(
        f"ceilings: copy {ceilings.copy_bytes_per_s / 1e9:.0f} GB/s,"
        f" bf16 matmul {ceilings.matmul_flops_per_s / 1e12:.0f} TFLOP/s",
        flush=True,
    )
    record = Record(ceilings, options.json, began_s + options.budget_s)
    cases = all_cases(FULL, device, torch.bfloat16)
    chosen = ((op, build) for op, build in cases if any(word in op for word in options.op))
    run_cases(chosen, timer, options.rounds, record)
    for line in record.failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if record.failed else 0


if __name__ == "__main__":
    sys.exit(main())
