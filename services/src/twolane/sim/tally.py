"""What a simulated cluster holds right now, counted as it changes: samples then cost next to nothing."""

from __future__ import annotations


class Tally:
    """Prompts that wait per lane, and answers that grow, over all workers."""

    __slots__ = ("decoding", "long", "short")

    def __init__(self) -> None:
        self.short = 0
        self.long = 0
        self.decoding = 0
