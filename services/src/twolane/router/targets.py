"""Latency targets by lane: what workers schedule by, placement holds to, and attainment is measured with.

`config.py` makes one; a lane's own target goes before the general one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twolane.core.request import Lane


@dataclass(frozen=True, slots=True)
class SloTargets:
    """Targets of every lane.

    Attributes:
        ttft_ms: for the first token; 0: none.
        tpot_ms: for each token after it.
    """

    ttft_ms: Mapping[Lane, int]
    tpot_ms: Mapping[Lane, float]

    @property
    def strictest_tpot_s(self) -> float:
        """Answers of both lanes grow in the same steps, so that steps have to suit the stricter lane."""
        return min(self.tpot_ms.values()) / 1000

    def missed(self, lane: Lane, ttft_limit_ms: int | None, ttft_s: float, tpot_s: float) -> str:
        """Which target an answer missed, ttft or tpot; "" for none.

        Args:
            lane: of its prompt.
            ttft_limit_ms: the request's own target, 0 for none; None takes the lane's.
            ttft_s: seconds to its first token.
            tpot_s: mean seconds of each token after it; 0 without any.
        """
        limit_ms = self.ttft_ms[lane] if ttft_limit_ms is None else ttft_limit_ms
        if limit_ms and ttft_s * 1000 > limit_ms:
            return "ttft"
        return "tpot" if tpot_s * 1000 > self.tpot_ms[lane] else ""
