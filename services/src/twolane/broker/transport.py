"""How bytes travel between two workers: a pure choice from what both can do.

The broker's GrantLease calls it.
"""

from __future__ import annotations

from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import (
    TRANSPORT_GRPC,
    TRANSPORT_NIXL,
    TRANSPORT_SHARED_MEMORY,
    Transport,
)


def pick_transport(owner: WorkerInfo, writer: WorkerInfo) -> Transport.ValueType:
    """Shared memory on one host, else NIXL, each if both list it; else gRPC, which works everywhere."""
    common = set(owner.transports) & set(writer.transports)
    one_host = bool(owner.host_id) and owner.host_id == writer.host_id
    if one_host and TRANSPORT_SHARED_MEMORY in common:
        return TRANSPORT_SHARED_MEMORY
    if TRANSPORT_NIXL in common:
        return TRANSPORT_NIXL
    return TRANSPORT_GRPC
