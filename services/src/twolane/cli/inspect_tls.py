"""Says what a folder of certificates holds, and whether a peer and we accept each other or who is at fault.

`twolane inspect tls` calls it, best from inside a pod: `kubectl exec` has the folder. It dials as the
processes do but waits for the peer's own verdict, which gRPC keeps to itself.
"""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from pydantic import Field

from twolane.core.config import ProcessConfig
from twolane.core.errors import ConfigError
from twolane.rpc.certificates import Certificates, read_certificates
from twolane.rpc.handshake import meaning
from twolane.rpc.identity import Component, deployment_of
from twolane.rpc.tls import Tls

# A peer that refuses says so at once; a page stream that accepts says nothing.
VERDICT_S = 1.0
_NOT_ACCEPTED = (
    "the peer closed the connection after the handshake: it does not accept our certificate "
    "(its ca.crt lacks our authority, or our certificate has ended by its clock)"
)


class InspectTlsConfig(ProcessConfig):
    """Flags of `twolane inspect tls`."""

    process: ClassVar[str] = "inspect_tls"
    verb: ClassVar[str] = "inspect tls"

    tls_dir: Path
    """Folder with tls.crt, tls.key and ca.crt of one process."""
    address: str = ""
    """host:port of a peer to try: gRPC of a broker or a worker, or a worker's page port; empty: none."""
    component: Component = "worker"
    """What the peer must be."""
    timeout_s: float = Field(default=5.0, gt=0)
    """How long the peer may take."""


def describe(found: Certificates, now: datetime) -> list[str]:
    """What a folder holds, one line each; keys are not shown."""
    lines = [
        f"certificate  {', '.join(found.names) or 'no DNS name'}",
        f"deployment   {deployment_of(found.names) or 'none: no name has the form component.deployment'}",
        f"valid        {_span(found.begins, found.ends, now)}",
    ]
    for each in x509.load_pem_x509_certificates(found.authorities) if found.authorities else ():
        span = _span(each.not_valid_before_utc, each.not_valid_after_utc, now)
        lines.append(f"trusts       {each.subject.rfc4514_string()}, {span}")
    return lines


def try_peer(tls: Tls, address: str, component: Component, timeout_s: float) -> str:
    """Why a peer and we don't accept each other; empty when we do.

    Raises:
        ConfigError: the address is no host:port.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--address {address}: give host:port")
    context = tls.client_context()
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=tls.name_of(component)) as secured,
        ):
            secured.settimeout(VERDICT_S)
            if not secured.recv(1):
                return _NOT_ACCEPTED
    except ssl.SSLError as error:
        return meaning(str(error)) or str(error)
    except TimeoutError as error:
        # Without a verdict the peer has nothing against us, once the handshake is over.
        return "" if "read" in str(error) else f"no answer from {address} within {timeout_s:g} s"
    except OSError as error:
        return f"{address} can't be reached: {error.strerror or error}"
    return ""


def main(argv: list[str]) -> int:
    """Prints what was found; 0: all is well, 1: the peer or the certificate is not."""
    config = InspectTlsConfig.from_args(argv)
    now = datetime.now(UTC)
    for line in describe(read_certificates(config.tls_dir, mutual=True), now):
        print(line)
    # Refuses what no process would start with.
    tls = Tls(config.tls_dir)
    if not config.address:
        return 0
    fault = try_peer(tls, config.address, config.component, config.timeout_s)
    print(
        f"{config.address} {fault or f'is {tls.name_of(config.component)}, and both sides accept each other'}"
    )
    return 1 if fault else 0


def _span(begins: datetime, ends: datetime, now: datetime) -> str:
    state = (
        "EXPIRED" if now >= ends else "NOT YET VALID" if now < begins else f"{(ends - now).days} days left"
    )
    return f"{begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, {state}"
