"""Names what workers run: two specs with one revision make the same workers, whatever their counts.

Everything that a worker or a broker is started with is part of it, counts and routers are not: a
router holds no pages, so that routers of one revision may be replaced in place.
"""

from __future__ import annotations

import hashlib
import json

from twolane.operator.build.front import broker_template
from twolane.operator.build.workers import pools_of, worker_template
from twolane.operator.names import Owner
from twolane.operator.resources.model_deployment import ModelDeploymentSpec

_LENGTH = 8


def revision_of(owner: Owner, spec: ModelDeploymentSpec, image: str) -> str:
    """The revision of a spec; eight hexadecimal digits."""
    pools = {pool.name: worker_template(owner, spec, pool, image, broker="") for pool in pools_of(spec)}
    # Whether a broker moves workers between pools is no part of what they run.
    alone = spec.model_copy(update={"scaling": None})
    return digest({"pools": pools, "broker": broker_template(owner, alone, image, "")})[:_LENGTH]


def digest(value: object) -> str:
    """A hash of plain data that does not depend on the order of fields."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
