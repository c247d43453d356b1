"""Reads and judges a folder with tls.crt, tls.key and ca.crt: the layout of a kubernetes.io/tls Secret.

`tls.py` reads again whenever the files change. Whatever is wrong is said in words, at the start of the
process and not at its first connection; nothing of a key is ever said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from twolane.core.errors import ConfigError

CERTIFICATE, KEY, AUTHORITIES = "tls.crt", "tls.key", "ca.crt"
# A Secret's volume: files are links into a folder that is exchanged as a whole.
_GENERATION = "..data"


@dataclass(frozen=True, slots=True)
class Certificates:
    """What one process shows and whom it trusts.

    Attributes:
        chain: its certificate and those between it and an authority, PEM.
        key: the private key, PEM.
        authorities: certificates that peers must be signed by, PEM; empty when peers need none.
        names: DNS names in the certificate.
        begins, ends: when it is valid.
    """

    chain: bytes
    key: bytes = field(repr=False)
    authorities: bytes
    names: tuple[str, ...]
    begins: datetime
    ends: datetime


def read_certificates(folder: Path, mutual: bool) -> Certificates:
    """The certificates in a folder, checked against each other.

    Args:
        folder: holds tls.crt, tls.key and, if `mutual`, ca.crt.
        mutual: peers show certificates too.

    Raises:
        ConfigError: a file is missing or malformed, the key is of another certificate, or the authorities
            have not signed it. An expired certificate is no error here.
    """
    place = folder / _GENERATION
    # Links are followed once, so that all three files are of one generation.
    place = place.resolve() if place.exists() else folder
    chain_pem, key_pem = _read(folder, place, CERTIFICATE), _read(folder, place, KEY)
    chain = _parse(folder / CERTIFICATE, chain_pem)
    leaf = chain[0]
    _check_key(folder, leaf, key_pem)
    authorities = b""
    if mutual:
        authorities = _read(folder, place, AUTHORITIES)
        _check_signed(folder, chain, _parse(folder / AUTHORITIES, authorities))
    return Certificates(
        chain_pem, key_pem, authorities, dns_names(leaf), leaf.not_valid_before_utc, leaf.not_valid_after_utc
    )


def dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(found.value.get_values_for_type(x509.DNSName))


def _read(folder: Path, place: Path, name: str) -> bytes:
    try:
        return (place / name).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"can't read {folder / name}: {error.strerror}; the folder must hold {CERTIFICATE}, {KEY} and "
            f"{AUTHORITIES}, as a Secret of type kubernetes.io/tls does"
        ) from error


def _parse(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate in PEM form") from error


def _check_key(folder: Path, leaf: x509.Certificate, pem: bytes) -> None:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause may quote what it read.
        raise ConfigError(f"{folder / KEY} holds no private key in PEM form without a password") from None
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise ConfigError(f"{folder / KEY} is not the key of {folder / CERTIFICATE}: give both of one issue")


def _check_signed(
    folder: Path, chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> None:
    current, between = chain[0], list(chain[1:])
    while not any(_has_signed(authority, current) for authority in authorities):
        issuer = next((each for each in between if _has_signed(each, current)), None)
        if issuer is None:
            raise ConfigError(
                f"no authority in {folder / AUTHORITIES} has signed {folder / CERTIFICATE} "
                f"(issuer {current.issuer.rfc4514_string()}): peers would refuse it"
            )
        between.remove(issuer)
        current = issuer


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
