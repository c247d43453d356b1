"""Channel arguments that server and client must agree on, and which calls live as long as a process.

Used by server.py and channel.py only.
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message either way: a run of inline pages fits, a runaway prompt does not."""

KEEPALIVE_INTERVAL_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000

Options = list[tuple[str, int]]

_SHARED: Options = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

SERVER_OPTIONS: Options = [
    *_SHARED,
    # Below the clients' interval, or the server would close idle connections for too many pings.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_INTERVAL_MS // 2),
    # Two processes on one port must fail at start, not share it.
    ("grpc.so_reuseport", 0),
]

CHANNEL_OPTIONS: Options = [
    *_SHARED,
    # A replaced peer comes back at the same address within seconds; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Processes of one cluster speak directly.
    ("grpc.enable_http_proxy", 0),
    # Channels to one address stay apart: page pushes must not share flow control with tokens.
    ("grpc.use_local_subchannel_pool", 1),
]

LONG_LIVED = ("/Session", "/Push", "/Watch")
"""Ends of method names whose call lasts as long as two processes know each other."""


def is_long_lived(method: str) -> bool:
    """Whether a call of the method ("/package.Service/Method") says nothing about one request."""
    return method.endswith(LONG_LIVED)


def is_plumbing(method: str) -> bool:
    """Whether the method is a health check or reflection: not traced, not measured."""
    return method.startswith("/grpc.")
