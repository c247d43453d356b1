"""Decides whether a kernel may run on the tensors it was given, and validates what the host wrappers receive.

Called by every ``<op>.py`` before a launch. Kernels run compiled on a CUDA device, or under Triton's
interpreter on CPU tensors when the process was started with ``TRITON_INTERPRET=1`` (tests only: milliseconds
per program).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton

# Read once: Triton chooses between compiler and interpreter when a kernel is decorated, i.e. at import.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)

# What the interpreter pretends to run on, so that split counts in tests are those of a small GPU.
_INTERPRETER_SM_COUNT = 4


def require_runnable(op: str, *tensors: torch.Tensor | None) -> None:
    """Refuse tensors on several devices, on the CPU of a compiled process, or on a device that isn't current.

    Raises ValueError naming the operation and what to do instead.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    device = present[0].device
    for tensor in present[1:]:
        if tensor.device != device:
            raise ValueError(f"{op}: tensors are on {device} and {tensor.device}; move them to one device")
    if device.type == "cuda":
        if device.index != torch.cuda.current_device():
            raise ValueError(
                f"{op}: tensors are on {device} but the current device is another; use torch.cuda.device"
            )
    elif device.type != "cpu" or not INTERPRETED:
        raise ValueError(
            f"{op}: this kernel needs CUDA tensors, these are on {device.type}. On CPU use the engine's "
            f"torch path (or twolane.kernels.{op}_reference); TRITON_INTERPRET=1 runs it slowly"
        )


def require_shape(op: str, name: str, tensor: torch.Tensor, shape: Sequence[int | None]) -> None:
    """Check rank and sizes; None admits any size. Raises ValueError with both shapes."""
    matches = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not matches:
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {list(tensor.shape)}")


def require_dtype(op: str, name: str, tensor: torch.Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Check the element type. Raises ValueError listing the accepted ones."""
    if tensor.dtype not in dtypes:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{op}: {name} must be {accepted}, got {str(tensor.dtype).removeprefix('torch.')}")


def require_unit_stride(op: str, name: str, tensor: torch.Tensor) -> None:
    """Kernels take any outer strides, but read the last dimension as consecutive elements."""
    if tensor.numel() > 0 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{op}: the last dimension of {name} must be contiguous, its stride is {tensor.stride(-1)}"
        )


def require_contiguous(op: str, name: str, tensor: torch.Tensor) -> None:
    """Small control arrays (lengths, tables, per-row parameters) must be plain contiguous arrays."""
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous, its strides are {tuple(tensor.stride())}")


def require_vector(
    op: str, name: str, tensor: torch.Tensor, length: int, dtypes: Sequence[torch.dtype]
) -> None:
    """Shape, dtype and contiguity of a one-dimensional control array in one call."""
    require_shape(op, name, tensor, (length,))
    require_dtype(op, name, tensor, dtypes)
    require_contiguous(op, name, tensor)


def sm_count(device: torch.device) -> int:
    """Streaming multiprocessors of the device; a small constant under the interpreter."""
    if device.type != "cuda":
        return _INTERPRETER_SM_COUNT
    return _cuda_sm_count(device.index or 0)


@functools.cache
def _cuda_sm_count(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def compute_capability(device: torch.device) -> int:
    """80 for an A100, 90 for an H100; 80 under the interpreter."""
    if device.type != "cuda":
        return 80
    return _cuda_capability(device.index or 0)


@functools.cache
def _cuda_capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def next_power_of_2(value: int) -> int:
    """Smallest power of two that is at least ``value`` (1 for values below 1)."""
    return 1 << max(0, value - 1).bit_length()


def require_pages(
    op: str, k_pages: torch.Tensor, v_pages: torch.Tensor, n_kv_heads: int, q: torch.Tensor
) -> None:
    """Check one layer's views of the pool against the queries that use them.

    Both [n_pages, n_kv_heads, page_tokens, D], of the queries' dtype, equal strides, tokens of a head
    adjacent.
    """
    head_dim = q.shape[-1]
    require_shape(op, "k_pages", k_pages, (None, n_kv_heads, None, head_dim))
    require_shape(op, "v_pages", v_pages, k_pages.shape)
    for name, pages in (("k_pages", k_pages), ("v_pages", v_pages)):
        require_dtype(op, name, pages, (q.dtype,))
        require_unit_stride(op, name, pages)
    if k_pages.stride() != v_pages.stride():
        raise ValueError(
            f"{op}: k_pages and v_pages have unequal strides {k_pages.stride()}, {v_pages.stride()}"
        )
    if k_pages.shape[2] > 1 and k_pages.stride(2) != head_dim:
        raise ValueError(
            f"{op}: the tokens of a head must be adjacent in a page, strides are {k_pages.stride()}"
        )


def require_adjacent_heads(op: str, name: str, tensor: torch.Tensor) -> None:
    """A token's heads [T, H, D] must lie side by side; tokens may be any distance apart (packed
    projections)."""
    require_unit_stride(op, name, tensor)
    if tensor.shape[1] > 1 and tensor.stride(1) != tensor.shape[2]:
        raise ValueError(f"{op}: the heads of {name} must be adjacent, strides are {tuple(tensor.stride())}")
