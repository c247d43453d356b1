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
        init_method: where ranks meet, tcp://host:port or file:///path, the same for all.
        timeout_s: how long a rank waits for the others; the host must step or call `Engine.keep_alive` more
            often.
    """

    rank: int
    size: int
    init_method: str
    timeout_s: float = 600.0
