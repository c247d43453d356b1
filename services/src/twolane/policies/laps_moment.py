"""What `laps` knows at one decision: its memory, the prompts sorted out, and how much room it has.

`moment_of` brings the memory up to date and dates the long prompts; `laps` then only compares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from twolane.core.request import Lane
from twolane.policies.cost import PrefillCost
from twolane.policies.due_order import Due, due_order
from twolane.policies.fcfs_clock import FcfsClock, Steps
from twolane.policies.lanes import fitted_boundary
from twolane.policies.measured import MeasuredCost
from twolane.policies.prefill import PrefillView, WaitingPrefill
from twolane.policies.settings import PrefillSettings
from twolane.policies.wait_depth import ShortArrivals, WaitDepth

# A long prompt is planned to end after this share of its time, as predictions err.
BUDGET_SHARE = 0.97
# A prompt with much time left may leave its place under fcfs by this factor when that saves a deadline.
TAIL_SPARE = 3.0


@dataclass(frozen=True, slots=True)
class LapsMemory:
    """What the policy carries from one decision to the next.

    Attributes:
        measured: fitted cost of batches.
        boundary_tokens: boundary of the lanes for prompts that arrive.
        short_run: short batches since the last chunk of a long prompt.
        arrivals: estimated rate of short prompts.
        depth: target depth of a short batch.
        clock: what fcfs would do with the same prompts.
    """

    measured: MeasuredCost
    boundary_tokens: int
    short_run: int = 0
    arrivals: ShortArrivals = field(default_factory=ShortArrivals)
    depth: WaitDepth = field(default_factory=WaitDepth)
    clock: FcfsClock = field(default_factory=FcfsClock)


@dataclass(frozen=True, slots=True)
class Moment:
    """One decision's inputs, sorted out.

    Attributes:
        now_s: the time.
        shorts: the short lane, in order of arrival.
        longs: the long lane, in the order to run it.
        cost: fitted cost.
        memory: up to date.
        slack_s: by how much the long lane may be delayed before a date of its prompts is broken.
        debt_s: seconds of work that wait here and not under fcfs, for batches of one lane cost more.
        credit_s: debt that is no loss: idle time repays it soon.
        gave_up: whether deadlines of long prompts were given up.
    """

    now_s: float
    shorts: list[WaitingPrefill]
    longs: list[WaitingPrefill]
    cost: PrefillCost
    memory: LapsMemory
    slack_s: float = math.inf
    debt_s: float = 0.0
    credit_s: float = 0.0
    gave_up: bool = False

    @property
    def is_tight(self) -> bool:
        """Whether capacity must be saved: batches become larger and short prompts gather."""
        return self.gave_up or self.slack_s < 0.0 or self.debt_s > self.credit_s


def moment_of(settings: PrefillSettings, now_s: float, view: PrefillView) -> Moment:
    """Brings the memory up to date and puts the long lane in order."""
    memory: LapsMemory = view.memory or LapsMemory(MeasuredCost(), settings.short_max_uncached_tokens)
    measured = memory.measured.after(view.last_batch_s)
    cost, boundary = measured.cost, memory.boundary_tokens
    if measured is not memory.measured:
        boundary = fitted_boundary(cost, boundary, settings)
    waiting = foreground(settings, now_s, view.waiting)
    shorts = [prompt for prompt in waiting if prompt.lane is Lane.SHORT]
    longs = [prompt for prompt in waiting if prompt.lane is Lane.LONG]
    clock = memory.clock.after(
        now_s, waiting, Steps(cost, settings.max_batch_tokens, settings.long_chunk_tokens)
    )
    memory = replace(
        memory,
        measured=measured,
        boundary_tokens=boundary,
        arrivals=memory.arrivals.seen(prompt.arrival_s for prompt in shorts),
        clock=clock,
    )
    moment = Moment(now_s, shorts, longs, cost, memory)
    if not longs:
        return moment
    found = due_order(now_s, [_due(settings, moment, prompt) for prompt in longs])
    work_s = sum(cost.marginal_s(prompt.uncached_tokens, prompt.cached_tokens) for prompt in waiting)
    return replace(
        moment,
        longs=[longs[position] for position in found.positions],
        slack_s=found.slack_s,
        debt_s=work_s - clock.backlog_s(now_s, cost),
        credit_s=settings.repay_s * clock.shares.idle,
        gave_up=found.given_up > 0,
    )


def foreground(
    settings: PrefillSettings, now_s: float, waiting: Sequence[WaitingPrefill]
) -> Sequence[WaitingPrefill]:
    """The prompts that are served now: those of negative priority only alone, or once they have aged."""
    if all(prompt.priority >= 0 for prompt in waiting):
        return waiting
    aged_s = now_s - settings.long_age_limit_s
    return [p for p in waiting if p.priority >= 0 or p.arrival_s <= aged_s] or waiting


def head_start_s(settings: PrefillSettings, prompt: WaitingPrefill) -> float:
    """Seconds by which a prompt's priority makes it older."""
    return min(max(prompt.priority, 0) * settings.priority_s, settings.long_age_limit_s)


def _due(settings: PrefillSettings, moment: Moment, prompt: WaitingPrefill) -> Due:
    """The dates of a long prompt.

    Its time under fcfs (or what the tail of the lane allows) is due while that keeps its deadline; if it
    can leave that place and still keep the deadline, it may be asked to. Where fcfs would miss the deadline,
    the deadline is due, and when it can't be kept fcfs's time, and a little more.
    """
    start_s = prompt.arrival_s - head_start_s(settings, prompt)
    clock, limit_s = moment.memory.clock, settings.long_age_limit_s
    deadline_s = settings.long_budget_s
    if prompt.deadline_s is not None:
        deadline_s = max(0.0, prompt.deadline_s - prompt.arrival_s)
    deadline_s *= BUDGET_SHARE
    fcfs_s = clock.dates_s[prompt.request_id] - prompt.arrival_s if settings.reorder_long else 0.0
    service_s = moment.cost.heavy_constant_s + moment.cost.marginal_s(
        prompt.uncached_tokens, prompt.cached_tokens
    )
    # Short prompts that come meanwhile take their share.
    service_s /= 1.0 - clock.shares.short
    if fcfs_s > deadline_s:
        first_s, last_s = deadline_s, (1.0 + settings.tail_slack) * fcfs_s
    else:
        first_s = fcfs_s
        last_s = max(fcfs_s, min(deadline_s, TAIL_SPARE * fcfs_s))
    return Due(
        service_s, start_s + min(first_s, limit_s), start_s + min(last_s, limit_s), fcfs_s > deadline_s
    )
