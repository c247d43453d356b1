"""Channels to other processes, and how long the caller of the running call still waits.

Router, workers and tests open every channel here, so that limits, keepalive and traces agree.
"""

from __future__ import annotations

import socket
from typing import Any

import grpc.aio
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from twolane.core.errors import ConfigError, DeadlineExceeded
from twolane.rpc.errors import raise_twolane_error, to_twolane_error
from twolane.rpc.identity import Component
from twolane.rpc.options import CHANNEL_OPTIONS
from twolane.rpc.rotating_channel import RotatingChannel
from twolane.rpc.tls import Tls
from twolane.telemetry.tracing import tracing_enabled

__all__ = ["check_remaining_s", "open_channel", "raise_twolane_error", "remaining_s", "to_twolane_error"]


def open_channel(address: str, tls: Tls | None = None, to: Component = "worker") -> grpc.aio.Channel:
    """A channel to "host:port", or to the first of several ("a:1,b:2") that answers; it connects on first
    use and again after every loss, with several to whichever lives.

    The caller closes it. Stream-to-stream calls carry no span of their own: they outlive requests,
    whose context travels inside their messages.

    Args:
        address: of the peer or of its replicas.
        tls: this process's certificates; None: plain text.
        to: what the peer's certificate must say it is. Its address does not count: workers have none
            but their pod's, which no certificate knows beforehand.
    """
    interceptors: list[grpc.aio.ClientInterceptor] = []
    if tracing_enabled():
        streams = grpc.aio.StreamStreamClientInterceptor
        every = aio_client_interceptors()  # type: ignore[no-untyped-call]
        interceptors = [made for made in every if not isinstance(made, streams)]
    target = _target(address)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS, interceptors=interceptors)
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", tls.name_of(to))]

    def dial(credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)

    return RotatingChannel(tls, dial)


def _target(address: str) -> str:
    """gRPC's own form for one address or several; names among several are looked up once, here.

    Raises:
        ConfigError: one of several has no port, or its name is unknown.
    """
    if "," not in address:
        return address
    found = [_look_up(part.strip()) for part in address.split(",") if part.strip()]
    families = {":" in host for host, _port in found}
    if len(families) > 1:
        raise ConfigError(f"{address}: give IPv4 addresses only or IPv6 addresses only")
    if families == {True}:
        return "ipv6:" + ",".join(f"[{host}]:{port}" for host, port in found)
    return "ipv4:" + ",".join(f"{host}:{port}" for host, port in found)


def _look_up(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    try:
        places = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{address!r} is not host:port of a known host: {error}") from error
    # IPv4 where a host has both: the list must be of one kind.
    place = min(places, key=lambda place: place[0] is not socket.AF_INET)[4]
    return str(place[0]), int(place[1])


def remaining_s(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """Seconds until the caller's deadline (0 when it has passed), or None when it set none."""
    left = context.time_remaining()
    return None if left is None else max(0.0, left)


def check_remaining_s(context: grpc.aio.ServicerContext[Any, Any], default_s: float) -> float:
    """Seconds to give to a call made on behalf of the caller: its own rest, at most `default_s`.

    Raises:
        DeadlineExceeded: nothing is left.
    """
    left = remaining_s(context)
    if left is None:
        return default_s
    if left <= 0.0:
        raise DeadlineExceeded("the caller's deadline has passed")
    return min(left, default_s)
