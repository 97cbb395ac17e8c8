"""The fleet's certificate authority: signs keys, one name each. Pure but for the random numbers of keys and serials."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
# Clocks of lab machines are not always set: a certificate counts from some time before it was made.
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
BACKDATED = datetime.timedelta(hours=12)


class Usage(Enum):
    """What a certificate is good for; TLS itself refuses any other use."""

    CONTROLLER = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    HOST = (ExtendedKeyUsageOID.SERVER_AUTH,)
    PULL = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


@dataclass(frozen=True)
class Certificate:
    """A signed certificate. Times are Unix seconds."""

    pem: bytes
    not_before: float
    not_after: float

    def half_spent(self, now: float) -> bool:
        """Whether it is time for another one."""
        return now > (self.not_before + self.not_after) / 2

    def is_signed_by(self, authority_pem: bytes) -> bool:
        """Whether that authority's key made it; names alone say nothing."""
        try:
            x509.load_pem_x509_certificate(self.pem).verify_directly_issued_by(
                x509.load_pem_x509_certificate(authority_pem)
            )
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True


@dataclass(frozen=True)
class Authority:
    """A key that signs, and the certificate that everybody else knows it by. PEM both; the key is secret."""

    key_pem: bytes
    certificate_pem: bytes

    @classmethod
    def create(cls, label: str, now: datetime.datetime) -> Authority:
        """A new one; `label` is for people who look at certificates."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label[:64])])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = (
            _builder(name, name, key.public_key(), now, datetime.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        certificate = builder.sign(key, hashes.SHA256())
        return cls(private_pem(key), certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, public_key: ec.EllipticCurvePublicKey, name: str, usage: Usage, days: float, now: datetime.datetime
    ) -> Certificate:
        """A certificate for one DNS name, which is never looked up: both ends compare it with what they expect.

        Raises ValueError for a name with other signs than such names have: a host has a say in its own, and programs
        end a name at a zero byte.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no name for a certificate")
        key = serialization.load_pem_private_key(self.key_pem, None)
        authority = x509.load_pem_x509_certificate(self.certificate_pem)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # we made it
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        builder = (
            _builder(subject, authority.subject, public_key, now, datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage.value), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )
        made = builder.sign(key, hashes.SHA256())
        pem = made.public_bytes(serialization.Encoding.PEM)
        return Certificate(pem, made.not_valid_before_utc.timestamp(), made.not_valid_after_utc.timestamp())


def new_key() -> tuple[ec.EllipticCurvePublicKey, bytes]:
    """A key pair made here: the public key, and the private one as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.public_key(), private_pem(key)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_key_of(openssh_line: str) -> ec.EllipticCurvePublicKey:
    """The key that a host made. Raises ValueError for anything but a P-256 key."""
    key = serialization.load_ssh_public_key(openssh_line.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the host's key is no ecdsa-sha2-nistp256 key")
    return key


def certificate_of(pem: bytes) -> Certificate:
    """A certificate that was made earlier. Raises ValueError for what is none."""
    found = x509.load_pem_x509_certificate(pem)
    return Certificate(pem, found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    valid: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + valid)
    )
