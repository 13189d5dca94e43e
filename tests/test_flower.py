"""Coordinator and hospitals as real processes over TLS on loopback: faults, and what a network may see."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from engine.config import load_federation, networked
from engine.data.federation_data import read_federation_data
from engine.data.phantoms import write_phantoms
from engine.federation.training_run import start_run, train_run
from engine.results.run_folder import Run

pytest.importorskip("flwr", reason="Flower is not installed")
pytestmark = [pytest.mark.slow]
PROJECT = Path(__file__).resolve().parent.parent
HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
SETTINGS = ["training.rounds=2", "model.image_size_px=32", "model.architecture=compact-cnn", "training.batch_size=8"]
PATIENCE_S = 400


class Site:
    """One machine's worth of processes, each with its own log, all on loopback."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.health: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.images = home / "images"
        write_phantoms(self.images, seed=7)
        self.run("certificates", str(home / "tls"), *(f"--hospital={one}" for one in HOSPITALS))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "engine", *arguments]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, env=self.environment())

    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        self.health[name] = free_port()
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "engine", *arguments, "--health-port", str(self.health[name])],
                cwd=PROJECT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
            )
        return self.processes[name]

    def coordinator(self, *more: str) -> subprocess.Popen[bytes]:
        changes = [] if "--resume" in more else [part for one in SETTINGS for part in ("--set", one)]
        return self.start(
            "coordinator",
            *("coordinator", "federations/phantoms.toml", "--certificates", str(self.home / "tls")),
            *("--port", str(self.port), "--state", str(self.home / "coordinator")),
            *("--artifacts", str(self.home / "runs"), "--timeout", "120", *changes, *more),
        )

    def hospital(self, name: str) -> subprocess.Popen[bytes]:
        tls = self.home / "tls" / name
        return self.start(
            name,
            *("hospital", "--id", name, "--data", str(self.images / name), "--coordinator", f"127.0.0.1:{self.port}"),
            *("--ca", str(tls / "ca.crt"), "--key", str(tls / "node.key"), "--state", str(self.home / "state" / name)),
        )

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern: str, name: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.log(name)):
            assert time.monotonic() < until, f"no '{pattern}' in {name}'s log:\n{self.log(name)}"
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """As a power cut does: the process and its Flower child."""
        process = psutil.Process(self.processes[name].pid)
        for one in [*process.children(recursive=True), process]:
            one.send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


def test_a_killed_hospital_and_a_killed_coordinator_end_in_the_run_of_one_process(site: Site, tmp_path: Path) -> None:
    for name in HOSPITALS:
        site.hospital(name)
    site.coordinator()
    site.wait_for("global: round 1 of 2", "coordinator")
    assert listening(site) <= {"127.0.0.1"}
    refused_without_a_key(site)
    health = urllib.request.urlopen(f"http://127.0.0.1:{site.health['hospital-b']}/healthz", timeout=10)
    assert json.load(health)["hospital"] == "hospital-b"

    site.kill("coordinator")
    site.kill("hospital-c")
    site.hospital("hospital-c")  # its key seems in use for a minute; it keeps trying
    resumed = site.coordinator("--resume", "run-001")
    assert resumed.wait(timeout=PATIENCE_S) == 0, site.log("coordinator")

    run = Run(site.home / "runs" / "run-001")
    run.verify(with_weights=True)
    run.verify_audit_log()
    rounds = [line.round for line in run.rounds() if line.model == "global" and line.hospital == "all"]
    assert rounds == [1, 2]
    assert run.config.transport == "flower"
    assert {line.hospital for line in run.rounds() if line.model.startswith("local/")} == {*HOSPITALS, "all"}
    assert not [line.failure for line in run.rounds() if line.failure], "who goes on waits for hospital-c"
    federation = networked(load_federation(PROJECT / "federations" / "phantoms.toml", SETTINGS))
    data = read_federation_data(federation, site.images)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the hospitals have: sums in another order round differently
    try:
        near = train_run(start_run(data, "phantoms.toml", tmp_path / "near"), data)
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (load_file(one.weights("global")) for one in (run, near))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    left = site.run("hospital", "leave", "--state", str(site.home / "state" / "hospital-a"), "--yes")
    assert "the state of 1 training" in left.stderr
    assert not list((site.home / "state" / "hospital-a").glob("*/predictions.parquet"))


def listening(site: Site) -> set[str]:
    """Every address that any of the processes, or a child of theirs, listens on."""
    found = set()
    for process in site.processes.values():
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            for connection in one.net_connections():
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip)
    return found


def refused_without_a_key(site: Site) -> None:
    """TLS with another CA is refused; a request that no hospital's key signed is answered 401."""
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", site.port)) as plain:
        context.wrap_socket(plain, server_hostname="localhost")
    context = ssl.create_default_context(cafile=str(site.home / "tls" / "ca.crt"))
    request = urllib.request.Request(
        f"https://localhost:{site.port}/v1/fleet/activate-node",
        data=b"",
        headers={"Content-Type": "application/protobuf"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, context=context, timeout=20)
    assert refused.value.code in (400, 401, 422)


def test_check_says_what_is_wrong_before_the_first_round(site: Site) -> None:
    tls = site.home / "tls" / "hospital-a"
    given = [
        *("--id", "hospital-a", "--data", str(site.images / "hospital-a")),
        *("--coordinator", f"127.0.0.1:{site.port}", "--ca", str(tls / "ca.crt"), "--key", str(tls / "node.key")),
    ]
    done = site.run("hospital", "check", *given)
    assert done.returncode == 2
    assert "FAIL port" in done.stdout
    assert "ok   key" in done.stdout
    site.coordinator()
    site.wait_for("the coordinator listens", "coordinator")
    done = site.run("hospital", "check", *given)
    assert done.returncode == 0, done.stdout
    for what in ("folder", "key", "CA certificate", "policy", "proxy", "port", "TLS", "clock"):
        assert f"ok   {what}" in done.stdout
    (tls / "node.key").chmod(0o644)
    assert "chmod 600" in site.run("hospital", "check", *given).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hospital"], "--id, --data, --coordinator, --ca and --key"),
        (["hospital", "leave", "--state", "nowhere"], "no such state folder"),
        (["coordinator", "federations/phantoms.toml", "--certificates", "nowhere"], "is missing; make it with"),
        (["coordinator", "federations/chest-xray.toml", "--certificates", "nowhere"], "[partition]"),
    ],
)
def test_what_is_missing_is_one_line(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "engine", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
