"""What finished answers say about how long a running one will be (Past-Future, arXiv 2507.10150).

Decode admission draws from it. One history per model, application and class of length limit: a history
of mixed applications predicts none of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

DEFAULT_WINDOW = 200


@dataclass(frozen=True, slots=True)
class LengthHistory:
    """The last finished output lengths; `observe` returns a new history.

    Attributes:
        window: lengths kept.
        recent: in order of finishing, oldest first.
        ordered: the same, ascending.
    """

    window: int
    recent: tuple[int, ...]
    ordered: tuple[int, ...]

    @classmethod
    def start(cls, max_output_tokens: int, window: int = DEFAULT_WINDOW) -> LengthHistory:
        """A cold start that expects long answers: half a window of the longest."""
        filled = (max_output_tokens,) * max(1, window // 2)
        return cls(window, filled, filled)

    def observe(self, output_tokens: int, *, cut_off: bool = False) -> LengthHistory:
        """With one more finished answer.

        An answer cut off by its limit would have been longer: it counts as the median of the known
        lengths above it, or as itself when there is none.
        """
        length = self.conditional(output_tokens, output_tokens, 0.5) if cut_off else output_tokens
        recent = (*self.recent, length)
        ordered = list(self.ordered)
        insort(ordered, length)
        if len(recent) > self.window:
            del ordered[bisect_left(ordered, recent[0])]
            recent = recent[1:]
        return LengthHistory(self.window, recent, tuple(ordered))

    def conditional(self, generated_tokens: int, max_tokens: int, draw: float) -> int:
        """Total output length of an answer that has `generated_tokens` and goes on.

        The inverse of the distribution function, at `draw`, of a polygon through the generated length,
        all known lengths above it and the answer's limit if that is larger. One draw per answer, kept
        for its life, makes predictions that move only as it outlives known lengths.

        Args:
            generated_tokens: tokens so far; 0 for a new answer.
            max_tokens: the answer's limit.
            draw: in [0, 1].
        """
        ordered = self.ordered
        first = bisect_right(ordered, generated_tokens)
        above = len(ordered) - first
        # The polygon's corners: the known lengths above, and the limit behind them.
        corners = above + (max_tokens > (ordered[-1] if above else generated_tokens))
        if not corners:
            return generated_tokens
        position = draw * corners
        index = min(int(position), corners - 1)
        low = ordered[first + index - 1] if index > 0 else generated_tokens
        high = ordered[first + index] if index < above else max_tokens
        return round(low + (position - index) * (high - low))
