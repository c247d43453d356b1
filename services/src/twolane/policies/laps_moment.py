"""What `laps` knows at one decision: its memory, the prompts sorted out, and how much room it has.

`moment_of` brings the memory up to date and dates the long prompts; `laps` then only compares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from twolane.core.request import Lane
from twolane.policies.cost import Load, PrefillCost
from twolane.policies.due_order import Due, due_order
from twolane.policies.fcfs_clock import FcfsClock, Steps
from twolane.policies.lanes import fitted_boundary
from twolane.policies.measured import MeasuredCost
from twolane.policies.postponed import Postponed
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
        postponed: the few long prompts that may end later than that.
    """

    measured: MeasuredCost
    boundary_tokens: int
    short_run: int = 0
    arrivals: ShortArrivals = field(default_factory=ShortArrivals)
    depth: WaitDepth = field(default_factory=WaitDepth)
    clock: FcfsClock = field(default_factory=FcfsClock)
    postponed: Postponed = field(default_factory=Postponed)


@dataclass(slots=True)
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
        short_s: predicted seconds of a batch of the waiting short prompts.
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
    short_s: float = 0.0

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
    steps = Steps(cost, settings.max_batch_tokens, settings.long_chunk_tokens)
    clock = memory.clock.after(now_s, waiting, steps)
    memory = replace(
        memory,
        measured=measured,
        boundary_tokens=boundary,
        arrivals=memory.arrivals.after(shorts),
        clock=clock,
    )
    moment = Moment(now_s, shorts, longs, cost, memory)
    short_work_s = cost.work_s(Load.of(shorts))
    moment.short_s = cost.constant_s + short_work_s
    if longs:
        found = due_order(now_s, _dues(settings, moment))
        moment.longs = [longs[position] for position in found.positions]
        work_s = short_work_s + cost.work_s(Load.of(longs))
        moment.slack_s, moment.gave_up = found.slack_s, found.given_up > 0
        moment.debt_s = work_s - clock.backlog_s(now_s, cost)
        moment.credit_s = settings.repay_s * clock.shares.idle
    return moment


def foreground(
    settings: PrefillSettings, now_s: float, waiting: Sequence[WaitingPrefill]
) -> Sequence[WaitingPrefill]:
    """The prompts that are served now: those of negative priority only alone, or once they have aged."""
    if min([prompt.priority for prompt in waiting], default=0) >= 0:
        return waiting
    aged_s = now_s - settings.long_age_limit_s
    return [p for p in waiting if p.priority >= 0 or p.arrival_s <= aged_s] or waiting


def head_start_s(settings: PrefillSettings, prompt: WaitingPrefill) -> float:
    """Seconds by which a prompt's priority makes it older."""
    return min(max(prompt.priority, 0) * settings.priority_s, settings.long_age_limit_s)


def _dues(settings: PrefillSettings, moment: Moment) -> list[Due]:
    """The dates of the long prompts.

    Its time under fcfs (or what the tail of the lane allows) is due while that keeps a prompt's deadline; if
    it can leave that place and still keep the deadline, it may be asked to. Where fcfs would miss the
    deadline, the deadline is due, and when it can't be kept fcfs's time, and a little more.
    """
    cost, clock, limit_s = moment.cost, moment.memory.clock, settings.long_age_limit_s
    dates_s, reorder, budget_s = clock.dates_s, settings.reorder_long, settings.long_budget_s
    pair_s, token_s, held_s = cost.attention_s, cost.token_s, cost.cached_token_s
    constant_s, late = cost.heavy_constant_s, 1.0 + settings.tail_slack
    # Short prompts that come meanwhile take their share.
    stretch = 1.0 / (1.0 - clock.shares.short)
    found, services_s = [], []
    for prompt in moment.longs:
        arrival_s = prompt.arrival_s
        start_s = arrival_s - head_start_s(settings, prompt) if prompt.priority else arrival_s
        due_s = budget_s if prompt.deadline_s is None else max(0.0, prompt.deadline_s - arrival_s)
        due_s *= BUDGET_SHARE
        fcfs_s = dates_s[prompt.request_id] - arrival_s if reorder else 0.0
        new, held = prompt.uncached_tokens, prompt.cached_tokens
        service_s = constant_s + pair_s * new * (new + 2 * held) + token_s * new + held_s * held
        services_s.append(service_s)
        if fcfs_s > due_s:
            first_s, last_s = due_s, late * fcfs_s
        else:
            first_s, last_s = fcfs_s, max(fcfs_s, min(due_s, TAIL_SPARE * fcfs_s))
        first_s, last_s = start_s + min(first_s, limit_s), start_s + min(last_s, limit_s)
        found.append(Due(service_s * stretch, first_s, last_s, fcfs_s > due_s))
    if may_postpone(settings):
        _postpone(settings, moment, found, services_s)
    return found


def may_postpone(settings: PrefillSettings) -> bool:
    """Whether any long prompt may be postponed."""
    return settings.reorder_long and settings.postpone_share > 0.0


def _postpone(settings: PrefillSettings, moment: Moment, dues: list[Due], services_s: list[float]) -> None:
    """Gives the largest prompts a late last date, within the budget; one past its own is late for good.

    It counts as late then, whatever follows, so all others go first, up to the late date.
    """
    longs, share, limit_s = moment.longs, settings.postpone_share, settings.long_age_limit_s
    late = 1.0 + settings.tail_slack
    postponed = moment.memory.postponed.after(longs, services_s, share)
    gone = []
    for position in postponed.candidates(longs, services_s, share):
        prompt, due = longs[position], dues[position]
        fcfs_s = moment.memory.clock.dates_s[prompt.request_id] - prompt.arrival_s
        if moment.now_s + services_s[position] > prompt.arrival_s + min(late * fcfs_s, limit_s):
            gone.append(prompt.request_id)
        else:
            last_s = max(due.last_s, _latest_s(settings, moment, prompt))
            dues[position] = due._replace(last_s=last_s, is_deadline=True)
    postponed = postponed.postpone(gone)
    for position, prompt in enumerate(longs if postponed.gone_ids else ()):
        if prompt.request_id in postponed.gone_ids:
            last_s = max(dues[position].last_s, _latest_s(settings, moment, prompt))
            dues[position] = Due(dues[position].service_s, last_s, last_s, is_deadline=False)
    moment.memory = replace(moment.memory, postponed=postponed)


def _latest_s(settings: PrefillSettings, moment: Moment, prompt: WaitingPrefill) -> float:
    """The date of a postponed prompt, which stands whatever else is given up."""
    fcfs_s = moment.memory.clock.dates_s[prompt.request_id] - prompt.arrival_s
    latest_s = min(settings.postpone_factor * fcfs_s, settings.postpone_limit_s)
    return prompt.arrival_s - head_start_s(settings, prompt) + latest_s
