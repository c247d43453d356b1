"""How bytes travel between two workers: a pure choice from what both can do.

The broker's GrantLease calls it.
"""

from __future__ import annotations

from twolane.v1.broker_pb2 import WorkerInfo
from twolane.v1.transfer_pb2 import (
    TRANSPORT_CUDA_PEER,
    TRANSPORT_GRPC,
    TRANSPORT_NIXL,
    TRANSPORT_SHARED_MEMORY,
    TRANSPORT_TCP,
    Transport,
)


def pick_transport(owner: WorkerInfo, writer: WorkerInfo) -> Transport.ValueType:
    """Device or shared memory on one host, else NIXL, else a TCP stream, each if both list it; else gRPC,
    which works everywhere."""
    common = set(owner.transports) & set(writer.transports)
    one_host = bool(owner.host_id) and owner.host_id == writer.host_id
    wanted: list[Transport.ValueType] = [TRANSPORT_NIXL, TRANSPORT_TCP]
    if one_host:
        wanted = [TRANSPORT_CUDA_PEER, TRANSPORT_SHARED_MEMORY, *wanted]
    for transport in wanted:
        if transport in common:
            return transport
    return TRANSPORT_GRPC
