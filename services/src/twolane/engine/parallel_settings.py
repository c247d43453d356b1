"""Where one rank of a tensor-parallel engine stands and how it finds the others.

Apart from `parallel`, so that configuration does not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """One rank's place.

    Attributes:
        rank: 0 has the host; the others call `Engine.follow`.
        size: ranks in all.
        address: host:port at which rank 0 keeps the meeting place, the same for all.
        timeout_s: how long ranks wait for each other: to meet, and within a step. The host must step or call
            `Engine.keep_alive` more often.
        load_timeout_s: how long the slowest may take to load after the fastest has.
    """

    rank: int
    size: int
    address: str
    timeout_s: float = 120.0
    load_timeout_s: float = 3600.0
