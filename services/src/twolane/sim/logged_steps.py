"""Steps as workers have logged them (--step-log-dir), and the engine profile that they fit.

A step within the product takes longer than the same one in a loop: after a pause caches are cold, and the
worker's own event loop wants the processor too. `twolane profile --steps` fits what really happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twolane.core.errors import InvalidRequest
from twolane.policies.cost import Work
from twolane.policies.least_squares import solve_non_negative
from twolane.sim.profile import EngineProfile

HEADER = "seconds,rows,held_tokens,prompts"
# Tokens at which the weights may cease to decide.
KNEES = (0, 8, 16, 32, 64, 128, 256)
LEAST_STEPS = 30
MEGA = 1e6
# Of answers' steps, slower ones than this share count as if they had taken as long as it.
COUNTED_SHARE = 0.99
# Errors below this count alike, above it in proportion: the fit follows the median step, not the worst ones.
EQUAL_ERROR = 0.03
ROUNDS = 8

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One step: its prompts as (new, cached) tokens, its answers and what they held."""

    seconds: float
    rows: int
    held_tokens: int
    work: tuple[Work, ...]

    @property
    def kind(self) -> str:
        """prefill, decode or mixed."""
        if not self.rows:
            return "prefill"
        return "mixed" if self.work else "decode"

    def predicted_s(self, profile: EngineProfile) -> float:
        """What a profile says."""
        return profile.mixed_s(self.work, self.rows, self.held_tokens)


def read_steps(lines: Iterable[str], source: str) -> list[LoggedStep]:
    """Steps of a log; a last line that was cut off is left out.

    Raises:
        InvalidRequest: it is no such log; the message names the line.
    """
    found: list[LoggedStep] = []
    broken = ""
    for number, line in enumerate(lines, 1):
        if broken:
            raise InvalidRequest(f"{source}: {broken}")
        if line.strip() in ("", HEADER):
            continue
        try:
            seconds, rows, held, prompts = line.strip().split(",")
            pairs = [pair.split(":") for pair in prompts.split()]
            work = tuple((int(new), int(cached)) for new, cached in pairs)
            found.append(LoggedStep(float(seconds), int(rows), int(held), work))
        except ValueError:
            broken = f"line {number} is no step of a worker's log: {line.strip()!r:.60}"
    return found


def fit_logged(steps: Sequence[LoggedStep], base: EngineProfile) -> EngineProfile:
    """The profile of these steps, and how far they spread; memory and links are those of `base`.

    Steps with prompts are those of the middle, with their spread. Steps of answers alone take the mean: of
    that the time per token of an answer is made.

    Raises:
        InvalidRequest: too few steps of prompts alone, or of answers alone.
    """
    prompts = [step for step in steps if step.work and not step.rows]
    answers = [step for step in steps if step.rows and not step.work]
    if min(len(prompts), len(answers)) < LEAST_STEPS:
        raise InvalidRequest(
            f"{len(prompts)} steps of prompts, {len(answers)} of answers: a profile takes {LEAST_STEPS} each"
        )
    (constant, token, attention, cached, prompt), knee = _best_fit(prompts, _prompt_row)
    (decode_constant, row, held), decode_knee = _best_fit(answers, _answer_row)
    profile = replace(
        base,
        overhead_s=constant,
        weights_s=token * knee,
        token_s=token,
        attention_s=attention / MEGA,
        cached_read_s=cached,
        prompt_s=prompt,
        decode_overhead_s=decode_constant,
        decode_weights_s=row * decode_knee,
        decode_token_s=row,
        decode_read_s=held,
    )
    errors = [step.seconds / step.predicted_s(profile) for step in prompts]
    factor = _mean_factor(answers, profile)
    return replace(
        profile,
        step_spread=spread_of(errors),
        decode_overhead_s=factor * decode_constant,
        decode_weights_s=factor * row * decode_knee,
        decode_token_s=factor * row,
        decode_read_s=factor * held,
    )


def _mean_factor(steps: Sequence[LoggedStep], profile: EngineProfile) -> float:
    """What steps took in all over what the profile says, without the few that stood still."""
    predicted = np.array([step.predicted_s(profile) for step in steps])
    factors = np.array([step.seconds for step in steps]) / predicted
    counted = np.minimum(factors, np.quantile(factors, COUNTED_SHARE))
    return float((counted * predicted).sum() / predicted.sum())


def spread_of(factors: Sequence[float]) -> float:
    """Sigma of the lognormal distribution with the same middle two thirds."""
    low, high = np.quantile(np.log(np.maximum(factors, 1e-9)), (0.16, 0.84))
    return float(high - low) / 2.0


def _prompt_row(step: LoggedStep, knee: int) -> tuple[float, ...]:
    new = sum(tokens for tokens, _ in step.work)
    pairs = sum(tokens * (tokens + 2 * cached) for tokens, cached in step.work) / MEGA
    return (1.0, max(knee, new), pairs, sum(cached for _, cached in step.work), len(step.work))


def _answer_row(step: LoggedStep, knee: int) -> tuple[float, ...]:
    return (1.0, max(knee, step.rows), step.held_tokens)


def _best_fit(
    steps: Sequence[LoggedStep], row_of: Callable[[LoggedStep, int], tuple[float, ...]]
) -> tuple[tuple[float, ...], int]:
    """Coefficients with the least error over all knees, and the knee."""
    fits = [_median_fit(np.array([row_of(step, knee) for step in steps]), steps) for knee in KNEES]
    best = min(range(len(KNEES)), key=lambda position: fits[position][1])
    return fits[best][0], KNEES[best]


def _median_fit(rows: Array, steps: Sequence[LoggedStep]) -> tuple[tuple[float, ...], float]:
    """Coefficients of the least sum of relative errors, by reweighted least squares; and their mean."""
    seconds = np.array([step.seconds for step in steps])
    weights = 1.0 / seconds**2
    found: tuple[float, ...] = ()
    errors = np.zeros_like(seconds)
    for _ in range(ROUNDS):
        weighted = rows * weights[:, None]
        found = tuple(solve_non_negative((weighted.T @ rows).tolist(), (weighted.T @ seconds).tolist()))
        errors = np.abs(rows @ np.array(found) / seconds - 1.0)
        weights = 1.0 / seconds**2 / np.maximum(errors, EQUAL_ERROR)
    return found, float(errors.mean())
