"""What becomes of revisions whose objects are kept as they were made: scaled, and in the end deleted.

The spec they were made from is gone, so that nothing of them can be built anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from twolane.operator.actions import Action, Delete, Scale
from twolane.operator.build.workers import Lane, PoolPlan, Role
from twolane.operator.gangs import groups_of, scaled
from twolane.operator.names import REVISION_LABEL, owner_of
from twolane.operator.observed import Observed, RevisionState, label
from twolane.operator.resources.pools import Pool
from twolane.operator.rollout import Target

_PLACES: dict[str, tuple[Role, Lane]] = {
    "prefill": ("prefill", "both"),
    "prefill-short": ("prefill", "short"),
    "prefill-long": ("prefill", "long"),
    "decode": ("decode", "both"),
    "mixed": ("mixed", "both"),
}


def toward(observed: Observed, state: RevisionState, target: Target) -> list[Action]:
    """Brings an older revision toward its target."""
    if target.remove:
        kinds = ("Deployment", "StatefulSet", "Service")
        return [
            Delete(kind, name)
            for (kind, name), child in observed.children.items()
            if kind in kinds and label(child, REVISION_LABEL) == state.revision
        ]
    owner = owner_of(observed.model_deployment)
    actions: list[Action] = []
    if state.router.asked != target.routers:
        actions.append(Scale(owner.router(state.revision), target.routers))
    for pool, count in state.pools.items():
        if groups := groups_of(observed, state.revision, pool):
            actions += scaled(groups, target.pools[pool])
        elif count.asked != target.pools[pool]:
            actions.append(Scale(owner.workers(pool, state.revision), target.pools[pool]))
    return actions


def pools_of_state(state: RevisionState, declared: list[PoolPlan]) -> list[PoolPlan]:
    """The pools an older revision has; those that are declared no more have nothing but their place."""
    known: Mapping[str, PoolPlan] = {pool.name: pool for pool in declared}
    return [known.get(name) or PoolPlan(name, *_PLACES[name], Pool()) for name in sorted(state.pools)]
