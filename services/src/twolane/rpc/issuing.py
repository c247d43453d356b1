"""Makes authorities and certificates for the processes of one deployment.

The operator keeps what it makes here in Secrets, `twolane up --tls` in a folder. Keys are P-256: signing
costs little, and every peer knows the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Clocks of hosts differ: a certificate is valid from a little before it was made.
SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


def make_authority(deployment: str, now: datetime, lifetime: timedelta) -> KeyPair:
    """A self-signed authority of one deployment; each has a subject of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = _name(f"{deployment[:40]} {serial & 0xFFFFFFFF:08x}")
    usage = _usage(sign_certificates=True)
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    builder = _builder(name, name, key.public_key(), now, lifetime).serial_number(serial)
    builder = builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)
    return _signed(builder, key, key)


def issue(authority: KeyPair, names: Sequence[str], now: datetime, lifetime: timedelta) -> KeyPair:
    """A certificate for these DNS names, for both ends of a connection; it never outlives its authority."""
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    lifetime = min(lifetime, issuer.not_valid_after_utc - now)
    builder = _builder(_name(names[0].split(".")[0]), issuer.subject, key.public_key(), now, lifetime)
    builder = builder.serial_number(x509.random_serial_number())
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(alternatives, critical=False)
    )
    return _signed(builder, key, signer)


def write_folder(folder: Path, pair: KeyPair, authorities: bytes) -> None:
    """Writes tls.crt, tls.key and ca.crt as `--tls-dir` reads them; only this user may read them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in (("tls.key", pair.key), ("tls.crt", pair.certificate), ("ca.crt", authorities)):
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)


def _name(common: str) -> x509.Name:
    attributes = ((NameOID.ORGANIZATION_NAME, "twolane"), (NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])


def _usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .not_valid_before(now - SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> KeyPair:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = builder.add_extension(issuer, critical=False).sign(signer, hashes.SHA256())
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, form, plain),
    )
