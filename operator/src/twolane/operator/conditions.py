"""Conditions of a ModelDeployment, and the roll-up that `kubectl get md` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from twolane.operator.resources.shape import Json

Status = Literal["True", "False", "Unknown"]
ROLLED_UP = ("ModelLoaded", "PrefillReady", "DecodeReady", "RouterReady", "BrokerReady", "ScalingActive")
"""Conditions that must be True for Ready, in the order in which a reason is looked for."""
ORDER = ("CertificatesReady", "BrokerReady", *ROLLED_UP[:4], "ScalingActive")

ASLEEP = "Asleep"
"""Reason of parts that do not run, and need not: routers hold a request until they do."""

ROLLED_BACK = "RolledBack"
"""Reason of a rollout that failed: the previous revision serves, the declared one does not."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition without its times."""

    type: str
    status: Status
    reason: str
    message: str


def ready(conditions: Mapping[str, Condition]) -> Condition:
    """Ready: True when every rolled-up condition is, or sleeps until a request comes; else the first cause
    in the order of dependence."""
    for name in ORDER:
        if (condition := conditions.get(name)) is None:
            # Processes that speak plain text have no certificates.
            continue
        if condition.status != "True" and condition.reason != ASLEEP:
            return Condition("Ready", condition.status, condition.reason, f"{name}: {condition.message}")
    asleep = [item for item in conditions.values() if item.reason == ASLEEP]
    if asleep:
        return Condition("Ready", "True", ASLEEP, asleep[0].message)
    if conditions["RolloutComplete"].reason == ROLLED_BACK:
        return Condition("Ready", "True", ROLLED_BACK, conditions["RolloutComplete"].message)
    degraded = [item for item in conditions.values() if item.reason == "Degraded"]
    if degraded:
        words = "; ".join(item.message for item in degraded)
        return Condition("Ready", "True", "Degraded", words)
    return Condition("Ready", "True", "Serving", "all parts serve")


def dated(
    conditions: Iterable[Condition], before: Iterable[Json], generation: int, now: datetime
) -> list[Json]:
    """Conditions as the status holds them; the time of a transition stays while the status stays."""
    previous = {item["type"]: item for item in before}
    result = []
    for condition in conditions:
        old = previous.get(condition.type, {})
        same = old.get("status") == condition.status
        result.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if same else timestamp(now),
            }
        )
    return result


def timestamp(moment: datetime) -> str:
    """A time as the API server writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
