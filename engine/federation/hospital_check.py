"""`hospital check`: what a hospital's IT wants to know before the first round, tried out and said in one line each."""

import datetime
import email.utils
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from engine.data.images import IMAGE_SUFFIXES
from engine.errors import ConsiliumError
from engine.federation.certificates import days_left
from engine.federation.policy import read_policy

CLOCK_SECONDS = 30.0  # a signature older than a few minutes is refused


@dataclass(frozen=True)
class Checked:
    what: str
    is_well: bool
    said: str


def check(data: Path, coordinator: str, ca: Path, key: Path, policy: Path | None) -> Iterator[Checked]:
    """Every line there is to say; nothing is sent but a TLS handshake and one request for a page that is not there."""
    folders = sorted(path.name for path in data.iterdir() if path.is_dir())
    n_images = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in data.rglob("*"))
    yield Checked(
        "folder", n_images > 0, f"{n_images:,} image files in {len(folders)} folders ({', '.join(folders[:8])})"
    )
    yield _key(key)
    try:
        left = days_left(ca)
        yield Checked("CA certificate", left > 0, f"valid for {left:.0f} days" if left > 0 else "has expired")
    except ConsiliumError as error:
        yield Checked("CA certificate", False, str(error))
    try:
        read_policy(policy)
        yield Checked("policy", True, str(policy) if policy else "none: any federation, any hour, own model stays home")
    except ConsiliumError as error:
        yield Checked("policy", False, str(error))
    proxies = {name: value for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY") if (value := os.environ.get(name))}
    yield Checked("proxy", True, ", ".join(f"{name} is set" for name in proxies) or "none set; connects directly")
    yield from _connection(coordinator, ca)


def _key(key: Path) -> Checked:
    try:
        serialization.load_ssh_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        return Checked("key", False, f"{key}: is no private key ({error})")
    if key.stat().st_mode & 0o007:  # a group may: so mounts a cluster its secrets
        return Checked("key", False, f"{key}: everybody can read it; chmod 600 {key}")
    return Checked("key", True, "not everybody can read it")


def _connection(coordinator: str, ca: Path) -> Iterator[Checked]:
    host, _, port = coordinator.rpartition(":")
    try:
        plain = socket.create_connection((host, int(port)), timeout=10)
    except OSError as error:
        yield Checked("port", False, f"{coordinator} cannot be reached: {error}")
        return
    yield Checked("port", True, f"{coordinator} answers")
    try:
        context = ssl.create_default_context(cafile=str(ca))
        with plain, context.wrap_socket(plain, server_hostname=host) as secure:
            until = ssl.cert_time_to_seconds(str((secure.getpeercert() or {})["notAfter"]))
            days = (until - datetime.datetime.now(datetime.UTC).timestamp()) / 86400
            secure.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            head = secure.recv(4096).decode("latin-1")
    except (OSError, ssl.SSLError) as error:
        yield Checked("TLS", False, f"{error}; is {ca} this coordinator's, and {host} the name in its certificate?")
        return
    yield Checked("TLS", True, f"the coordinator proves to be {host}; its certificate is valid for {days:.0f} days")
    dates = [line.partition(":")[2].strip() for line in head.splitlines() if line.lower().startswith("date:")]
    if not dates:
        yield Checked("clock", False, "the coordinator did not say what time it is")
        return
    theirs = email.utils.parsedate_to_datetime(dates[0])
    apart = abs((datetime.datetime.now(datetime.UTC) - theirs).total_seconds())
    remedy = "; set the clock by NTP" if apart > CLOCK_SECONDS else ""
    yield Checked("clock", not remedy, f"{apart:.0f} s apart from the coordinator's{remedy}")
