"""TLS of one process: its certificates now, and what gRPC and asyncio need of them.

Nothing here is tied to one reading of the files: servers ask at every handshake, channels at every call, so
that exchanged files hold from the next connection on and open ones go on. Processes make one `Tls` from
`--tls-dir` (both sides show certificates) and the router one from `--http-tls-dir` (clients show none).
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Gauge

from twolane.core.clock import Clock
from twolane.core.errors import ConfigError
from twolane.rpc.certificates import AUTHORITIES, CERTIFICATE, KEY, Certificates, read_certificates
from twolane.rpc.identity import COMPONENTS, Component, deployment_of, dns_name

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""The files are looked at this often, at most."""
FOLLOW_S = 5.0
REMIND_S = 600.0
# Share of its life in which a certificate should have been renewed long ago.
_LATE = 0.1


class Tls:
    """The certificates of a folder, as they are now.

    Args:
        folder: holds tls.crt, tls.key and ca.crt.
        mutual: peers must show a certificate of the same deployment; else nobody has to show one.
        clock: paces the looks at the files.

    Attributes:
        deployment: whom peers must belong to; empty unless mutual.

    Raises:
        ConfigError: the files can't be used, or the certificate has expired.
    """

    def __init__(self, folder: Path, *, mutual: bool = True, clock: Clock = time.monotonic) -> None:
        self.mutual = mutual
        self._folder = folder
        self._clock = clock
        # gRPC asks from threads of its own.
        self._lock = threading.Lock()
        self._seen = _signature(folder)
        self._now = read_certificates(folder, mutual)
        self.deployment = _deployment(folder, self._now) if mutual else ""
        if self._now.ends <= datetime.now(UTC):
            raise ConfigError(
                f"the certificate in {folder} expired at {self._now.ends:%Y-%m-%d %H:%M} UTC: renew it"
            )
        self._look_at_s = clock() + CHECK_S
        self._remind_at_s = clock()
        self._refused: tuple[Any, ...] = ()

    def current(self) -> Certificates:
        """The certificates now; the same object as before while nothing has changed."""
        with self._lock:
            now_s = self._clock()
            if now_s >= self._look_at_s:
                self._look_at_s = now_s + CHECK_S
                self._look()
            if now_s >= self._remind_at_s:
                self._remind_at_s = now_s + REMIND_S
                self._remind()
            return self._now

    async def follow(self) -> None:
        """Looks at the files until cancelled: a process without new connections says all the same that its
        certificate was renewed, or was not."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            self.current()

    def name_of(self, component: Component) -> str:
        """The name that a peer of our deployment must have in its certificate."""
        return dns_name(component, self.deployment)

    def is_ours(self, names: tuple[str, ...]) -> bool:
        """Whether a certificate with these names is of our deployment."""
        return deployment_of(names) == self.deployment

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server: handshakes use the certificates of their moment."""
        shown = self.current()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            latest = self.current()
            if latest is shown:
                return None
            shown = latest
            return _grpc_configuration(latest)

        # The stubs don't know that None means "as before".
        return grpc.dynamic_ssl_server_credentials(
            _grpc_configuration(shown),
            fetch,  # type: ignore[arg-type]
            self.mutual,
        )

    def server_context(self) -> ssl.SSLContext:
        """For an asyncio server: the same."""
        context = _RotatingContext(ssl.PROTOCOL_TLS_SERVER)
        context.latest = _Latest(self, self._make_server_context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """For one connection to a peer; give it `name_of` as the server's name."""
        current = self.current()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load(context, current)
        return context

    def watch_expiry(self, registry: CollectorRegistry) -> None:
        """Shows in the metrics when the certificate ends; a scrape also notices new files."""
        gauge = Gauge(
            f"twolane_tls_{'' if self.mutual else 'http_'}certificate_expiry_timestamp_seconds",
            "When the certificate that this process shows ends, in seconds since 1970.",
            registry=registry,
        )
        gauge.set_function(self._ends_s)

    def _ends_s(self) -> float:
        return self.current().ends.timestamp()

    def _make_server_context(self, current: Certificates) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load(context, current)
        if self.mutual:
            context.verify_mode = ssl.CERT_REQUIRED
        else:
            # Clients of the public port may be old.
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(["http/1.1"])
        return context

    def _look(self) -> None:
        signature = _signature(self._folder)
        if signature == self._seen:
            return
        try:
            found = read_certificates(self._folder, self.mutual)
            if self.mutual and (other := _deployment(self._folder, found)) != self.deployment:
                raise ConfigError(
                    f"the new certificate in {self._folder} is for {other}, not {self.deployment}"
                )
        except ConfigError as error:
            # Files that are written one by one don't fit together for a moment.
            if signature != self._refused:
                log.warning("the new certificates are not used yet: %s", error.message)
            self._refused = signature
            return
        self._seen, self._now = signature, found
        self._remind_at_s = self._clock()
        log.info("certificates read again", extra={"ends": f"{found.ends:%Y-%m-%dT%H:%M:%SZ}"})

    def _remind(self) -> None:
        now, ends = datetime.now(UTC), self._now.ends
        words = f"the certificate in {self._folder} {{}} at {ends:%Y-%m-%d %H:%M} UTC; {{}}"
        if now >= ends:
            log.error(words.format("expired", "new connections fail on both sides until it is renewed"))
        elif (ends - now) < _LATE * (ends - self._now.begins):
            log.warning(words.format("expires", "whoever issues it should have renewed it by now"))


class _Latest:
    """A context that is made anew when the certificates have changed."""

    def __init__(self, tls: Tls, make: Callable[[Certificates], ssl.SSLContext]) -> None:
        self._tls = tls
        self._make = make
        self._of: Certificates | None = None
        self._context: ssl.SSLContext | None = None

    def __call__(self) -> ssl.SSLContext:
        current = self._tls.current()
        if self._context is None or current is not self._of:
            self._of, self._context = current, self._make(current)
        return self._context


class _RotatingContext(ssl.SSLContext):
    """What asyncio's servers keep for ever; each connection is made by the latest context instead."""

    latest: _Latest

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """See ssl.SSLContext."""
        return self.latest().wrap_bio(*args, **options)


def open_tls(folder: Path | None, *, mutual: bool = True) -> Tls | None:
    """The TLS of a process whose flag names this folder; None: plain text."""
    return None if folder is None else Tls(folder.expanduser(), mutual=mutual)


def _deployment(folder: Path, found: Certificates) -> str:
    deployment = deployment_of(found.names)
    if deployment is None:
        allowed = ", ".join(f"{component}.<deployment>" for component in COMPONENTS)
        raise ConfigError(
            f"the certificate in {folder} is for {', '.join(found.names) or 'no DNS name'}; "
            f"its name must be one of {allowed}"
        )
    return deployment


def _grpc_configuration(current: Certificates) -> grpc.ServerCertificateConfiguration:
    pairs = [(current.key, current.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, current.authorities or None)


def _load(context: ssl.SSLContext, current: Certificates) -> None:
    """Only paths are taken: the key goes by memory that has no name, since its file may be gone by now."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(current.chain + b"\n" + current.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    if current.authorities:
        context.load_verify_locations(cadata=current.authorities.decode())


def _signature(folder: Path) -> tuple[Any, ...]:
    """Differs whenever a file was exchanged or written."""
    found: list[Any] = []
    for name in (CERTIFICATE, KEY, AUTHORITIES):
        try:
            status = (folder / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)
