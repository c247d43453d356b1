"""What a plan asks for; `apply` carries it out, tests compare it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twolane.operator.resources.shape import Json


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of an object under our own field manager.

    Attributes:
        body: the whole object as we want it.
        why: "created", "changed", or the field that drifted.
    """

    body: Json
    why: str


@dataclass(frozen=True, slots=True)
class Seed:
    """Makes a WorkerPool whose replica count others may take over; left alone when it exists by now."""

    body: Json


@dataclass(frozen=True, slots=True)
class PassOn:
    """Passes a changed replica count on to a WorkerPool, once."""

    name: str
    replicas: int


@dataclass(frozen=True, slots=True)
class Scale:
    """Sets the replicas of a Deployment of an older revision, or of a StatefulSet that is one worker."""

    name: str
    replicas: int
    kind: Literal["Deployment", "StatefulSet"] = "Deployment"


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes a child or a pod; one that is gone by now is no error."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Adds our finalizer to the ModelDeployment, or takes it off."""

    present: bool


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Replaces the status of the ModelDeployment or of a WorkerPool."""

    kind: str
    name: str
    status: Json


@dataclass(frozen=True, slots=True)
class Emit:
    """A Kubernetes Event about the ModelDeployment."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


Action = Apply | Seed | PassOn | Scale | Delete | SetFinalizer | WriteStatus | Emit


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in the order to take, and when to look again though nothing changed (None: no hurry)."""

    actions: tuple[Action, ...]
    look_again_s: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether something of it can't be undone, so that it must not follow from what a watch said late."""
        return any(
            isinstance(action, Delete) or (isinstance(action, SetFinalizer) and not action.present)
            for action in self.actions
        )
