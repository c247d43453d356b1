"""Products of few rows with a packed matrix: compiled where the matrix lies as expected, else oneDNN's.

Used by the compiled forward pass. A decode step reads all weights once and computes little with each: what
counts is that the next ones are asked for in time, and that a call costs little.
"""

from __future__ import annotations

import torch

from twolane.engine.compiled import Floats, multiply
from twolane.engine.packed import product
from twolane.engine.vector_parts import BLOCK_COLUMNS, LANES

# From here on oneDNN is as fast.
_FEW_ROWS = 32
# Multiplications that one thread does before several would have begun.
_ONE_THREAD_WORK = 1 << 22


class Matrix:
    """A matrix [out, in], plain or packed, with its bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Finds out whether the compiled product can read it."""
        self._weight = weight
        self._bias = bias
        self._n_out, self._n_in = weight.shape
        self._bias_array: Floats = torch.empty(0).numpy() if bias is None else bias.numpy()
        self._blocks = 0
        if LANES == 16 and weight.is_mkldnn and self._n_out % BLOCK_COLUMNS == 0:
            if torch.ops.mkldnn._nbytes(weight) == weight.numel() * 4:
                self._blocks = int(torch.ops.mkldnn.data_ptr(weight))
            if self._blocks and not self._agrees():
                self._blocks = 0

    @property
    def is_direct(self) -> bool:
        """Whether products of few rows are compiled."""
        return self._blocks != 0

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, in], contiguous, times the matrix, plus the bias: [T, out]."""
        n_rows = x.shape[0]
        if not self._blocks or n_rows > _FEW_ROWS:
            return product(x, self._weight, self._bias)
        if torch.get_num_threads() > 1 and n_rows * self._n_in * self._n_out > _ONE_THREAD_WORK:
            return product(x, self._weight, self._bias)
        return self._direct(x)

    def _direct(self, x: torch.Tensor) -> torch.Tensor:
        to = torch.empty(x.shape[0], self._n_out)
        multiply(x.numpy(), self._blocks, self._bias_array, to.numpy())
        return to

    def _agrees(self) -> bool:
        """Whether both ways give the same: the form of a packed matrix is nobody's promise."""
        x = torch.randn(2, self._n_in, generator=torch.Generator().manual_seed(0))
        expected = product(x, self._weight, self._bias)
        scale = float(expected.abs().max()) + 1.0
        return torch.allclose(self._direct(x), expected, rtol=1e-3, atol=1e-4 * scale)
