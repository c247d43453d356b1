"""What this worker is for now; the broker or an operator may change it while requests run.

Every worker can do every part of a request, so a change needs no reload: routers send new requests
elsewhere as soon as they see it, and those that run here end here.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from twolane.core.request import Lane, Role

log = logging.getLogger(__name__)


@dataclass
class Assignment:
    """Role and lane of a worker; lane None serves both.

    Attributes:
        role: the pool.
        lane: the lane, for a prefill worker.
        changed: set by every change, so that the next heartbeat need not be waited for.
    """

    role: Role
    lane: Lane | None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def change(self, role: Role, lane: Lane | None) -> None:
        """Takes another role and lane."""
        if (role, lane) != (self.role, self.lane):
            facts = {"role": role.value, "lane": lane.value if lane else "both"}
            log.info("assigned to another role or lane", extra=facts)
            self.role, self.lane = role, lane
            self.changed.set()
