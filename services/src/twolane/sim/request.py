"""A request as the simulator carries it: what it asks for, where it is, and what its client saw."""

from __future__ import annotations

from twolane.core.request import Lane


class SimRequest:
    """Mutable state of one request; times are virtual seconds, NaN until they happen.

    `prompt_tokens` grows by the generated ones when a lost or preempted request is computed again.
    """

    __slots__ = (
        "aborted",
        "arrival_s",
        "asked_tokens",
        "cached_tokens",
        "deadline_s",
        "draw",
        "failed",
        "first_token_s",
        "floor_s",
        "generated_tokens",
        "index",
        "is_short",
        "joined_segment",
        "joined_step",
        "lane",
        "last_token_s",
        "lease",
        "left_tokens",
        "max_tokens",
        "name",
        "output_tokens",
        "prefilled",
        "priority",
        "promised_tokens",
        "prompt_tokens",
        "queued_s",
        "replays",
        "skips",
        "source",
        "target",
        "token_clock_s",
        "ttft_limit_s",
        "worst_gap_s",
    )

    def __init__(
        self, index: int, arrival_s: float, prompt_tokens: int, output_tokens: int, cached: int
    ) -> None:
        self.index = index
        self.name = str(index)
        self.arrival_s = arrival_s
        self.queued_s = arrival_s
        self.prompt_tokens = self.asked_tokens = prompt_tokens
        self.output_tokens = output_tokens
        # Limit of the answer as its client set it; policies see it, not the length that comes.
        self.max_tokens = output_tokens
        self.cached_tokens = cached
        self.generated_tokens = 0
        self.is_short = True
        self.lane = Lane.SHORT
        self.priority = 0
        self.deadline_s: float | None = None
        self.ttft_limit_s = float("inf")
        self.floor_s = 0.0
        self.draw = 0.5
        self.first_token_s = float("nan")
        self.last_token_s = float("nan")
        # When the client got its newest token; gaps are counted from it.
        self.token_clock_s = float("nan")
        self.worst_gap_s = 0.0
        self.joined_segment = 0
        self.joined_step = 0
        # Tokens it may still generate, as a decode worker counted when it reserved pages.
        self.left_tokens = 0
        # Number of the reservation that holds; pages sent under an older one are ignored.
        self.lease = 0
        # Whether its pages are complete, at worker `source`; its decode worker is `target`.
        self.prefilled = False
        self.source = -1
        self.target = -1
        # Prompt tokens counted as promised at the target.
        self.promised_tokens = 0
        # Whether prefill and decode run on one worker.
        self.skips = False
        self.replays = 0
        self.failed = False
        self.aborted = False

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens to compute."""
        return self.prompt_tokens - self.cached_tokens

    def restart(self) -> None:
        """Its pages are lost: prompt and answer so far must be computed, and the next token follows."""
        self.prompt_tokens = self.asked_tokens + self.generated_tokens
        self.cached_tokens = 0
        self.prefilled = False
