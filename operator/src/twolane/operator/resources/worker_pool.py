"""WorkerPool: one pool of a ModelDeployment, and the target of every scaler."""

from __future__ import annotations

from typing import Literal

from twolane.operator.resources.pools import Count, WorkerCount
from twolane.operator.resources.shape import Json, Shape
from twolane.operator.resources.sources import Name


class WorkerPoolSpec(Shape):
    """The spec of a WorkerPool; `replicas` belongs to whoever scales."""

    model_deployment: Name
    role: Literal["prefill", "decode", "mixed"]
    lane: Literal["both", "short", "long"] = "both"
    replicas: WorkerCount | None = None
    min_replicas: Count = 0
    max_replicas: Count | None = None

    @property
    def held_replicas(self) -> int:
        """The count asked for, held within the bounds; the least when nothing was asked."""
        asked = self.min_replicas if self.replicas is None else self.replicas
        ceiling = asked if self.max_replicas is None else self.max_replicas
        return max(self.min_replicas, min(asked, ceiling))


def read_pool(worker_pool: Json) -> WorkerPoolSpec:
    """The typed spec of a WorkerPool from the API server.

    Raises:
        pydantic.ValidationError: the object was stored under another schema than this program knows.
    """
    return WorkerPoolSpec.model_validate(worker_pool["spec"])
