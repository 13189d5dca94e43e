"""`loopback`: a coordinator and hospitals as processes on this machine, and that none of them outlives it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.config import load_federation
from engine.errors import DataError
from engine.loopback_command import hospital_folders
from engine.results.run_folder import JOINED, Run
from tests.conftest import PROJECT, TINY, Command
from tests.test_pages import make_unfinished

pytest.importorskip("flwr", reason="Flower is not installed")
PHANTOMS = PROJECT / "federations" / "phantoms.toml"
PATIENCE_S = 600


def processes_of(place: Path) -> list[psutil.Process]:
    """All that were started for it: every one is given a path below it, as coordinator, hospital or Flower's part."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(place) in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def wait_until(told: str, file: Path, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + PATIENCE_S
    while not (file.is_file() and re.search(told, file.read_text())):
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < until, f"no '{told}' in {file}"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the hospitals of a killed coordinator on Linux")
def test_a_killed_training_leaves_no_process_and_goes_on(phantom_root: Path, tmp_path: Path) -> None:
    logs, settings = tmp_path / "logs", [f"--set={one}" for one in (*TINY, "training.rounds=2")]
    where = ["--artifacts", tmp_path / "runs", "--logs", logs, "--state", tmp_path / "state", "--data", phantom_root]
    command = [sys.executable, "-m", "engine", "loopback", str(PHANTOMS), *map(str, where)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *settings], cwd=PROJECT, env=environment)
    try:
        wait_until("round 1 of 2 took", logs / "coordinator.log", process)
        # itself, SuperLink, three hospitals and their SuperNodes
        running = processes_of(tmp_path)
        assert len(running) >= 8, [one.cmdline() for one in running]
        heard = [one for each in running for one in each.net_connections() if one.status == psutil.CONN_LISTEN]
        assert len(heard) >= 4
        assert {one.laddr.ip for one in heard} == {"127.0.0.1"}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until = time.monotonic() + 60
    while left := processes_of(tmp_path):
        assert time.monotonic() < until, left
        time.sleep(0.2)
    if os.environ.get("CONSILIUM_SOAK") != "1":  # `make test` kills and resumes a coordinator in test_flower.py
        return

    done = subprocess.run([*command, "--resume", "run-001"], cwd=PROJECT, env=environment, timeout=PATIENCE_S)
    assert done.returncode == 0
    assert not processes_of(tmp_path)
    run = Run(tmp_path / "runs" / "run-001")
    run.verify(with_weights=True)
    run.verify_audit_log()
    assert run.config.transport == "flower"
    assert run.config.federation.arms == ("federated", "local")
    rounds = [line for line in run.rounds() if line.model == "global"]
    assert [line.round for line in rounds if line.hospital == "all"] == [1, 2]
    assert not [line.failure for line in rounds if line.failure]
    hospitals = [one.id for one in run.federation.hospital]
    assert {path.name for path in logs.iterdir()} == {"coordinator.log", *(f"{one}.log" for one in hospitals)}
    assert {path.name for path in (tmp_path / "state").iterdir()} - {"coordinator", ".lock"} == set(hospitals)
    assert all(list((tmp_path / "state" / one).glob("*/predictions.parquet")) for one in hospitals)


def test_what_cannot_be_trained_so_is_one_line(engine: Command, tmp_path: Path) -> None:
    given = ("--artifacts", tmp_path / "runs")
    assert "[partition]" in engine("loopback", PROJECT / "federations" / "chest-xray.toml", *given).error
    assert "the federated arm" in engine("loopback", PHANTOMS, "--arms", "local", *given).error
    assert "no such data folder" in engine("loopback", PHANTOMS, "--data", tmp_path / "none", *given).error
    (tmp_path / "some" / "hospital-a").mkdir(parents=True)
    assert "hospital-b: " in engine("loopback", PHANTOMS, "--data", tmp_path / "some", *given).error
    assert not (tmp_path / "here" / ".loopback").exists()


def test_only_what_was_begun_here_goes_on_here(engine: Command, phantom_run: Path, tmp_path: Path) -> None:
    """Hospitals without what they kept would go on from nothing, and nobody would notice."""
    run = tmp_path / "runs" / "run-001"
    shutil.copytree(phantom_run / "run-001", run)
    make_unfinished(run)
    given = ("loopback", PHANTOMS, "--artifacts", run.parent, "--resume", "run-001")
    assert "was begun in one process; go on with: train" in engine(*given).error
    assert "take --set and --arms away" in engine(*given, "--arms", "federated").error
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "transport": "flower"}))
    (run / JOINED).write_text(json.dumps({"schema_version": 1, "training": "0123", "hospitals": {"hospital-b": {}}}))
    assert "go on with: coordinator FEDERATION --resume run-001" in engine(*given).error


def test_one_at_a_time_with_one_state(engine: Command, phantom_root: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    state = tmp_path / "state"
    state.mkdir()
    with FileLock(state / ".lock"):
        said = engine("loopback", PHANTOMS, "--data", phantom_root, "--state", state, "--logs", tmp_path / "logs")
    assert "is in use by another process" in said.error


def test_a_hospitals_images_are_its_folder_or_its_rows_of_a_source(tmp_path: Path) -> None:
    for name in ("hospital-a", "hospital-b", "hospital-c"):
        (tmp_path / name).mkdir()
    phantoms, skin = (load_federation(PROJECT / "federations" / f"{name}.toml") for name in ("phantoms", "skin"))
    assert hospital_folders(phantoms, tmp_path)["hospital-b"] == tmp_path / "hospital-b"
    assert set(hospital_folders(skin, tmp_path).values()) == {tmp_path}
    with pytest.raises(DataError, match="no such folder"):
        hospital_folders(phantoms, tmp_path / "hospital-a")
