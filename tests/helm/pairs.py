"""Few combinations of options in which every two choices meet: most defects of a chart need no more."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

Choice = tuple[str, str]


def pairwise(options: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Combinations that hold every pair of choices of two options; greedy, so not the fewest."""
    left = {
        frozenset({(one, a), (other, b)})
        for one, other in itertools.combinations(options, 2)
        for a in options[one]
        for b in options[other]
    }
    made: list[dict[str, str]] = []
    while left:
        chosen = dict(min(left, key=sorted))
        for name in options:
            if name not in chosen:
                chosen[name] = max(options[name], key=lambda value: _gain(chosen, (name, value), left))
        made.append(chosen)
        left -= {frozenset(pair) for pair in itertools.combinations(chosen.items(), 2)}
    return made


def _gain(chosen: dict[str, str], choice: Choice, left: set[frozenset[Choice]]) -> int:
    return sum(frozenset({choice, other}) in left for other in chosen.items())
