"""Disk and memory that run out: one line that names the remedy, and nothing lost for `--resume`."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine import cli
from engine.data.cache import decode_images
from engine.data.federation_data import FederationData
from engine.errors import DataError, RunError
from engine.federation.training_run import reopen_run, start_run, train_run
from engine.results.files import write_json
from engine.results.run_folder import Run, find_run
from engine.training.networks import CompactCNN

PROJECT = Path(__file__).resolve().parent.parent
FULL = r"cannot write: .*No space left on device.*; free disk space or mend permissions$"


class SmallDisk:
    """A file system of its own, where this machine lets us mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "consilium-test", str(self.folder)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root on Linux")

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    if disk.folder.is_mount():
        subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


def begin(data: FederationData, artifacts: Path) -> Run:
    return start_run(data, "federations/phantoms.toml", artifacts)


def assert_ends_like(whole: Path, run: Run) -> None:
    finished = find_run(whole, "run-001")
    run.verify(with_weights=True)
    for name, entry in finished.manifest.files.items():
        if name.startswith("weights/") or name in ("evaluation.json", "predictions.parquet"):
            assert run.manifest.files[name].sha256 == entry.sha256, name


@pytest.mark.slow
@pytest.mark.parametrize("size", ["60k", "1200k", "8m", "12m"])
def test_a_disk_that_fills_up_is_named_and_the_run_goes_on_when_there_is_room(
    size: str, small_disk: SmallDisk, tiny_data: FederationData, phantom_run: Path
) -> None:
    small_disk.mount(f"size={size}")
    with pytest.raises(RunError, match=FULL) as caught:
        train_run(begin(tiny_data, small_disk.folder), tiny_data)
    assert "\n" not in str(caught.value)
    small_disk.remount("size=64m")
    if not (small_disk.folder / "run-001" / "config.json").is_file():
        with pytest.raises(RunError, match="was stopped before it began; delete it and train anew"):
            reopen_run(small_disk.folder, "run-001")
        return
    assert_ends_like(phantom_run, train_run(reopen_run(small_disk.folder, "run-001"), tiny_data))


def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=FULL):
        write_json(tmp_path / "a.json", {"new": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert "old" in (tmp_path / "a.json").read_text()


def test_a_full_disk_in_a_hospitals_turn_is_no_failure_of_that_hospital(
    tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        raise RunError(f"{path}: cannot write")

    monkeypatch.setattr("engine.federation.progress.write_json", full)
    with pytest.raises(RunError, match=r"progress\.json: cannot write$"):
        train_run(begin(tiny_data, tmp_path), tiny_data)


def test_a_full_cache_disk_names_the_variable_that_moves_it(small_disk: SmallDisk, phantom_root: Path) -> None:
    small_disk.mount("size=32k")
    files = [(path.name, str(number)) for number, path in enumerate((phantom_root / "hospital-a/glioma").iterdir())]
    with pytest.raises(DataError, match=r"cannot keep decoded images: .*; set CONSILIUM_CACHE to a folder with room$"):
        decode_images(
            phantom_root / "hospital-a/glioma", files, side_px=64, colour=False, cache=small_disk.folder / "images"
        )


def test_a_read_only_artifacts_folder_is_named_with_the_option_that_moves_it(
    small_disk: SmallDisk, tiny_data: FederationData
) -> None:
    small_disk.mount("size=4m")
    unfinished = begin(tiny_data, small_disk.folder)
    small_disk.remount("ro")
    with pytest.raises(RunError, match=r"cannot make a run folder: Read-only file system; give --artifacts DIR$"):
        begin(tiny_data, small_disk.folder)
    with pytest.raises(RunError, match=r"cannot write: Read-only file system; free disk space or mend permissions$"):
        train_run(unfinished, tiny_data)


def test_the_command_says_it_in_one_line(
    phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ["train", str(PROJECT / "federations/phantoms.toml"), "--set", "model.image_size_px=32"]
    arguments += ["--data", str(phantom_root), "--artifacts", str(tmp_path / "file")]
    monkeypatch.setattr(sys, "argv", ["engine", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {tmp_path / 'file'}: cannot make a run folder: File exists; give --artifacts DIR"
    )


def cuda_runs_out() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def cpu_runs_out() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("runs_out", "in_training"), [(cuda_runs_out, True), (cpu_runs_out, False)])
def test_out_of_memory_ends_the_run_and_says_what_to_lower(
    runs_out: Callable[[], None], in_training: bool, tiny_data: FederationData, phantom_run: Path, tmp_path: Path
) -> None:
    forward, calls = CompactCNN.feature_map, 0

    def hungry(self: CompactCNN, images: Tensor) -> Tensor:
        nonlocal calls
        calls += self.training == in_training
        if calls == 5 and self.training == in_training:
            runs_out()
        return forward(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompactCNN, "feature_map", hungry)
        with pytest.raises(RunError) as caught:
            train_run(begin(tiny_data, tmp_path), tiny_data)
    what = "GPU memory" if runs_out is cuda_runs_out else "memory"
    assert str(caught.value) == (
        f"out of {what}: free some and go on with --resume, or train anew "
        "with --set training.batch_size=N below 8 or --set model.image_size_px=N below 32"
    )
    resumed = train_run(reopen_run(tmp_path, "run-001"), tiny_data)
    assert not any(line.failure for line in resumed.rounds())
    assert_ends_like(phantom_run, resumed)


def test_another_error_in_training_stays_that_hospitals_failure(
    tiny_data: FederationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CompactCNN, images: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(CompactCNN, "feature_map", broken)
    with pytest.raises(RunError, match=r"0 of at least 1 hospitals.*hospital-a: RuntimeError: shapes do not match"):
        train_run(begin(tiny_data, tmp_path), tiny_data)
