"""Weight matrices reordered once for the processor's matrix products, in place of the plain ones.

Used by the torch path on CPU through `model`: oneDNN's blocked form of a matrix serves every number of rows,
from a lone decode row to a long prompt, and products with it come close to the processor's peak. Where torch
was built without it, or computes something else with it, matrices stay plain.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch.nn import functional

# Output columns side by side in oneDNN's form of a float32 matrix: [out / 64, in, 64].
_BLOCK = 64


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, in] times a matrix [out, in], plain or packed, plus the bias: [T, out]."""
    if weight.is_mkldnn:
        packed: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        return packed
    return functional.linear(x, weight, bias)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The packed form of a plain matrix [out, in]; a copy."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether products with packed matrices of this type exist here and agree with plain ones."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * _BLOCK, 2 * _BLOCK, generator=generator).to(dtype)
    try:
        packed = pack(weight)
        for n_rows in (1, 16, 48):
            x = torch.randn(n_rows, weight.shape[1], generator=generator).to(dtype)
            expected = x.double() @ weight.double().t()
            # A bfloat16 result is off by half a step of its own, a float32 one by the order of the sums.
            if not torch.allclose(product(x, packed).double(), expected, rtol=1e-2, atol=64 * _atol(dtype)):
                return False
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


class PackedRows:
    """Rows of a packed matrix, read where they lie: a tied embedding needs no second copy.

    Attributes:
        packed: the matrix, kept alive while its memory is read.
    """

    def __init__(self, packed: torch.Tensor, blocks: torch.Tensor) -> None:
        """Takes the matrix and its memory as [out / 64, in, 64]; use `of`."""
        self.packed = packed
        self._blocks = blocks

    @classmethod
    def of(cls, packed: torch.Tensor, plain: torch.Tensor) -> PackedRows | None:
        """Rows of `packed`, or None where its memory isn't `plain` in the form known here."""
        n_out, n_in = plain.shape
        n_blocks = -(-n_out // _BLOCK)
        n_bytes = int(torch.ops.mkldnn._nbytes(packed))
        per_block = _BLOCK * plain.element_size() * n_blocks
        if plain.dtype is not torch.float32 or n_bytes % per_block != 0 or n_bytes // per_block < n_in:
            return None
        memory = (ctypes.c_byte * n_bytes).from_address(int(torch.ops.mkldnn.data_ptr(packed)))
        blocks = torch.frombuffer(memory, dtype=plain.dtype).view(n_blocks, -1, _BLOCK)[:, :n_in]
        rows = cls(packed, blocks)
        for first in range(0, n_out, 1 << 14):
            ids = torch.arange(first, min(first + (1 << 14), n_out))
            if not torch.equal(rows.select(ids), plain[first : first + (1 << 14)]):
                return None
        return rows

    def select(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows `ids` [T], a fresh tensor [T, in]."""
        return self._blocks[ids // _BLOCK, :, ids % _BLOCK]


def _atol(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)
