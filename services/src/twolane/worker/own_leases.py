"""Leases that a worker grants on its own pages while no broker answers.

The owner of pages is the one who enforces a lease, so it may promise its own pages; what it can't know by
itself, the transport, it takes from the last lease with the same writer. The broker adopts these leases with
the first renewal that reaches it. `leases.py` asks here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from twolane.v1 import transfer_pb2 as pb
from twolane.v1 import worker_pb2
from twolane.worker.membership import Identity

# As long as a broker's default: it bounds how long a writer that went silent may still write.
OWN_TTL_S = 30.0


@dataclass(frozen=True, slots=True)
class _Known:
    incarnation: int
    transport: pb.Transport.ValueType


class OwnLeases:
    """Grants leases in the broker's place."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._known: dict[str, _Known] = {}
        self._last_fence = 0
        self._numbers = itertools.count(1)

    def learn(self, lease: pb.Lease) -> None:
        """Remembers a broker's lease: its fence must stay below ours, its transport serves again."""
        self._last_fence = max(self._last_fence, lease.fence)
        self._known[lease.writer_id] = _Known(lease.writer_incarnation, lease.transport)

    def grant(self, request_id: str, peer: worker_pb2.Peer) -> pb.Lease:
        """A lease for the request's pages; by gRPC, which works everywhere, to a writer not seen before."""
        self._last_fence += 1
        known = self._known.get(peer.worker_id)
        same = known is not None and known.incarnation == peer.incarnation
        owner = self._identity
        return pb.Lease(
            # The address tells processes of one id and incarnation apart: a worker that no broker has taken
            # in yet has incarnation 0.
            lease_id=f"own-{owner.worker_id}-{owner.incarnation}-{owner.address}-{next(self._numbers)}",
            request_id=request_id,
            owner_id=owner.worker_id,
            owner_incarnation=owner.incarnation,
            writer_id=peer.worker_id,
            writer_incarnation=peer.incarnation,
            fence=self._last_fence,
            ttl_ms=round(OWN_TTL_S * 1000),
            transport=known.transport if same and known is not None else pb.TRANSPORT_GRPC,
        )
