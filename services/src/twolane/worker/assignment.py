"""What this worker is for now; the broker may change it while requests run.

Every worker can do every part of a request, so a change needs no reload: routers send new requests
elsewhere as soon as they see it, and those that run here end here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from twolane.core.request import Lane, Role

log = logging.getLogger(__name__)


@dataclass
class Assignment:
    """Role and lane of a worker; lane None serves both."""

    role: Role
    lane: Lane | None

    def change(self, role: Role | None, lane: Lane | None) -> None:
        """Takes what the broker asks for; None keeps what is."""
        wanted = (role or self.role, lane or self.lane)
        if wanted != (self.role, self.lane):
            facts = {"role": wanted[0].value, "lane": wanted[1].value if wanted[1] else "both"}
            log.info("assigned to another role or lane", extra=facts)
            self.role, self.lane = wanted
