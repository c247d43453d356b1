"""The record of a rollout in the status of a ModelDeployment, and the count of what its routers served."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from twolane.operator.resources.shape import Json


class _Record(BaseModel):
    # Written by ourselves, perhaps by a newer version of ourselves.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Failure(_Record):
    """Why a revision was given up.

    Attributes:
        reason: ProgressDeadlineExceeded or ErrorRate.
        message: a sentence.
        at: when.
        trial: names the spec that failed, counts left out; another one may be tried.
    """

    reason: str
    message: str
    at: datetime
    trial: str


class Ended(_Record):
    """Requests that a router had ended, and how many of them failed by the servers' fault."""

    total: int
    failed: int


class Progress(_Record):
    """How far a rollout has come.

    Attributes:
        revision: the new revision.
        previous: the revision that serves until the new one does, and again if it fails.
        pools: workers of the previous revision before the rollout, by pool.
        routers: its routers.
        started: when the rollout began.
        progressed: when more of the new revision was ready than ever before.
        ready: most pods of it that were ready at one time.
        settled: since when all of it has been ready; None before.
        ended: what routers of the previous revision had ended when the rollout first asked them, by pod.
        failure: why it was given up; None while it goes on.
    """

    revision: str
    previous: str
    pools: Mapping[str, int]
    routers: int
    started: datetime
    progressed: datetime
    ready: int = 0
    settled: datetime | None = None
    ended: Mapping[str, Ended] = {}
    failure: Failure | None = None

    def written(self) -> Json:
        """As the status holds it."""
        dumped: Json = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return dumped


def read_progress(status: Json) -> Progress | None:
    """The record in a status; None without one, or with one that this program can't read."""
    try:
        return Progress.model_validate(status["rollout"])
    except (KeyError, ValidationError):
        return None
