"""The two long-running sides: a coordinator's link to its hospitals, and a hospital that answers until stopped."""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from engine.config import Federation
from engine.errors import ConfigError, RunError
from engine.federation.certificates import CA, NODE_PUBLIC, SERVER, SERVER_KEY, days_left, public_key
from engine.federation.node import HospitalNode
from engine.federation.training_log import log
from engine.federation.transports.flower import FlowerLink
from engine.federation.transports.flower.node import reply_to
from engine.federation.transports.flower.processes import Child, give_memory_back, running
from engine.federation.transports.flower.runtime import (
    START_SECONDS,
    Endpoint,
    answer_one,
    last_heard,
    opened_grid,
    register,
)
from engine.results.lock import alone_with

RESTART_SECONDS = 5.0  # a key that a killed SuperNode still seems to use is free again after a minute


@contextlib.contextmanager
def opened_link(
    federation: Federation,
    certificates: Path,
    state: Path,
    *,
    host: str,
    port: int,
    timeout_s: float,
    patience_s: float,
) -> Iterator[FlowerLink]:
    """A SuperLink with TLS that knows every hospital by its key, and a run at it. Raises ConfigError, RunError."""
    for name in (CA, SERVER, SERVER_KEY):
        if not (certificates / name).is_file():
            raise ConfigError(f"{certificates / name}: is missing; make it with: certificates {certificates}")
    if days_left(certificates / SERVER) <= 0:
        raise ConfigError(
            f"{certificates / SERVER}: has expired; renew it with: certificates {certificates} --host NAME"
        )
    keys = {one.id: public_key(certificates / one.id / NODE_PUBLIC) for one in federation.hospital}
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret_file = state / "secret"
    secret = _secret(secret_file)
    here = "127.0.0.1" if host in ("0.0.0.0", "127.0.0.1", "localhost", "::") else host
    _require_free(host, port)
    superlink = Child(
        [
            # as a file, not as a module of this package: a quarter of a gigabyte of torch stays out of it
            *("-P", str(Path(__file__).with_name("superlink.py")), "--host", host, "--port", str(port)),
            *("--ssl-certfile", str(certificates / SERVER), "--ssl-keyfile", str(certificates / SERVER_KEY)),
            *("--ssl-ca-certfile", str(certificates / CA), "--enable-supernode-auth"),
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret_file)),
            *("--database", str(state / "superlink.db")),
        ],
        state / "flwr",
        state / "superlink.log",
    )
    endpoint = Endpoint(f"{here}:{port}", secret, (certificates / CA).read_bytes())
    give_memory_back()
    with alone_with(state / ".lock", f"{state}: is in use"), running(superlink):
        _wait_until_up(endpoint, superlink, state / "superlink.log")
        nodes = register(endpoint, keys)
        opened = time.time()
        log.info("the coordinator listens on %s:%d for %d hospitals", host, port, len(nodes))
        with opened_grid(endpoint) as grid:

            def connected() -> Mapping[str, int]:
                """Those heard of since: a SuperLink that starts again thinks for a minute that all are there."""
                online = {one.node_id for one in grid.get_nodes() if last_heard(one) >= opened}
                return {hospital: node for hospital, node in nodes.items() if node in online}

            yield FlowerLink(
                grid,
                connected,
                timeout_s=timeout_s,
                rounds=federation.training.rounds,
                needed=federation.training.min_hospitals,
                patience_s=patience_s,
            )


def serve_hospital(
    node: HospitalNode,
    coordinator: str,
    ca: Path,
    key: Path,
    state: Path,
    stop: threading.Event,
    status: dict[str, str],
) -> None:
    """Answer until `stop`. Connects outwards alone; `status` is kept up to date for whoever watches."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret_file = state / "secret"
    secret, port = _secret(secret_file), free_port()
    supernode = Child(
        [
            *("-c", "from flwr.supernode.cli import flower_supernode; flower_supernode()"),
            *("--superlink", coordinator, "--root-certificates", str(ca), "--auth-supernode-private-key", str(key)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret_file)),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        state / "flwr",
        state / "supernode.log",
    )
    endpoint = Endpoint(f"127.0.0.1:{port}", secret)
    started = 0.0
    give_memory_back()
    with alone_with(state / ".lock", f"{state}: is in use"), running(supernode):
        while not stop.is_set():
            status["connection"] = "running" if supernode.is_running else "down"
            if not supernode.is_running and time.monotonic() - started > RESTART_SECONDS:
                log.warning("the connection to %s ended (%s says why); trying again", coordinator, "supernode.log")
                supernode.ensure()
                started = time.monotonic()
            try:
                answered = answer_one(endpoint, lambda message: reply_to(message, node))
            except (httpx.HTTPError, RuntimeError) as error:
                log.warning("an answer was lost: %s", error)
                supernode.stop()  # it would wait for that answer for ever
                answered = False
            if answered:
                status["last_answer"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            else:
                stop.wait(0.3)


def _secret(file: Path) -> bytes:
    """Between this program and its own Flower process: without it, any local user could take a hospital's tasks."""
    if not file.is_file():
        partial = file.with_name(f".{file.name}.partial")  # a kill leaves no empty secret
        partial.touch(mode=0o600)
        partial.write_bytes(secrets.token_bytes(32))
        partial.replace(file)
    return file.read_bytes()


def _wait_until_up(endpoint: Endpoint, superlink: Child, log_file: Path) -> None:
    host, _, port = endpoint.address.rpartition(":")
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if not superlink.is_running:
            raise RunError(f"the SuperLink ended as it began; {log_file} says why")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.2)
    raise RunError(f"the SuperLink is not up after {START_SECONDS:.0f} s; {log_file} says why")


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"{host}:{port}: cannot listen there ({error.strerror}); give another --port") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
