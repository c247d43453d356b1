"""A CUDA device that isn't there: tensors without contents, kernels that are prepared but not run.

For tests of code that runs on a GPU only. Tensors are torch's fake ones on "cuda:0", so that mixing devices
fails as it would; Triton prepares every launch as for an H200 and stops where it would call the compiler.
What a graph can't hold (waiting, host memory, a kernel seen for the first time) fails under capture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

DEVICE = torch.device("cuda", 0)
SHARED_LIMIT_BYTES = 227 * 1024
# Blocks of a launch along x, y and z.
GRID_LIMITS = (2**31 - 1, 65535, 65535)
_ALIGNMENT = 512
_MODULE = "torch._subclasses.fake_tensor"
_FAKE = _MODULE + ".FakeTensor"
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item")


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel's name, its grid, and which of its compiled forms it needs."""

    kernel: str
    grid: tuple[int, ...]
    form: str


@dataclass
class FakeDevice:
    """What happened on the device.

    Attributes:
        launches: in order; those of tuning trials are among them.
        forms: arguments of the compiler, one entry for each binary that is needed.
        waits: how often the host waited for the device.
        side_waits: how often it waited for a stream beside the engine's.
        capturing: whether a graph is being recorded.
        stream: where work goes now; None is the engine's stream.
    """

    launches: list[Launch] = field(default_factory=list)
    forms: dict[str, dict[str, Any]] = field(default_factory=dict)
    waits: int = 0
    side_waits: int = 0
    capturing: bool = False
    stream: _Stream | None = None

    def wait(self, *_arguments: object) -> None:
        """The host waits."""
        if self.capturing:
            raise AssertionError("the host waits for the device while a graph is captured")
        self.waits += 1

    def names(self, start: int = 0) -> list[str]:
        """Kernels launched since the launch number `start`."""
        return [launch.kernel for launch in self.launches[start:]]


@dataclass(frozen=True)
class _Stream:
    device: FakeDevice

    def wait_stream(self, _other: object) -> None:
        """Order among streams is not followed here."""

    def synchronize(self) -> None:
        """The host waits for this stream alone."""
        self.device.side_waits += 1


class _Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a graph can't hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _WAITING:
            raise AssertionError(f"{name} waits for the device while a graph is captured")
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor) and value.device.type == "cpu":
                raise AssertionError(f"{name} touches host memory while a graph is captured")
        return result


class _Driver:
    """The part of Triton's driver that a launch touches before its kernel is loaded."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def _index(tensor: torch.Tensor, key: Any) -> torch.Tensor:
    """Indexing by the operators themselves: Python's way to them asks for a real device."""
    keys = key if isinstance(key, tuple) else (key,)
    out, dim, aten = tensor, 0, torch.ops.aten
    for part in keys:
        if part is None:
            out, dim = aten.unsqueeze(out, dim), dim + 1
        elif isinstance(part, slice):
            out, dim = aten.slice(out, dim, part.start, part.stop, part.step or 1), dim + 1
        elif isinstance(part, int):
            out = aten.select(out, dim, part)
        else:
            index = torch.tensor(part, dtype=torch.int64) if isinstance(part, Sequence) else part
            out, dim = aten.index(out, [None] * dim + [index]), dim + index.dim()
    return out


def _set_index(tensor: torch.Tensor, key: Any, value: Any) -> None:
    if isinstance(key, torch.Tensor):
        values = value if isinstance(value, torch.Tensor) else torch.full((), value).to(tensor)
        torch.ops.aten.index_put_(tensor, [key], values)
    else:
        _index(tensor, key).copy_(value) if isinstance(value, torch.Tensor) else _index(tensor, key).fill_(
            value
        )


def _address(tensor: torch.Tensor) -> int:
    start = tensor.untyped_storage()._cdata // _ALIGNMENT * _ALIGNMENT
    return int(start + tensor.storage_offset() * tensor.element_size())


def _tensor_patches(device: FakeDevice) -> dict[str, Any]:
    """What stands in for functions that make and read tensors, by their place."""
    real_tensor, real_from_numpy = torch.tensor, torch.from_numpy

    def without_contents(known: torch.Tensor) -> torch.Tensor:
        """What is known would be computed with for real."""
        return torch.empty(known.shape, dtype=known.dtype)

    def make_tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        made = without_contents(real_tensor(data, **options))
        return made if device is None else made.to(device)

    def to_list(tensor: torch.Tensor) -> Any:
        if tensor.is_cuda:
            device.wait()
        return _zeros(tensor.shape)

    def copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        fitting: Any = torch.broadcast_shapes
        assert fitting(target.shape, source.shape) == target.shape
        if target.device != source.device:
            if device.capturing:
                raise AssertionError("a copy from or to the host while a graph is captured")
            if not non_blocking:
                device.wait()
        return target

    def to_array(tensor: torch.Tensor) -> Any:
        assert not tensor.is_cuda
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    return {
        "torch.tensor": make_tensor,
        "torch.from_numpy": lambda array: without_contents(real_from_numpy(array)),
        "torch.Generator": lambda _device: torch.default_generator,
        _MODULE + ".init_gpu_context": lambda *_: None,
        _FAKE + ".__getitem__": _index,
        _FAKE + ".__setitem__": _set_index,
        _FAKE + ".data_ptr": _address,
        _FAKE + ".copy_": copy,
        _FAKE + ".tolist": to_list,
        _FAKE + ".numpy": to_array,
    }


def _cuda_patches(device: FakeDevice, free_bytes: int) -> dict[str, Any]:
    """What stands in for functions that ask for the device or direct it, by their place."""

    @contextlib.contextmanager
    def graph(*_arguments: object, **_options: object) -> Iterator[None]:
        device.capturing = True
        try:
            with _Capture():  # type: ignore[no-untyped-call]
                yield
        finally:
            device.capturing = False

    @contextlib.contextmanager
    def on_stream(stream: _Stream) -> Iterator[None]:
        before, device.stream = device.stream, stream
        try:
            yield
        finally:
            device.stream = before

    properties = SimpleNamespace(multi_processor_count=132, name="Fake", total_memory=free_bytes)
    return {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.set_device": lambda _device: None,
        "torch.cuda.get_device_properties": lambda *_: properties,
        "torch.cuda.get_device_capability": lambda *_: (9, 0),
        "torch.cuda.get_device_name": lambda *_: "Fake",
        "torch.cuda.mem_get_info": lambda *_: (free_bytes, free_bytes),
        "torch.cuda.synchronize": device.wait,
        "torch.cuda.is_current_stream_capturing": lambda: device.capturing,
        "torch.cuda.Stream": lambda *_: _Stream(device),
        "torch.cuda.Event": lambda *_: SimpleNamespace(record=lambda: None, synchronize=lambda: None),
        "torch.cuda.current_stream": lambda *_: device.stream or _Stream(device),
        "torch.cuda.stream": on_stream,
        "torch.cuda.graph_pool_handle": lambda: (0, 0),
        "torch.cuda.CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "torch.cuda.graph": graph,
        "triton.testing.do_bench": lambda run, **_: [0.0 * bool(run())],
    }


def _zeros(sizes: Sequence[int]) -> Any:
    return [_zeros(sizes[1:]) for _ in range(sizes[0])] if sizes else 0


@contextlib.contextmanager
def fake_device(free_bytes: int = 1 << 37) -> Iterator[FakeDevice]:
    """Makes "cuda:0" usable by code that never looks at values; everything ends with the block."""
    device = FakeDevice()
    pending: list[str] = []
    run = JITFunction.run
    # Before the patches: it imports half of torch.
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def prepare(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        sizes = tuple(grid)
        if not all(0 < size <= limit for size, limit in zip(sizes, GRID_LIMITS, strict=False)):
            raise AssertionError(f"{self.fn.__name__} has a grid of {sizes}")
        run(self, *args, grid=grid, warmup=warmup, **kwargs)
        device.launches.append(Launch(self.fn.__name__, sizes, pending.pop()))

    def stop_before_compiling(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        form = f"{fn.name}/{key}"
        if form not in device.forms:
            if device.capturing:
                raise AssertionError(f"{fn.name} would be compiled while a graph is captured")
            device.forms[form] = {**compile, "function": fn.jit_function}
        pending.append(form)
        return True

    patches = _tensor_patches(device) | _cuda_patches(device, free_bytes)
    with contextlib.ExitStack() as stack:
        for place, stand_in in patches.items():
            stack.enter_context(mock.patch(place, stand_in))
        stack.enter_context(mock.patch.object(JITFunction, "run", prepare))
        stack.enter_context(mock.patch.object(triton.knobs.runtime, "jit_cache_hook", stop_before_compiling))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", _Driver()))
        stack.enter_context(mode)
        yield device
