"""The device that isn't there notices what a real one would refuse, above all while a graph is captured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.kernels.fake_device import DEVICE, fake_device
from twolane.kernels.rms_norm import rms_norm


def norm(n_columns: int = 64) -> torch.Tensor:
    """Launches one kernel."""
    x = torch.zeros(3, n_columns, device=DEVICE, dtype=torch.bfloat16)
    return rms_norm(x, torch.ones(n_columns, device=DEVICE), 1e-6)


def test_a_launch_is_prepared_and_counted_but_not_compiled() -> None:
    """The second one needs no other form, one of another width does."""
    with fake_device() as device:
        assert norm().device == DEVICE
        norm()
        assert (device.names(), len(device.forms)) == (["_rms_norm_kernel"] * 2, 1)
        norm(128)
        assert len(device.forms) == 2
    assert not torch.cuda.is_available()


def test_tensors_on_two_devices_are_refused() -> None:
    """As torch refuses them."""
    with fake_device(), pytest.raises(RuntimeError, match=r"two (different )?devices"):
        torch.zeros(3, device=DEVICE) + torch.zeros(3)


@pytest.mark.parametrize(
    ("work", "refusal"),
    [
        (lambda values: values.tolist(), "waits for the device"),
        (lambda values: values.to("cpu"), "host memory"),
        (lambda values: values.copy_(torch.zeros(3)), "host memory"),
        (lambda values: torch.tensor([1], device=values.device), "host memory"),
        (lambda values: torch.cuda.synchronize(), "waits for the device"),
        (lambda values: norm(256), "would be compiled"),
    ],
    ids=["read", "to host", "from host", "constant", "synchronize", "new kernel"],
)
def test_what_a_graph_cannot_hold_is_refused(work: Callable[[torch.Tensor], object], refusal: str) -> None:
    """Waiting for the device, the host's memory, the compiler."""
    with fake_device(), torch.inference_mode():
        values = torch.zeros(3, device=DEVICE)
        norm()
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            norm()
            with pytest.raises(AssertionError, match=refusal):
                work(values)
