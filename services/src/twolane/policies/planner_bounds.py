"""Turns a total into counts of pools within all bounds: minimum, maximum, schedule and P:D ratio.

planner.py and the tests call it; bounds of a pool go before the ratio, since a pool's maximum says what
hardware there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from twolane.policies.planner_settings import PlannerSettings
from twolane.policies.planner_view import PoolKind, PoolState

PREFILL_KINDS = (PoolKind.PREFILL, PoolKind.SHORT, PoolKind.LONG)


def spread(
    total: int, works: Mapping[PoolKind, float], pools: Mapping[PoolKind, PoolState]
) -> dict[PoolKind, int]:
    """Gives `total` workers to pools, each at least 1, changing as few pools as can be.

    Begins with what pools have; adds where work per worker is highest, removes where it is lowest after.
    """
    sizes = {kind: pool.held(max(1, pool.wanted, pool.low)) for kind, pool in pools.items()}
    while (missing := total - sum(sizes.values())) != 0:
        if missing > 0:
            open_kinds = [kind for kind in sizes if pools[kind].held(sizes[kind] + 1) > sizes[kind]]
            if not open_kinds:
                break
            sizes[max(open_kinds, key=lambda kind: (works[kind] / sizes[kind], kind.value))] += 1
        else:
            open_kinds = [kind for kind in sizes if sizes[kind] > max(1, pools[kind].held(pools[kind].low))]
            if not open_kinds:
                break
            sizes[min(open_kinds, key=lambda kind: (works[kind] / (sizes[kind] - 1 or 0.5), kind.value))] -= 1
    return sizes


def coordinated(
    sizes: Mapping[PoolKind, int], pools: Mapping[PoolKind, PoolState], settings: PlannerSettings
) -> dict[PoolKind, int]:
    """With the ratio of prefill to decode within its bounds, as far as the pools' own bounds allow it.

    Too few of one side are raised; where its maximum forbids that, the other side is lowered.
    """
    found = dict(sizes)
    prefill = [kind for kind in found if kind in PREFILL_KINDS]
    if not prefill or PoolKind.DECODE not in found:
        return found
    decode = found[PoolKind.DECODE]
    wanted = max(sum(found[kind] for kind in prefill), math.ceil(settings.ratio_min * decode - 1e-9))
    _resize(found, prefill, pools, wanted)
    have = sum(found[kind] for kind in prefill)
    if settings.ratio_min > 0.0 and have < settings.ratio_min * decode - 1e-9:
        _resize(found, [PoolKind.DECODE], pools, max(1, math.floor(have / settings.ratio_min + 1e-9)))
    if settings.ratio_max:
        needed = max(found[PoolKind.DECODE], math.ceil(have / settings.ratio_max - 1e-9))
        _resize(found, [PoolKind.DECODE], pools, needed)
        most = math.floor(found[PoolKind.DECODE] * settings.ratio_max + 1e-9)
        if have > most:
            _resize(found, prefill, pools, max(len(prefill), most))
    return found


def _resize(
    sizes: dict[PoolKind, int], kinds: list[PoolKind], pools: Mapping[PoolKind, PoolState], total: int
) -> None:
    """Brings the sum of some pools to `total` within their bounds, the largest shrinking first."""
    while (missing := total - sum(sizes[kind] for kind in kinds)) != 0:
        step = 1 if missing > 0 else -1
        able = [
            kind
            for kind in kinds
            if pools[kind].held(sizes[kind] + step) == sizes[kind] + step
            and sizes[kind] + step >= max(1, pools[kind].held(pools[kind].low))
        ]
        if not able:
            return
        pick = min if step > 0 else max
        sizes[pick(able, key=lambda kind: (sizes[kind], kind.value))] += step
