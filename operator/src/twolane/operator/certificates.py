"""Decides what has to be issued for one ModelDeployment: pure, from the Secrets there are and the time.

A new authority comes in four steps, each long enough before the next for every pod to have the files of the
one before: made and trusted beside the old one; signing; the old one trusted on; the old one forgotten.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from twolane.operator.build.certificates import RENEWED_AT, deployment_name
from twolane.operator.names import Component, Owner
from twolane.operator.resources.shape import Json
from twolane.operator.resources.tls import Tls
from twolane.rpc.certificates import dns_names
from twolane.rpc.identity import COMPONENTS, dns_name
from twolane.rpc.issuing import SKEW

OVERLAP = timedelta(minutes=10)
"""How long pods may take to see a changed Secret: kubelets look about once a minute, processes at once."""


class Turn(enum.Enum):
    """What is to be done to the authority."""

    CREATE = "create"
    ANNOUNCE = "announce"
    TURN = "turn"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate without its key.

    Attributes:
        key_id: names its key.
        signer_id: names the key that signed it.
    """

    names: tuple[str, ...]
    begins: datetime
    ends: datetime
    key_id: str
    signer_id: str

    def due(self, now: datetime) -> bool:
        """Whether it is to be renewed."""
        return self.ends - now < (self.ends - self.begins) * RENEWED_AT


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority's Secret without its keys.

    Attributes:
        current: signs.
        following: trusted already, signs next.
        previous: trusted still.
    """

    current: Shown
    following: Shown | None = None
    previous: Shown | None = None

    @property
    def trusted(self) -> frozenset[str]:
        """The keys that every process must trust."""
        return frozenset(each.key_id for each in (self.current, self.following, self.previous) if each)


@dataclass(frozen=True, slots=True)
class Issued:
    """The Secret of a component without its key."""

    certificate: Shown
    trusted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be issued now.

    Attributes:
        turn: a step of the authority, to be taken first; None: it stays.
        components: whose certificates are to be issued, after it.
        look_again: when something will be due, if nothing else happens.
    """

    turn: Turn | None
    components: tuple[Component, ...]
    look_again: timedelta | None


def decide(
    owner: Owner,
    tls: Tls,
    authority: Authority | None,
    issued: Mapping[Component, Issued | None],
    now: datetime,
) -> Work:
    """What to issue for a ModelDeployment whose operator is its authority."""
    turn = _turn(authority, issued, now)
    if turn is not None:
        # Whom to trust has changed, or who signs.
        return Work(turn, COMPONENTS, OVERLAP)
    assert authority is not None
    lacking = tuple(
        component
        for component in COMPONENTS
        if (found := issued.get(component)) is None or _is_stale(owner, tls, component, found, authority, now)
    )
    busy = authority.following is not None or authority.previous is not None
    return Work(None, lacking, OVERLAP if busy else None)


def _turn(
    authority: Authority | None, issued: Mapping[Component, Issued | None], now: datetime
) -> Turn | None:
    if authority is None or authority.current.ends <= now:
        return Turn.CREATE
    if authority.following is not None:
        return Turn.TURN if _settled(authority, issued, now) else None
    if authority.previous is not None:
        return Turn.RETIRE if _settled(authority, issued, now) else None
    return Turn.ANNOUNCE if authority.current.due(now) else None


def _settled(authority: Authority, issued: Mapping[Component, Issued | None], now: datetime) -> bool:
    """Whether every pod has had the time to see what the last step issued."""
    return all(
        found is not None
        and found.trusted == authority.trusted
        and found.certificate.signer_id == authority.current.key_id
        and now - found.certificate.begins >= SKEW + OVERLAP
        for found in issued.values()
    )


def _is_stale(
    owner: Owner, tls: Tls, component: Component, found: Issued, authority: Authority, now: datetime
) -> bool:
    shown = found.certificate
    return (
        shown.due(now)
        or shown.names != (dns_name(component, deployment_name(owner)),)
        or shown.signer_id != authority.current.key_id
        or found.trusted != authority.trusted
        # A shorter life was asked for since.
        or shown.ends - shown.begins > timedelta(days=tls.certificate_days, hours=1)
    )


def read_authority(secret: Json | None) -> Authority | None:
    """The authority in a Secret; None for one that is missing or unreadable, which is made anew."""
    if secret is None:
        return None
    data = _data(secret)
    current = _pair(data, "tls")
    return (
        None if current is None else Authority(current, _pair(data, "next"), _shown(data.get("previous.crt")))
    )


def read_issued(secret: Json | None) -> Issued | None:
    """The certificate in a component's Secret; None for one that is missing or unreadable."""
    data = {} if secret is None else _data(secret)
    shown = _pair(data, "tls")
    if shown is None:
        return None
    try:
        trusted = x509.load_pem_x509_certificates(data.get("ca.crt", b""))
    except ValueError:
        trusted = []
    return Issued(shown, frozenset(_key_id(each) for each in trusted))


def _data(secret: Json) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in (secret.get("data") or {}).items()}


def _pair(data: Mapping[str, bytes], name: str) -> Shown | None:
    """A certificate with its own key, and nothing else."""
    shown = _shown(data.get(f"{name}.crt"))
    try:
        key = serialization.load_pem_private_key(data.get(f"{name}.key", b""), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if shown is None or not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    return shown if shown.key_id == _id_of(key.public_key()) else None


def _shown(pem: bytes | None) -> Shown | None:
    try:
        certificate = x509.load_pem_x509_certificate(pem or b"")
        signer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (ValueError, x509.ExtensionNotFound):
        return None
    return Shown(
        dns_names(certificate),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        _key_id(certificate),
        (signer.key_identifier or b"").hex(),
    )


def _key_id(certificate: x509.Certificate) -> str:
    return _id_of(certificate.public_key())


def _id_of(key: CertificatePublicKeyTypes) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()
