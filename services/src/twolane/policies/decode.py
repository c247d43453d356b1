"""Which waiting requests join a decode worker's batch, and which leave it when pages run out.

The decode worker decides with it before a step. PastFuture predicts the peak of memory
(arXiv 2507.10150); Conservative reserves the longest answer; Aggressive looks at use alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twolane.core.errors import ConfigError
from twolane.policies.lengths import DEFAULT_WINDOW, LengthHistory
from twolane.policies.sampled_peaks import SampledPeaks

# From so many rows on predictions are computed as arrays.
MANY_ROWS = 12
# Spreads one draw of a request over several samples, evenly for any number of them.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """A request that holds pages: running, or admitted with its pages still in transfer.

    Attributes:
        request_id: the request.
        held_tokens: tokens whose pages it holds, shared prefixes counted once over all rows.
        generated_tokens: answer tokens so far.
        max_tokens: its limit of answer tokens.
        draw: a number in [0, 1) drawn once for this request.
    """

    request_id: str
    held_tokens: int
    generated_tokens: int
    max_tokens: int
    draw: float


@dataclass(frozen=True, slots=True)
class FinishedAnswer:
    """An answer that ended; cut_off when its token limit ended it."""

    output_tokens: int
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class DecodeView:
    """What a decode policy may look at.

    Attributes:
        rows: requests that hold pages, in order of admission.
        waiting: requests that want in: first those whose prompts are computed or being computed, in the
            order in which that began, then the others as they came; held_tokens is what they need at once.
        capacity_tokens: tokens that all pages hold.
        max_rows: rows of a batch at most.
        other_tokens: tokens in pages that can't be used (cached prefixes in use elsewhere).
        finished: answers that ended since the last decision.
        memory: the policy's state as it returned it last; None at the start.
        held_tokens: sum of held_tokens over the rows; None: not counted, add it up.
        left_tokens: sum of max_tokens − generated_tokens over the rows; None: not counted, add it up.
        begun: how many of those that wait have begun to be computed; None: all.
        early_rows: how many rows have pages though nobody has begun to compute their prompts.
        longest_tokens: what the longest prompt that may come needs at once.
    """

    rows: Sequence[DecodeRow]
    waiting: Sequence[DecodeRow]
    capacity_tokens: int
    max_rows: int
    other_tokens: int = 0
    finished: tuple[FinishedAnswer, ...] = ()
    memory: Any = None
    held_tokens: int | None = None
    left_tokens: int | None = None
    begun: int | None = None
    early_rows: int = 0
    longest_tokens: int = 0

    def held(self) -> int:
        """Tokens that the rows hold."""
        if self.held_tokens is not None:
            return self.held_tokens
        return sum(row.held_tokens for row in self.rows)

    def left(self) -> int:
        """Tokens that the rows may still generate at most."""
        if self.left_tokens is not None:
            return self.left_tokens
        return sum(_most_left(row) for row in self.rows)

    def in_turn(self, position: int, held_tokens: int, settings: DecodeSettings) -> bool:
        """Whether the waiting request at a position may be admitted after those before it.

        With it the rows would hold so many tokens.

        One that has begun may. The pages of another would be missed by those that begin before it, so that
        it gets them only while there is room for all.
        """
        rows = len(self.rows) + position
        if self.begun is None or position < self.begun:
            return rows - self.early_rows < self.max_rows
        limit = settings.early_tokens(self.capacity_tokens, self.longest_tokens)
        return rows < self.max_rows and held_tokens + self.other_tokens <= limit

    def alone(self) -> bool:
        """Whether the first that waits must be admitted if it fits: nothing else that has begun is here.

        Whatever is predicted; or it would wait for ever.
        """
        if not self.waiting or self.begun == 0 or len(self.rows) > self.early_rows:
            return False
        return self.held() + self.waiting[0].held_tokens <= self.capacity_tokens


@dataclass(frozen=True, slots=True)
class DecodeDecision:
    """Requests to admit, in order, and requests to preempt, latest admitted first."""

    admit: tuple[str, ...] = ()
    preempt: tuple[str, ...] = ()
    memory: Any = None


class DecodePolicy(Protocol):
    """Admits and preempts."""

    @property
    def name(self) -> str:
        """The name under which `decode_by_name` builds it."""
        ...

    @property
    def settings(self) -> DecodeSettings:
        """Its settings."""
        ...

    def decide(self, now_s: float, view: DecodeView) -> DecodeDecision:
        """Decides before a step; never both admits and preempts."""
        ...


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Settings of decode admission.

    Attributes:
        max_output_tokens: the longest answer that the deployment allows.
        reserve: share of the capacity kept free of predictions.
        samples: predictions of the batch at most, the largest peak counts.
        use_limit: share of the capacity up to which Aggressive admits.
        window: finished answers remembered.
        early_share: share of the capacity up to which prompts get pages that nobody has begun to compute.
    """

    max_output_tokens: int = 4096
    reserve: float = 0.05
    samples: int = 5
    use_limit: float = 0.95
    window: int = DEFAULT_WINDOW
    early_share: float = 0.25

    def early_tokens(self, capacity_tokens: int, longest_tokens: int) -> float:
        """Tokens up to which pages are given to prompts that nobody has begun to compute.

        Beside them there is room for the longest prompt. Otherwise one that is computed could wait for the
        pages of one that its own worker, full of such, can't begin.
        """
        return min(self.early_share * capacity_tokens, capacity_tokens - longest_tokens)


def future_peak(rows: Iterable[tuple[int, int]]) -> int:
    """Most tokens held at any later time by rows of (held, still to generate) tokens.

    Memory peaks just before a row ends, when all rows with more to generate still live: with rows in
    falling order of what is left, the largest left_k · k + held_1 + … + held_k.
    """
    peak = held = 0
    for count, (held_tokens, left_tokens) in enumerate(sorted(rows, key=lambda row: -row[1]), 1):
        held += held_tokens
        peak = max(peak, left_tokens * count + held)
    return peak


@dataclass(frozen=True, slots=True)
class PastFuture:
    """Admits the head while the predicted peak of memory stays below the capacity."""

    settings: DecodeSettings
    name: str = "past_future"

    def decide(self, now_s: float, view: DecodeView) -> DecodeDecision:
        """Stops at the first that does not fit. Its memory is a LengthHistory."""
        del now_s
        settings = self.settings
        history: LengthHistory = view.memory or LengthHistory.start(
            settings.max_output_tokens, settings.window
        )
        for answer in view.finished:
            history = history.observe(answer.output_tokens, cut_off=answer.cut_off)
        preempt = _overflow(view)
        if preempt or not view.waiting:
            return DecodeDecision(preempt=preempt, memory=history)
        limit = view.capacity_tokens * (1.0 - settings.reserve) - view.other_tokens
        return DecodeDecision(self._admit(view, history, limit), memory=history)

    def _admit(self, view: DecodeView, history: LengthHistory, limit: float) -> tuple[str, ...]:
        held, worst = view.held(), view.held() + view.left()
        admitted: list[DecodeRow] = []
        for position, head in enumerate(view.waiting):
            held += head.held_tokens
            worst += head.held_tokens + _most_left(head)
            if held >= limit or not view.in_turn(position, held, self.settings):
                break
            # Only when the batch would not fit with every answer at its limit is a prediction needed.
            if worst >= limit and not self._fits([*view.rows, *admitted, head], history, limit):
                break
            admitted.append(head)
        if not admitted and view.alone():
            admitted.append(view.waiting[0])
        return tuple(head.request_id for head in admitted)

    def _fits(self, rows: Sequence[DecodeRow], history: LengthHistory, limit: float) -> bool:
        """Whether the largest of the sampled peaks is below the limit."""
        samples = min(self.settings.samples, 200 // len(rows) + 1)
        if len(rows) >= MANY_ROWS:
            peaks = SampledPeaks(rows, history)
            return all(peaks.peak(sample * GOLDEN) < limit for sample in range(samples))
        return all(self._peak(rows, history, sample) < limit for sample in range(samples))

    @staticmethod
    def _peak(rows: Sequence[DecodeRow], history: LengthHistory, sample: int) -> int:
        shift = sample * GOLDEN
        predicted = []
        for row in rows:
            total = history.conditional(row.generated_tokens, row.max_tokens, (row.draw + shift) % 1.0)
            predicted.append((row.held_tokens, min(total, row.max_tokens) - row.generated_tokens))
        return future_peak(predicted)


@dataclass(frozen=True, slots=True)
class Conservative:
    """Admits the head while every row could run to its limit: never preempts, uses little."""

    settings: DecodeSettings
    name: str = "conservative"

    def decide(self, now_s: float, view: DecodeView) -> DecodeDecision:
        """Keeps no memory."""
        del now_s
        preempt = _overflow(view)
        if preempt:
            return DecodeDecision(preempt=preempt)
        limit = view.capacity_tokens - view.other_tokens
        return DecodeDecision(_admit_while(view, limit, _most_left, view.left(), self.settings))


@dataclass(frozen=True, slots=True)
class Aggressive:
    """Admits the head while current use stays below a share of the capacity: preempts often."""

    settings: DecodeSettings
    name: str = "aggressive"

    def decide(self, now_s: float, view: DecodeView) -> DecodeDecision:
        """Keeps no memory."""
        del now_s
        preempt = _overflow(view)
        if preempt:
            return DecodeDecision(preempt=preempt)
        limit = self.settings.use_limit * view.capacity_tokens - view.other_tokens
        return DecodeDecision(_admit_while(view, limit, lambda row: 1, len(view.rows), self.settings))


def _most_left(row: DecodeRow) -> int:
    return max(0, row.max_tokens - row.generated_tokens)


def _admit_while(
    view: DecodeView,
    limit: float,
    left: Callable[[DecodeRow], int],
    rows_left: int,
    settings: DecodeSettings,
) -> tuple[str, ...]:
    """Admits from the head while held tokens plus those `left` to come stay within the limit."""
    held = view.held()
    claimed = held + rows_left
    admitted: list[str] = []
    for position, head in enumerate(view.waiting):
        held += head.held_tokens
        claimed += head.held_tokens + left(head)
        fits = claimed <= limit or (not admitted and view.alone())
        if not fits or not view.in_turn(position, held, settings):
            break
        admitted.append(head.request_id)
    return tuple(admitted)


def _overflow(view: DecodeView) -> tuple[str, ...]:
    """The latest rows that must go so that every other one can grow by a token; one always stays."""
    need = view.other_tokens + len(view.rows) + view.held()
    leaving: list[str] = []
    if need <= view.capacity_tokens:
        return ()
    for row in reversed(view.rows[1:]):
        if need <= view.capacity_tokens:
            break
        need -= row.held_tokens + 1
        leaving.append(row.request_id)
    return tuple(leaving)


DECODE_POLICIES = ("past_future", "conservative", "aggressive")


def decode_by_name(name: str, settings: DecodeSettings | None = None) -> DecodePolicy:
    """Builds the decode policy of that name.

    Raises:
        ConfigError: no policy has the name; the message lists those there are.
    """
    chosen = settings or DecodeSettings()
    if name == "past_future":
        return PastFuture(chosen)
    if name == "conservative":
        return Conservative(chosen)
    if name == "aggressive":
        return Aggressive(chosen)
    raise ConfigError(f"unknown decode policy {name!r}; choose one of {', '.join(DECODE_POLICIES)}")
