"""Every benchmark case at tiny sizes: kernel equals reference, peers run, so that a lent GPU is spent on
timing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twolane.kernels.bench.__main__ import all_cases, check, run_case
from twolane.kernels.bench.case import TINY
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
    rows, right = run_case(case, _FixedTimer(), Ceilings(case.bytes_moved * 2e3, 1.0), 3)
    assert right
    assert [row.contender for row in rows] == ["twolane", "torch"]
    assert [row.error is None for row in rows] == [False, True]
    assert all(abs(row.share - 0.5) < 1e-9 for row in rows)


def test_a_wrong_result_is_noticed(device: torch.device) -> None:
    """The check isn't blind: NaN, shifted values and infinities on one side all fail."""
    from dataclasses import replace

    _, build = next(iter(all_cases(TINY, device, torch.float32)))
    case = build()
    for wrong in (float("nan"), float("inf"), 1.0):
        spoiled = replace(case, expected=lambda: torch.zeros(2), run=lambda: torch.tensor([0.0, wrong]))  # noqa: B023
        assert not check(spoiled)[1]
