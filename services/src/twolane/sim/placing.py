"""Asks a live placement policy where a simulated request goes, as the router does.

It looks at every worker for every request, like the router; for clusters of hundreds of workers the
simulator's own sampling router is the faster stand-in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twolane.core.errors import ConfigError
from twolane.core.request import Lane, Role
from twolane.policies.cost import KILO, MEGA, DecodeCost, PrefillCost
from twolane.policies.least_squares import StepFit
from twolane.policies.least_wait import PLACEMENT_POLICIES
from twolane.policies.placement import PlacementView, PlacementWorker
from twolane.policies.roles import Group
from twolane.sim.profile import EngineProfile
from twolane.sim.request import SimRequest
from twolane.sim.worker import SimWorker

PAGE_TOKENS = 16
LANES = {Group.SHORT: Lane.SHORT, Group.LONG: Lane.LONG}


class Placing:
    """One placement policy, its memory, and the view it gets.

    Args:
        name: of the policy.
        boundary_tokens: boundary of the lanes before one is fitted.
        profile: from which the costs that workers would report are taken.
        tpot_limit_s: seconds per token that answers may take.
        draw: gives uniform numbers in [0, 1).

    Raises:
        ConfigError: no placement policy has the name.
    """

    def __init__(
        self,
        name: str,
        boundary_tokens: int,
        profile: EngineProfile,
        tpot_limit_s: float,
        draw: Callable[[], float],
    ) -> None:
        if name not in PLACEMENT_POLICIES:
            known = ", ".join(PLACEMENT_POLICIES)
            raise ConfigError(f"unknown placement policy {name!r}; choose one of {known}")
        self._policy = PLACEMENT_POLICIES[name](boundary_tokens)
        self._profile = profile
        self._tpot_limit_s = tpot_limit_s
        self._draw = draw
        self._memory: Any = None
        step_s = profile.overhead_s + profile.weights_s
        prefill = (step_s, profile.attention_s * MEGA, profile.token_s * KILO, 0.0)
        self._prefill_cost = PrefillCost(StepFit.start(prefill))
        decode = (step_s, profile.decode_read_s * KILO, profile.token_s * KILO)
        self._decode_cost = DecodeCost(StepFit.start(decode))

    def place(
        self, now_s: float, request: SimRequest, workers: Sequence[SimWorker]
    ) -> tuple[SimWorker, SimWorker] | None:
        """The prefill and the decode worker, the same one to skip disaggregation; None: no capacity."""
        view = PlacementView(
            workers=tuple(self._seen(worker, request) for worker in workers if worker.alive),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens - request.generated_tokens,
            page_tokens=PAGE_TOKENS,
            draw=self._draw(),
            transfer_token_s=self._profile.transfer_s(1),
            tpot_limit_s=self._tpot_limit_s,
            memory=self._memory,
        )
        found = self._policy.decide(now_s, view)
        self._memory = found.memory
        if found.no_capacity:
            return None
        by_id = {str(worker.index): worker for worker in workers}
        return by_id[found.prefill_id], by_id[found.decode_id]

    def _seen(self, worker: SimWorker, request: SimRequest) -> PlacementWorker:
        prefill, decode = worker.prefill, worker.decode
        waiting_s = {Lane.SHORT: prefill.short_backlog_s, Lane.LONG: prefill.long_backlog_s}
        return PlacementWorker(
            worker_id=str(worker.index),
            role=_role(worker),
            lane=LANES.get(worker.group),
            draining=worker.going_to is not None,
            cached_tokens=request.cached_tokens,
            waiting_tokens=sum(prompt.uncached_tokens for prompt in prefill.prompts.values()),
            running=len(decode.running),
            predicted_peak_pages=-(-worker.promised_tokens // PAGE_TOKENS),
            total_pages=self._profile.capacity_tokens // PAGE_TOKENS,
            boundary_tokens=prefill.boundary_tokens,
            waiting_s=waiting_s,
            prefill_cost=self._prefill_cost,
            decode_cost=self._decode_cost,
            held_tokens=decode.held_tokens,
        )


def _role(worker: SimWorker) -> Role:
    if worker.is_mixed:
        return Role.MIXED
    return Role.DECODE if worker.group is Group.DECODE else Role.PREFILL
