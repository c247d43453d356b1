"""Every number that prefill policies may be given, in one frozen class; defaults are safe without tuning.

Workers and the simulator build it once from their configuration and pass it to `registry.by_name`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from twolane.core.errors import ConfigError

# Settings without a unit that may be 0.
FROM_ZERO = ("tail_slack", "postpone_share", "short_weight", "short_share", "short_share_late")


@dataclass(frozen=True, slots=True)
class PrefillSettings:
    """Settings of all prefill policies; each policy uses the ones that it names in its docstring.

    Attributes:
        short_max_uncached_tokens: boundary of the lanes (tokens, inclusive) until one is fitted.
        window_s: seconds a short prompt waits for company at most (laps_fixed), and the bound of the
            adaptive window (laps).
        max_short_batch: prompts in a short batch at most (laps_fixed).
        long_chunk_tokens: tokens of one chunk of a long prompt; laps adapts within its own bounds.
        max_batch_tokens: tokens of any batch at most.
        short_batches_per_long: short batches in a row at most while a long prompt waits.
        chunk_budget_tokens: tokens of a step of the chunked policy (SARATHI).
        depth_max: prompts in a short batch at most (laps).
        short_batch_tokens: tokens of a short batch at most (laps).
        long_chunk_min_tokens: least chunk of a long prompt that laps cuts.
        long_chunk_max_tokens: largest chunk of a long prompt that laps cuts.
        long_chunk_target_s: seconds a chunk of a long prompt should take, so that a short prompt that
            arrives meanwhile is held back no longer.
        long_age_limit_s: a long prompt is overtaken by none that arrived this much later; one of negative
            priority waits this long for others at most.
        short_budget_s: the time that a short prompt without a deadline should be served in.
        long_budget_s: the time that a long prompt without a deadline should be served in.
        deadline_margin_s: seconds by which predictions keep away from a deadline.
        long_chunk_least_s: seconds a chunk of a long prompt takes at least.
        reorder_long: whether laps orders long prompts by deadlines and by the times of fcfs; else by arrival.
        tail_slack: share by which a long prompt that can't meet its deadline may end later than under fcfs.
        postpone_share: share of long prompts, the largest, that may end later than the tail of fcfs when that
            keeps deadlines of others; 0 for none.
        postpone_factor: such a prompt ends by this many times its time under fcfs (or the lane's tail).
        postpone_limit_s: and is overtaken by none that arrived this much later.
        repay_s: seconds of idle time after which work that laps is behind fcfs should be repaid.
        short_share: share of the time under fcfs for which short prompts gather when laps is behind.
        short_share_late: the same while long prompts end later than under fcfs.
        short_weight: what a second of a short prompt's wait counts against one of a long's when chunks
            are sized.
        priority_s: seconds of earlier arrival that one level of priority is worth.
        adaptive_wait: whether laps waits for short company when that pays.
        adaptive_chunk: whether laps sizes chunks by cost and load.
        defer_short: whether laps lets short prompts gather behind a chunk when that pays.
        boundary_min_tokens: a fitted boundary is at least this.
        boundary_max_tokens: a fitted boundary is at most this.
        fit_min_samples: measured batches before a fitted cost is trusted.
    """

    short_max_uncached_tokens: int = 256
    window_s: float = 0.005
    max_short_batch: int = 8
    long_chunk_tokens: int = 2048
    max_batch_tokens: int = 8192
    short_batches_per_long: int = 4
    chunk_budget_tokens: int = 512
    depth_max: int = 64
    short_batch_tokens: int = 4096
    long_chunk_min_tokens: int = 256
    long_chunk_max_tokens: int = 8192
    long_chunk_target_s: float = 0.2
    long_age_limit_s: float = 60.0
    short_budget_s: float = 0.4
    long_budget_s: float = 2.0
    deadline_margin_s: float = 0.005
    long_chunk_least_s: float = 0.04
    reorder_long: bool = True
    tail_slack: float = 0.1
    postpone_share: float = 0.009
    postpone_factor: float = 8.0
    postpone_limit_s: float = 240.0
    repay_s: float = 0.15
    short_share: float = 0.5
    short_share_late: float = 0.75
    short_weight: float = 0.4
    priority_s: float = 1.0
    adaptive_wait: bool = True
    adaptive_chunk: bool = True
    defer_short: bool = True
    boundary_min_tokens: int = 256
    boundary_max_tokens: int = 1024
    fit_min_samples: int = 32

    def __post_init__(self) -> None:
        """Refuses numbers under which a policy could stall.

        Raises:
            ConfigError: a count or a size is below 1, or a duration is negative or not finite.
        """
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool):
                continue
            least = 0 if item.name.endswith("_s") or item.name in FROM_ZERO else 1
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{item.name} must be a finite number of at least {least}, not {value}")
