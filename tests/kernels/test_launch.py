"""Where kernels refuse to run, and the small arithmetic they share."""

from __future__ import annotations

import pytest
import torch

from twolane.kernels import launch
from twolane.kernels.bench.case import Case
from twolane.kernels.bench.measure import Ceilings
from twolane.kernels.bench.report import make_row, table
from twolane.kernels.rms_norm import rms_norm


@pytest.mark.skipif(launch.INTERPRETED, reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused_with_the_way_out() -> None:
    """The message names the torch path and the interpreter."""
    with pytest.raises(ValueError, match=r"torch path .*rms_norm_reference.*TRITON_INTERPRET=1"):
        rms_norm(torch.zeros(1, 8), torch.zeros(8), 1e-6)


def test_tensors_on_two_devices_are_refused() -> None:
    """Both devices are named."""
    with pytest.raises(ValueError, match="on cpu and meta"):
        launch.require_runnable("rms_norm", torch.zeros(1), torch.zeros(1, device="meta"))


@pytest.mark.parametrize(("value", "power"), [(0, 1), (1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192)])
def test_next_power_of_two(value: int, power: int) -> None:
    """Exact powers stay."""
    assert launch.next_power_of_2(value) == power


def test_bench_row_is_held_against_the_nearer_limit() -> None:
    """Bytes bound this case: 1 GB at 4 TB/s takes 250 µs, so 500 µs is half the limit."""

    def nothing() -> torch.Tensor:
        return torch.zeros(1)

    case = Case("op", "shape", nothing, nothing, 0.0, bytes_moved=10**9, flops=10**9)
    row = make_row(case, "twolane", [5e-4, 4e-4, 6e-4], Ceilings(4e12, 8e14), error=1e-3)
    assert (row.limit, round(row.share, 3)) == ("bytes", 0.5)
    assert round(row.spread_percent) == 40
    assert "50.0%" in table([row], head=True)
