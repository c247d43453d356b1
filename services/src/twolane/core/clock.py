"""The seam through which time enters: live processes pass the machine's clock, tests a virtual one."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Gives seconds that never go back."""

    def __call__(self) -> float:
        """Seconds since an arbitrary start."""
        ...
