"""What a prefill or decode step costs in seconds, fitted online from measured steps.

Prefill policies, placement and the role controller predict with it. Prefill seconds are
T0 + a·ΣL(L+2H) + b·ΣL + g·ΣH over the prompts of a batch (L new, H cached tokens; LAPS section 3 with
the constant weight read that it lacks); decode seconds are a + b·tokens + c·batch (DistServe).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from twolane.policies.least_squares import StepFit

# Units that bring the features near 1, for well-conditioned sums.
KILO = 1e3
MEGA = 1e6
# Batches up to this many tokens are light: mostly the constant part.
LIGHT_TOKENS = 256
# The guess until steps are measured: an 8B model in bf16 on one recent data-centre GPU.
START_PREFILL = (0.006, 0.0008, 0.025, 0.00005)
START_DECODE = (0.006, 0.00005, 0.02)
LIGHT_DECODE_ROWS = 16

Work = tuple[int, int]


class Prompted(Protocol):
    """A prompt with tokens to compute behind cached ones."""

    @property
    def uncached_tokens(self) -> int:
        """To compute."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Before them."""
        ...


class Load(NamedTuple):
    """Work of many prompts, in whole numbers, so that some can be added and taken away without an error.

    Attributes:
        pairs: sum of L(L+2H) over prompts of L new behind H cached tokens.
        tokens: sum of L.
        cached_tokens: sum of H.
    """

    pairs: int = 0
    tokens: int = 0
    cached_tokens: int = 0

    @classmethod
    def of(cls, prompts: Iterable[Prompted]) -> Load:
        """Of these prompts."""
        pairs = tokens = cached_tokens = 0
        for prompt in prompts:
            new, held = prompt.uncached_tokens, prompt.cached_tokens
            pairs += new * (new + 2 * held)
            tokens += new
            cached_tokens += held
        return cls(pairs, tokens, cached_tokens)

    def plus(self, new: int, held: int) -> Load:
        """With one more."""
        pairs, tokens, cached_tokens = self
        return Load(pairs + new * (new + 2 * held), tokens + new, cached_tokens + held)

    def minus(self, new: int, held: int) -> Load:
        """With one less."""
        pairs, tokens, cached_tokens = self
        return Load(pairs - new * (new + 2 * held), tokens - new, cached_tokens - held)


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Predicts the seconds of a prefill batch; `update` returns a new model."""

    fit: StepFit = field(default_factory=lambda: StepFit.start(START_PREFILL))

    @classmethod
    def known(
        cls, constant_s: float, attention_s: float, token_s: float, cached_token_s: float
    ) -> PrefillCost:
        """A cost fitted elsewhere: seconds per step, unit of L(L+2H), new token and cached token."""
        return cls(StepFit.start((constant_s, attention_s * MEGA, token_s * KILO, cached_token_s * KILO)))

    @property
    def constant_s(self) -> float:
        """T0: seconds of a step with next to no tokens."""
        return self.fit.coefficients[0]

    @property
    def heavy_constant_s(self) -> float:
        """Seconds that one more heavy step costs: the reading of weights hides behind its computing."""
        return min(self.fit.heavy_constant, self.constant_s)

    @property
    def attention_s(self) -> float:
        """Seconds per unit of L(L+2H)."""
        return self.fit.coefficients[1] / MEGA

    @property
    def token_s(self) -> float:
        """Seconds per new token, attention aside."""
        return self.fit.coefficients[2] / KILO

    @property
    def cached_token_s(self) -> float:
        """Seconds per cached token whose keys and values are read."""
        return self.fit.coefficients[3] / KILO

    def trusted(self, min_samples: int) -> bool:
        """Whether enough light and heavy batches were measured to tell the coefficients apart."""
        least = max(1, min_samples // 4)
        fit = self.fit
        return fit.samples >= min_samples and min(fit.light.samples, fit.heavy.samples) >= least

    def batch_s(self, work: Iterable[Work]) -> float:
        """Seconds of a batch.

        Args:
            work: (new tokens, cached tokens) of every prompt in it.
        """
        constant, attention, token, cached = self.fit.coefficients
        seconds = constant
        for new, held in work:
            seconds += attention * new * (new + 2 * held) / MEGA + (token * new + cached * held) / KILO
        return seconds

    def prompt_s(self, new_tokens: int, cached_tokens: int) -> float:
        """Seconds of one prompt alone in one step."""
        return self.batch_s(((new_tokens, cached_tokens),))

    def marginal_s(self, new_tokens: int, cached_tokens: int) -> float:
        """Seconds that a prompt adds to a batch that runs anyway."""
        _, attention, token, cached = self.fit.coefficients
        pairs = new_tokens * (new_tokens + 2 * cached_tokens)
        return attention * pairs / MEGA + (token * new_tokens + cached * cached_tokens) / KILO

    def work_s(self, load: Load) -> float:
        """The same of many prompts."""
        _, attention, token, cached = self.fit.coefficients
        pairs, tokens, cached_tokens = load
        return attention * pairs / MEGA + (token * tokens + cached * cached_tokens) / KILO

    def tokens_within(self, seconds: float, cached_tokens: int) -> int:
        """The largest chunk behind `cached_tokens` that takes `seconds` at most; 0 when none does."""
        room_s = seconds - self.constant_s - self.cached_token_s * cached_tokens
        if room_s <= 0.0:
            return 0
        linear_s = self.token_s + 2.0 * self.attention_s * cached_tokens
        if self.attention_s * room_s <= 1e-6 * linear_s * linear_s:
            return int(min(room_s / linear_s, 1e9)) if linear_s > 0.0 else 10**9
        root = (linear_s * linear_s + 4.0 * self.attention_s * room_s) ** 0.5
        return int((root - linear_s) / (2.0 * self.attention_s))

    def update(self, work: Iterable[Work], seconds: float) -> PrefillCost:
        """With one more measured batch."""
        pairs = 0.0
        new_tokens = cached_tokens = 0
        for new, held in work:
            pairs += new * (new + 2 * held)
            new_tokens += new
            cached_tokens += held
        features = (1.0, pairs / MEGA, new_tokens / KILO, cached_tokens / KILO)
        is_light = new_tokens <= LIGHT_TOKENS
        return replace(self, fit=self.fit.observe(features, seconds, is_light=is_light))


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """Predicts the seconds of a decode step; `update` returns a new model."""

    fit: StepFit = field(default_factory=lambda: StepFit.start(START_DECODE))

    @classmethod
    def known(cls, constant_s: float, held_token_s: float, row_s: float) -> DecodeCost:
        """A cost fitted elsewhere: seconds per step, held token and row."""
        return cls(StepFit.start((constant_s, held_token_s * KILO, row_s * KILO)))

    def step_s(self, held_tokens: int, rows: int) -> float:
        """Seconds of a step over `rows` requests that hold `held_tokens` tokens together."""
        constant, token, row = self.fit.coefficients
        return constant + (token * held_tokens + row * rows) / KILO

    def rows_within(self, seconds: float, tokens_per_row: float) -> int:
        """Rows of equal length whose step takes `seconds` at most; 0 when not even one fits."""
        constant, token, row = self.fit.coefficients
        per_row_s = (token * tokens_per_row + row) / KILO
        if seconds < constant + per_row_s:
            return 0
        return int(min((seconds - constant) / per_row_s, 1e9)) if per_row_s > 0.0 else 10**9

    def update(self, held_tokens: int, rows: int, seconds: float) -> DecodeCost:
        """With one more measured step."""
        features = (1.0, held_tokens / KILO, rows / KILO)
        is_light = rows <= LIGHT_DECODE_ROWS
        return replace(self, fit=self.fit.observe(features, seconds, is_light=is_light))
