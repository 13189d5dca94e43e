"""TLS for a coordinator and a key for every hospital, made once and carried by hand."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.errors import ConfigError
from engine.results.files import write_bytes

ALWAYS = ("localhost", "127.0.0.1")
CA, SERVER, SERVER_KEY, NODE_KEY, NODE_PUBLIC = "ca.crt", "server.pem", "server.key", "node.key", "node.pub"


def make_certificates(folder: Path, hosts: Sequence[str], hospitals: Sequence[str], days: int) -> list[Path]:
    """Files that were made. What is there stays: a second call adds hospitals. A server certificate is made anew with
    the CA that is there, for the names given now.

    `ca.key` signs whatever hospitals trust: it belongs on neither machine once this is done.
    """
    made = []
    folder.mkdir(parents=True, exist_ok=True)
    ca_file, ca_key_file = folder / CA, folder / "ca.key"
    if not ca_file.is_file():
        key = ec.generate_private_key(ec.SECP384R1())
        _write(ca_key_file, _private(key), secret=True)
        _write(ca_file, _sign(key, "Consilium CA", key, "Consilium CA", days=3650, is_ca=True), secret=False)
        made += [ca_file, ca_key_file]
    if hosts or not (folder / SERVER).is_file():
        if not ca_key_file.is_file():
            raise ConfigError(f"{ca_key_file}: is not here, and only it can sign a server's certificate; bring it back")
        loaded = serialization.load_pem_private_key(ca_key_file.read_bytes(), password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{ca_key_file}: is no elliptic-curve key")
        key = ec.generate_private_key(ec.SECP384R1())
        names = list(dict.fromkeys([*ALWAYS, *hosts]))
        certificate = _sign(key, "Consilium coordinator", loaded, "Consilium CA", days=days, hosts=names)
        _write(folder / SERVER_KEY, _private(key), secret=True)
        _write(folder / SERVER, certificate, secret=False)
        made += [folder / SERVER, folder / SERVER_KEY]
    for hospital in hospitals:
        home = folder / hospital
        if (home / NODE_KEY).is_file():
            continue
        home.mkdir(exist_ok=True)
        node = ec.generate_private_key(ec.SECP384R1())
        ssh = serialization.PrivateFormat.OpenSSH
        _write(
            home / NODE_KEY,
            node.private_bytes(serialization.Encoding.PEM, ssh, serialization.NoEncryption()),
            secret=True,
        )
        public = node.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        _write(home / NODE_PUBLIC, public + b"\n", secret=False)
        _write(home / CA, ca_file.read_bytes(), secret=False)
        made += [home / NODE_KEY, home / NODE_PUBLIC, home / CA]
    return made


def public_key(file: Path) -> bytes:
    """A hospital's public key as Flower registers it. Raises ConfigError where the file is none."""
    try:
        key = serialization.load_ssh_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{file}: is no public key ({error}); make one with: certificates DIR --hospital ID"
        ) from None
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def days_left(certificate: Path, now: datetime.datetime | None = None) -> float:
    """Until it expires; negative where it has. Raises ConfigError where it cannot be read."""
    try:
        until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate}: is no certificate ({error})") from None
    return (until - (now or datetime.datetime.now(datetime.UTC))).total_seconds() / 86400


def _sign(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    signer: ec.EllipticCurvePrivateKey,
    signed_by: str,
    *,
    days: int,
    hosts: Sequence[str] = (),
    is_ca: bool = False,
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, signed_by)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=10))  # clocks differ a little
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signer, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, pkcs8, serialization.NoEncryption())


def _write(path: Path, content: bytes, *, secret: bool) -> None:
    """A secret is its owner's from its first byte on."""
    if secret:
        partial = path.with_name(f".{path.name}.partial")  # a kill leaves no empty key
        partial.touch(mode=0o600)
        partial.write_bytes(content)
        partial.replace(path)
    else:
        write_bytes(path, content)
