"""Which forward pass a CPU engine takes: the compiled one where it can, else the plain one in torch.

Called at load, so that compiling, which takes seconds on a machine that has never done it, is over before the
first request.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import torch

from twolane.engine.model import Model
from twolane.engine.torch_forward import TorchForward

if TYPE_CHECKING:
    from twolane.engine.compiled_forward import CompiledForward

_log = logging.getLogger(__name__)


@functools.cache
def _compiled() -> type[CompiledForward] | None:
    """The compiled pass; the first call compiles, or loads what was compiled before. None where it can't."""
    try:
        from twolane.engine.compiled_forward import CompiledForward
    except Exception as error:
        # A compiler meets processors and libraries that nobody tried; torch serves there, only slower.
        _log.warning("numba can't compile here, the engine takes its slower path: %s", error)
        return None
    return CompiledForward


def cpu_forward(
    model: Model, kv: torch.Tensor, copy_limit_bytes: int, may_compile: bool
) -> TorchForward | CompiledForward:
    """The pass for this model and pool.

    Args:
        model: weights.
        kv: pages.
        copy_limit_bytes: for the plain pass's dense copy of decode rows.
        may_compile: False takes the plain pass.
    """
    made = _compiled() if may_compile and model.dtype is torch.float32 else None
    if made is not None and made.serves(model):
        return made(model, kv)
    return TorchForward(model, kv, copy_limit_bytes)
