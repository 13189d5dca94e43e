"""Rounds over loopback with TLS and keys, hospitals as processes of their own: seconds a round, bytes, and memory.

Hospitals either train (the phantoms) or hand the weights back, barely moved (no-op). The coordinator's memory is
that of this process and its SuperLink, proportional set sizes. `benchmarks/flower_ray.py` has the same rounds in one
process and in Ray.
"""

import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from pairs import show

from engine.config import Federation, load_federation, networked
from engine.data.phantoms import write_phantoms
from engine.federation.certificates import make_certificates
from engine.federation.conversation import Joined, Question, Saying, Trained, Validated
from engine.federation.networked_run import join, new_training
from engine.federation.node import HospitalNode
from engine.federation.rounds import Rules, TrainingState, run_rounds
from engine.federation.transports.networked import NetworkTransport
from engine.results.rounds import Epoch, RoundLine
from engine.training.build import build_network
from engine.training.networks import Tensors

PROJECT = Path(__file__).resolve().parent.parent
IMAGES = 10
SUPERLINK = "flower/superlink.py"


class NoOp:
    """A hospital that trains nothing and hands the weights back, a little moved: Flower stores what is equal once."""

    def __init__(self, hospital: str, classes: Sequence[str]) -> None:
        self.hospital = hospital
        self._own = 1e-6 * (1 + sum(hospital.encode()) % 97)
        self._classes = classes

    def answer(self, question: Question, tensors: Tensors) -> tuple[Saying, Tensors]:
        if question.kind == "train":
            epochs = (Epoch(loss=1.0, accuracy=0.5, seconds=0.0),)
            own = {
                name: tensor + self._own if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
            }
            return Trained(n_images=IMAGES, epochs=epochs, seconds=0.0), own
        if question.kind == "validate":
            n = len(self._classes)
            rows = tuple(tuple(int(row == column) for column in range(n)) for row in range(n))
            return Validated(loss=1.0, confusion_matrix=rows), {}
        counts = dict.fromkeys(self._classes, IMAGES)
        told = dict.fromkeys(("train", "validation", "test"), counts)
        said = Joined(counts=told, unreadable=0, exact_duplicates=0, findings={}, patients_known=True, image_bytes=1)
        return said, {}


def serve(hospital: str, home: str, port: int, classes: Sequence[str], *, trains: bool) -> None:
    from engine.federation.transports.flower.serve import serve_hospital

    here = Path(home)
    state, tls = here / "state" / hospital, here / "tls" / hospital
    node: Any = HospitalNode(hospital, here / "phantoms" / hospital, state) if trains else NoOp(hospital, classes)
    serve_hospital(node, f"127.0.0.1:{port}", tls / "ca.crt", tls / "node.key", state, threading.Event(), {})


class Clock:
    """Seconds of each round, and the coordinator's memory at its end."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self.bytes: list[int] = []
        self.memory_mb = 0.0
        self._last = time.perf_counter()

    def write_round(self, state: TrainingState, lines: Sequence[RoundLine]) -> None:
        now = time.perf_counter()
        self.rounds.append(now - self._last)
        hospitals = [line for line in lines if line.hospital != "all"]
        if any(line.failure for line in hospitals):  # a hospital that fails makes a round fast
            raise SystemExit(str([(line.hospital, line.failure) for line in hospitals]))
        fits = [line.fit for line in hospitals if line.fit]
        checked = sum(line.validation.bytes_down for line in hospitals if line.validation)
        self.bytes.append(checked + sum(fit.bytes_down + fit.bytes_up for fit in fits))
        children = psutil.Process().children(recursive=True)
        mine = [psutil.Process(), *(one for one in children if any(SUPERLINK in word for word in one.cmdline()))]
        self.memory_mb = max(self.memory_mb, sum(one.memory_full_info().pss for one in mine) / 1e6)
        self._last = time.perf_counter()


def federation_of(n_hospitals: int, side_px: int, rounds: int) -> Federation:
    settings = ["model.architecture='resnet18'", f"model.image_size_px={side_px}", f"training.rounds={rounds}"]
    federation = load_federation(PROJECT / "federations" / "phantoms.toml", [*settings, "training.min_hospitals=3"])
    first = federation.hospital[0]
    hospitals = [
        federation.hospital[number]
        if number < 3
        else first.model_copy(update={"id": f"hospital-{number}", "name": f"Hospital {number}", "folder": f"{number}"})
        for number in range(n_hospitals)
    ]
    return networked(federation.model_copy(update={"hospital": tuple(hospitals), "arms": ("federated",)}))


def measure(n_hospitals: int, side_px: int, rounds: int, *, trains: bool) -> dict[str, Any]:
    from engine.federation.transports.flower.serve import free_port, opened_link

    federation = federation_of(n_hospitals, side_px, rounds)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        names = [one.id for one in federation.hospital]
        make_certificates(home / "tls", [], names, days=1)
        if trains:
            write_phantoms(home / "phantoms", seed=7)
        port, context = free_port(), multiprocessing.get_context("spawn")
        serving = [
            context.Process(target=serve, args=(name, folder, port, federation.classes), kwargs={"trains": trains})
            for name in names
        ]
        for process in serving:
            process.start()
        try:
            with opened_link(
                federation,
                home / "tls",
                home / "coordinator",
                host="127.0.0.1",
                port=port,
                timeout_s=600,
                patience_s=300,
            ) as link:
                training = new_training()
                joined = join(federation, link, training)
                network = build_network(federation.model, len(federation.classes), seed=0)
                start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                sizes = {name: sum(told.counts["train"].values()) for name, told in joined.items()}
                state, clock = TrainingState(start, start), Clock()
                transport = NetworkTransport(link, federation, training, Rules(), state, sizes, list(joined))
                run_rounds("federated", "global", federation.training, transport, state, clock)
        finally:
            for process in serving:
                process.terminate()
            for process in serving:
                process.join()
    return {
        "hospitals": n_hospitals,
        "work": "training" if trains else "no-op",
        "first_round_s": clock.rounds[0],
        "later_round_s": statistics.median(clock.rounds[1:]),
        "mb_a_round": clock.bytes[-1] / 1e6,
        "coordinator_mb": clock.memory_mb,
    }


def main(
    side_px: Annotated[int, typer.Option(help="Image side")] = 64,
    rounds: int = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """3 hospitals that train, 3 and 12 that do not."""
    cases = [(3, True), (3, False), (12, False)]
    rows = [measure(n_hospitals, side_px, rounds, trains=trains) for n_hospitals, trains in cases]
    few = next(row["coordinator_mb"] for row in rows if row["work"] == "no-op")
    for row in rows:
        row["memory_over_3_no_op"] = row["coordinator_mb"] / few
    told = {f"{row.pop('hospitals')} hospitals, {row.pop('work')}": row for row in rows}
    show("Rounds over loopback, ResNet18 (goal: memory of 12 over that of 3 <= 1.2)", told, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
