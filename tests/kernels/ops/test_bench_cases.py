"""Every benchmark case at tiny sizes: kernel equals reference, peers run, so that a lent GPU is spent on
timing."""

from __future__ import annotations

import pytest
import torch

from twolane.kernels.bench.__main__ import all_cases, check
from twolane.kernels.bench.case import TINY


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


def test_a_wrong_result_is_noticed(device: torch.device) -> None:
    """The check isn't blind: NaN, shifted values and infinities on one side all fail."""
    from dataclasses import replace

    _, build = next(iter(all_cases(TINY, device, torch.float32)))
    case = build()
    for wrong in (float("nan"), float("inf"), 1.0):
        spoiled = replace(case, expected=lambda: torch.zeros(2), run=lambda: torch.tensor([0.0, wrong]))  # noqa: B023
        assert not check(spoiled)[1]
