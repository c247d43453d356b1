"""Recursive least squares with coefficients of at least zero, as a frozen value.

The cost model fits step times with it. Samples are weighted by 1/seconds², so that errors count in
proportion and a step of 5 ms is fitted as well as one of 500 ms; old samples fade.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

# Share of their weight that older samples keep at each new one: about the last 100 count.
FADE = 0.99
# Solving is a little costly, so the coefficients follow every few samples, later more rarely.
SOLVE_EVERY = 8
SETTLED_SAMPLES = 128
SETTLED_EVERY = 32
RIDGE = 1e-9

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]


@dataclass(frozen=True, slots=True)
class NormalEquations:
    """Faded sums of x·xᵀ and x·y over weighted samples."""

    gram: Matrix
    moment: Vector
    samples: int = 0

    @classmethod
    def empty(cls, size: int) -> NormalEquations:
        """No sample yet, `size` coefficients."""
        return cls(tuple((0.0,) * size for _ in range(size)), (0.0,) * size)

    def add(self, features: Sequence[float], seconds: float) -> NormalEquations:
        """With one more sample; older ones fade."""
        weight = 1.0 / (seconds * seconds)
        # Lists within the tuples: this runs at every step of a worker, and generators are slower.
        gram = []
        for row, left in zip(self.gram, features, strict=True):
            scaled = weight * left
            gram.append(tuple([FADE * old + scaled * x for old, x in zip(row, features, strict=True)]))
        scaled = weight * seconds
        moment = tuple([FADE * old + scaled * x for old, x in zip(self.moment, features, strict=True)])
        return NormalEquations(tuple(gram), moment, self.samples + 1)


@dataclass(frozen=True, slots=True)
class StepFit:
    """Coefficients of a step's seconds, fitted from light and heavy steps.

    The two kinds keep separate sums, so that an hour of light steps alone does not wash out what is
    known about heavy ones.

    Attributes:
        coefficients: one per feature, each at least 0.
        light: sums over light steps.
        heavy: sums over heavy steps.
        heavy_constant: the first coefficient as heavy steps alone would have it; inf until it is known.
    """

    coefficients: Vector
    light: NormalEquations
    heavy: NormalEquations
    heavy_constant: float = math.inf

    @classmethod
    def start(cls, coefficients: Sequence[float]) -> StepFit:
        """A guess that the first solved samples replace."""
        empty = NormalEquations.empty(len(coefficients))
        return cls(tuple(coefficients), empty, empty)

    @property
    def samples(self) -> int:
        """Steps seen in all."""
        return self.light.samples + self.heavy.samples

    def observe(self, features: Sequence[float], seconds: float, *, is_light: bool) -> StepFit:
        """With one more measured step; times of 0 or less are ignored."""
        if seconds <= 0.0:
            return self
        if is_light:
            light, heavy = self.light.add(features, seconds), self.heavy
        else:
            light, heavy = self.light, self.heavy.add(features, seconds)
        changed = StepFit(self.coefficients, light, heavy, self.heavy_constant)
        every = SOLVE_EVERY if changed.samples <= SETTLED_SAMPLES else SETTLED_EVERY
        return changed.solved() if changed.samples % every == 0 else changed

    def solved(self) -> StepFit:
        """With the coefficients that fit the sums best."""
        size = len(self.coefficients)
        gram = [
            [self.light.gram[row][column] + self.heavy.gram[row][column] for column in range(size)]
            for row in range(size)
        ]
        moment = [self.light.moment[row] + self.heavy.moment[row] for row in range(size)]
        constant = math.inf
        if self.heavy.samples >= SOLVE_EVERY:
            constant = solve_non_negative(self.heavy.gram, self.heavy.moment)[0]
        return replace(self, coefficients=solve_non_negative(gram, moment), heavy_constant=constant)


def solve_non_negative(gram: Sequence[Sequence[float]], moment: Sequence[float]) -> Vector:
    """Minimises ½cᵀGc − mᵀc over c ≥ 0, exactly, for the few coefficients of a cost model.

    Tries all coefficients free first; when one would be negative, every smaller set of free ones.
    """
    size = len(moment)
    whole = _solve(gram, moment, range(size))
    if whole is not None and min(whole) >= 0.0:
        return whole
    best: Vector = (0.0,) * size
    best_value = 0.0
    for count in range(1, size):
        for free in combinations(range(size), count):
            found = _solve(gram, moment, free)
            if found is None or min(found) < 0.0:
                continue
            # At the solution cᵀGc equals mᵀc, so the objective is −½mᵀc.
            value = -0.5 * sum(m * c for m, c in zip(moment, found, strict=True))
            if value < best_value:
                best, best_value = found, value
    return best


def _solve(gram: Sequence[Sequence[float]], moment: Sequence[float], free: Sequence[int]) -> Vector | None:
    """Solves for the free coefficients, the others 0; None when they can't be told apart."""
    scale = [gram[index][index] ** 0.5 for index in free]
    if min(scale) <= 0.0:
        return None
    # Scaled to a unit diagonal, so that pivots can be judged against 1.
    rows = [
        [gram[i][j] / (si * sj) + (RIDGE if i == j else 0.0) for j, sj in zip(free, scale, strict=True)]
        + [moment[i] / si]
        for i, si in zip(free, scale, strict=True)
    ]
    for pivot in range(len(rows)):
        if rows[pivot][pivot] < 10.0 * RIDGE:
            return None
        for below in range(pivot + 1, len(rows)):
            factor = rows[below][pivot] / rows[pivot][pivot]
            rows[below] = [a - factor * b for a, b in zip(rows[below], rows[pivot], strict=True)]
    solution = [0.0] * len(moment)
    for position in reversed(range(len(rows))):
        row = rows[position]
        known = sum(
            row[later] * solution[free[later]] * scale[later] for later in range(position + 1, len(rows))
        )
        solution[free[position]] = (row[-1] - known) / row[position] / scale[position]
    return tuple(solution)
