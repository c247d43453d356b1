"""How many workers keep a target under a given load: queueing for prefill, memory and pace for decode.

Pure arithmetic over the cost model; planner.py calls it with measured and with predicted work, the
queue-blind baseline takes the throughput of a decode worker from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twolane.policies.planner_view import WorkerCost

# Pages that admission leaves free for answers that turn out longer than predicted.
USABLE_PAGES = 0.85
# A worker above this share of its time can't keep any target.
FULLEST = 0.95
MOST_WORKERS = 10_000


@dataclass(frozen=True, slots=True)
class PrefillLoad:
    """Prompts of one lane.

    Attributes:
        work: worker-seconds of them per second.
        service_s: seconds that one takes on average.
        limit_s: time in which its first token should come.
        variation: squared coefficient of variation of the seconds.
    """

    work: float
    service_s: float
    limit_s: float
    variation: float = 1.0


def late_share(load: PrefillLoad, ahead: float, workers: int) -> float:
    """Share of prompts that wait too long, for `workers` workers (M/G/c, exponential tail).

    Args:
        load: the lane.
        ahead: worker-seconds per second of everything that is served before or beside it.
        workers: workers.
    """
    use = (load.work + ahead) / workers
    if use >= FULLEST:
        return 1.0
    # A target below the work itself can't be kept by more workers; then a wait as long as the work is fair.
    slack_s = max(load.limit_s - load.service_s, load.service_s)
    rate = workers * (1.0 - use) / max(1e-6, load.service_s * (1.0 + load.variation) / 2.0)
    return waiting_share(workers, use * workers) * math.exp(-min(700.0, rate * slack_s))


def waiting_share(workers: int, offered: float) -> float:
    """Erlang C: the share of arrivals that find all workers busy."""
    if offered <= 0.0:
        return 0.0
    if offered >= workers:
        return 1.0
    blocked = 1.0
    for busy in range(1, workers + 1):
        blocked = offered * blocked / (busy + offered * blocked)
    use = offered / workers
    return blocked / (1.0 - use * (1.0 - blocked))


def prefill_workers(short: PrefillLoad, long: PrefillLoad, late: float) -> int:
    """Least workers under which at most a share `late` of each lane waits too long.

    A short prompt goes ahead of long ones but waits for the chunk that runs; a long one waits for all.
    """
    total = short.work + long.work
    workers = max(1, math.ceil(total / FULLEST))
    while workers < MOST_WORKERS:
        misses_long = late_share(long, short.work, workers) if long.work > 0.0 else 0.0
        misses_short = late_share(short, 0.0, workers) if short.work > 0.0 else 0.0
        if total / workers < FULLEST and max(misses_short, misses_long) <= late:
            return workers
        workers += 1
    return workers


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """What one decode worker does when it is as full as its targets allow.

    Attributes:
        tokens_per_s: tokens generated a second.
        held_tokens: tokens held meanwhile.
        rows: answers decoded at a time.
    """

    tokens_per_s: float
    held_tokens: float
    rows: float


def decode_rate(cost: WorkerCost, prompt_tokens: float, output_tokens: float, tpot_s: float) -> DecodeRate:
    """The fullest batch of average answers that fits the pages and the pace.

    Args:
        cost: of a worker.
        prompt_tokens: mean prompt.
        output_tokens: mean answer.
        tpot_s: seconds per token at most.
    """
    per_row = max(1.0, prompt_tokens + output_tokens / 2.0)
    rows = fullest_rows(cost, per_row, tpot_s)
    constant, token, row = cost.decode.fit.coefficients
    step_s = constant + (token * per_row + row) * rows / 1e3
    return DecodeRate(rows / max(1e-6, step_s), rows * per_row, rows)


def fullest_rows(cost: WorkerCost, tokens: float, tpot_s: float) -> float:
    """Answers of so many tokens that one worker holds at most: by pages, by pace, by rows."""
    per_row = max(1.0, tokens)
    fits = USABLE_PAGES * cost.capacity_tokens / per_row
    return max(1.0, min(fits, cost.decode.rows_within(tpot_s, per_row), cost.max_rows))
