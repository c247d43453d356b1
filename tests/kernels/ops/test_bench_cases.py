"""Every benchmark case at tiny sizes: kernel equals reference, peers run, so that a lent GPU is spent on
timing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from twolane.kernels.bench.__main__ import Record, all_cases, check, run_case, run_cases
from twolane.kernels.bench.case import TINY, CaseBuilder
from twolane.kernels.bench.measure import Ceilings


@pytest.mark.parametrize("index", range(len(list(all_cases(TINY, torch.device("cpu"), torch.float32)))))
def test_case_is_right_and_its_peers_run(device: torch.device, index: int) -> None:
    """The same check that precedes every timing."""
    op, build = list(all_cases(TINY, device, torch.float32))[index]
    case = build()
    error, right = check(case)
    assert right, f"{case.label}: error {error}"
    assert case.op == op
    assert case.bytes_moved > 0
    for peer in case.peers.values():
        peer()


class _FixedTimer:
    """Stands in for events: every round of every contender takes a millisecond."""

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        run()
        return run

    def round_s(self, replay: Callable[[], object]) -> float:
        replay()
        return 1e-3


def test_kernel_and_peers_are_timed_in_turn(device: torch.device) -> None:
    """One row per contender, the kernel first and alone with an error; the share is of the slower limit."""
    _, build = next(entry for entry in all_cases(TINY, device, torch.float32) if entry[0] == "silu_mul")
    case = build()
    rows, failed = run_case(case, _FixedTimer(), Ceilings(case.bytes_moved * 2e3, 1.0), 3)
    assert not failed
    assert [row.contender for row in rows] == ["twolane", "torch"]
    assert [row.error is None for row in rows] == [False, True]
    assert all(abs(row.share - 0.5) < 1e-9 for row in rows)


def test_what_fails_leaves_the_other_cases_alone(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case that can't be built, one with a peer that raises, then a good one; all of it is in the file."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fake")

    def broken(*_arguments: object) -> Any:
        raise RuntimeError("no such thing\nand more")

    op, build = next(entry for entry in all_cases(TINY, device, torch.float32) if entry[0] == "silu_mul")
    good = build()
    cases: list[CaseBuilder] = [
        ("first", broken),
        (op, lambda: replace(good, peers={"other": broken, **good.peers})),
        (op, lambda: good),
    ]
    record = Record(Ceilings(1e12, 1e14), tmp_path / "b.json", ends_s=float("inf"))
    run_cases(cases, _FixedTimer(), 1, record)
    written = json.loads((tmp_path / "b.json").read_text())
    assert [row["contender"] for row in written["rows"]] == ["twolane", "torch"] * 2
    assert written["failed"] == [
        "first: RuntimeError: no such thing",
        f"silu_mul, {good.label}, peer other: RuntimeError: no such thing",
    ]
    assert written["date"]
    record.ends_s = 0.0
    run_cases(cases, _FixedTimer(), 1, record)
    assert record.failed[2:] == ["first: no time left"]


def test_a_wrong_result_is_noticed(device: torch.device) -> None:
    """The check isn't blind: NaN, shifted values and infinities on one side all fail."""
    _, build = next(iter(all_cases(TINY, device, torch.float32)))
    case = build()
    for wrong in (float("nan"), float("inf"), 1.0):
        spoiled = replace(case, expected=lambda: torch.zeros(2), run=lambda: torch.tensor([0.0, wrong]))  # noqa: B023
        assert not check(spoiled)[1]
