"""Command line of the benchmarks: ``python -m twolane.kernels.bench [--op NAME] [--json PATH]``.

Measures the device's ceilings, checks every kernel against its reference, tunes it, then times kernel and
peers in interleaved rounds. Exits 2 without a CUDA device, 1 when a kernel's result is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
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


def run_case(case: Case, timer: Timer, ceilings: Ceilings, n_rounds: int) -> tuple[list[Row], bool]:
    """Rows of the kernel and its peers, timed in turn within each round; and whether the kernel was right."""
    error, right = check(case)
    contenders = {"twolane": case.run, **case.peers}
    replays = {name: timer.capture(run) for name, run in contenders.items()}
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(n_rounds):
        for name, replay in replays.items():
            rounds[name].append(timer.round_s(replay))
    rows = [
        make_row(case, name, times, ceilings, error if name == "twolane" else None)
        for name, times in rounds.items()
    ]
    return rows, right


def write(path: Path, ceilings: Ceilings, rows: list[Row]) -> None:
    """Writes device, versions, ceilings and rows as JSON."""
    record = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "ceilings": asdict(ceilings),
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the selected cases, print the table, write JSON if asked; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m twolane.kernels.bench", description=__doc__)
    parser.add_argument("--op", default="", help="only operations whose name contains this")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per case")
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
        f" bf16 matmul {ceilings.matmul_flops_per_s / 1e12:.0f} TFLOP/s"
    )
    rows: list[Row] = []
    wrong: list[str] = []
    for op, build in all_cases(FULL, device, torch.bfloat16):
        if options.op not in op:
            continue
        case = build()
        new_rows, right = run_case(case, timer, ceilings, options.rounds)
        rows += new_rows
        wrong += [] if right else [f"{case.op}, {case.label}: error {new_rows[0].error}"]
        print(table(new_rows, head=len(rows) == len(new_rows)), flush=True)
        if options.json is not None:
            # After every case: whoever stops the run keeps what was measured.
            write(options.json, ceilings, rows)
    for line in wrong:
        print(f"wrong result: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
