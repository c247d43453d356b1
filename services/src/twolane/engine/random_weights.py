"""Random parameters in place of a checkpoint, so that a shape can be measured from its config.json.

Called by `loading.load` when `EngineConfig.random_weights` is set; drawn on the device, nothing is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from twolane.engine.weights import Slot

# Keeps activations of deep models finite; what Hugging Face configs call initializer_range.
_SPREAD = 0.02


class RandomWeights:
    """Stands where `weights.Checkpoint` does: norms are one, all else is normal with a small spread.

    Attributes:
        total_bytes: 0, nothing is read.
        sha256: names the seed; no checkpoint has this digest.
    """

    def __init__(self, seed: int = 0) -> None:
        """The same seed, shape, dtype and kind of device give the same weights."""
        self.total_bytes = 0
        self.sha256 = f"random-{seed}"
        self._seed = seed

    def check(self, slots: Mapping[str, Slot]) -> None:
        """There is nothing to compare."""

    def fill(self, slots: Mapping[str, Slot], progress: Callable[[int], None]) -> None:
        """Draws every slot's tensor where it lies, in the order of the slots."""
        generator: torch.Generator | None = None
        for name, slot in slots.items():
            if generator is None:
                generator = torch.Generator(slot.target.device).manual_seed(self._seed)
            if name.endswith("norm.weight"):
                slot.target.fill_(1.0)
            else:
                slot.target.normal_(0.0, _SPREAD, generator=generator)
        progress(self.total_bytes)
