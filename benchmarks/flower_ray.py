"""The same federation in Flower's Ray simulation and in ours: seconds per round and peak memory.

Both train with `train_one_round` on the same three phantom hospitals and average with FedAvg; what differs is who
carries the weights. Needs Flower with Ray, in an environment of its own: benchmarks/README.md has the lines.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pairs import show

from engine.config import Federation, load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.data.phantoms import write_phantoms
from engine.federation.arms import image_sets
from engine.federation.hospital_round import Message, train_one_round
from engine.federation.rounds import Rules, TrainingState, run_rounds
from engine.federation.transports import ValidationReply
from engine.federation.updates import Update
from engine.results.rounds import Epoch, RoundLine
from engine.training.build import build_network
from engine.training.networks import Network, Tensors

PROJECT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
WORK = ("no-op", "training")
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray on 127.0.0.1
}


@functools.cache
def federation_data(root: str, side_px: int) -> tuple[Federation, FederationData, Network]:
    """Once per process: a simulated client lives in a Ray actor that answers for several rounds."""
    torch.set_flush_denormal(True)
    settings = ["model.architecture='resnet18'", f"model.image_size_px={side_px}", "training.device='cpu'"]
    federation = load_federation(PROJECT / "federations" / "phantoms.toml", settings)
    data = read_federation_data(federation, Path(root))
    return federation, data, build_network(federation.model, len(federation.classes), seed=0)


def answer(root: str, side_px: int, work: str, weights: Tensors, round_number: int, number: int) -> Update:
    """One hospital's round: train, or load the weights and hand them back."""
    federation, data, network = federation_data(root, side_px)
    hospital = federation.hospital[number].id
    if work == "no-op":
        network.load_state_dict(weights)
        tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return Update(hospital, tensors, 10, (Epoch(loss=1.0, accuracy=0.5, seconds=0.0),), 0.0)
    message = Message(weights, round_number, hospital)
    images = image_sets(data, "train")[hospital]
    update, _ = train_one_round(network, federation, Rules(), images, message, {}, device=CPU, on_images=lambda n: None)
    return update


class InProcess:
    def __init__(self, root: str, side_px: int, work: str, trainers: Sequence[str]) -> None:
        self.trainers = list(trainers)
        self._answer = functools.partial(answer, root, side_px, work)

    def train(self, weights: Tensors, round_number: int, hospitals: Sequence[str]) -> Any:
        for hospital in hospitals:
            yield self._answer(weights, round_number, self.trainers.index(hospital))

    def settle(self, refused: Collection[str]) -> None:
        pass

    def validate(self, weights: Tensors, round_number: int) -> Sequence[ValidationReply]:
        return ()

    def kept(self) -> dict[str, Tensors]:
        return {}


class Clock:
    """Seconds of each round."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self._last = time.perf_counter()

    def write_round(self, state: TrainingState | None = None, lines: Sequence[RoundLine] = ()) -> None:
        now = time.perf_counter()
        self.rounds.append(now - self._last)
        self._last = now


def ours(root: str, side_px: int, work: str, rounds: int) -> list[float]:
    federation, _, network = federation_data(root, side_px)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = federation.training.model_copy(update={"rounds": rounds})
    transport = InProcess(root, side_px, work, [hospital.id for hospital in federation.hospital])
    clock = Clock()
    run_rounds("federated", "global", config, transport, TrainingState(start, start), clock)
    return clock.rounds


def flower(root: str, side_px: int, work: str, rounds: int) -> list[float]:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    federation, _, network = federation_data(root, side_px)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    client, server, clock, answers = ClientApp(), ServerApp(), Clock(), list[int]()

    @client.train()
    def train(message: Any, context: Any) -> Any:
        weights = dict(message.content["arrays"].to_torch_state_dict())
        for name, tensor in weights.items():  # Flower's mean makes floats of BatchNorm's counters
            weights[name] = tensor.to(start[name].dtype)
        round_number = int(message.content["config"]["server-round"])
        update = answer(root, side_px, work, weights, round_number, int(context.node_config["partition-id"]))
        content = {
            "arrays": ArrayRecord.from_torch_state_dict(update.tensors),
            "metrics": MetricRecord({"num-examples": update.n_images}),
        }
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def main(grid: Any, context: Any) -> None:
        def tick(round_number: int, arrays: Any) -> None:
            if round_number:
                clock.write_round()

        n_hospitals = len(federation.hospital)

        def count(replies: list[Any], weighted_by: str) -> Any:
            answers.append(len(replies))
            return MetricRecord({})

        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_train_nodes=n_hospitals,
            min_available_nodes=n_hospitals,
            train_metrics_aggr_fn=count,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord.from_torch_state_dict(start),
            num_rounds=rounds,
            train_config=ConfigRecord({}),
            evaluate_fn=tick,
        )

    resources = {"client_resources": {"num_cpus": os.cpu_count() or 1, "num_gpus": 0.0}}  # one actor, all threads
    run_simulation(server, client, num_supernodes=len(federation.hospital), backend_config=resources)
    if answers != [len(federation.hospital)] * rounds:  # a client that fails makes a round fast
        raise SystemExit(f"of {len(federation.hospital)} simulated clients answered, by round: {answers}")
    return clock.rounds


def peak_while(work: Callable[[], list[float]]) -> tuple[list[float], float]:
    """What `work` returns, and the largest sum of proportional set sizes of this process and its children, in MB."""
    import psutil

    peak, done = 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.2):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it has ended
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        seconds = work()
    finally:
        done.set()
        watcher.join()
    return seconds, peak / 1e6


def main(
    side_px: Annotated[int, typer.Option(help="Image side")] = 64,
    rounds: int = 6,
    repeats: int = 3,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """First round (processes start, images are read) and the median of the others; medians over repeats, A B A B."""
    if one and folder:
        way, work = one.split("/")
        run = {"ours": ours, "flower": flower}[way]
        seconds, peak_mb = peak_while(lambda: run(folder, side_px, work, rounds))
        typer.echo(f"MEASURED {json.dumps({'seconds': seconds, 'peak_mb': peak_mb})}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "phantoms"
        federation = load_federation(PROJECT / "federations" / "phantoms.toml")
        counts = {hospital.id: dict.fromkeys(federation.classes, 24) for hospital in federation.hospital}
        write_phantoms(root, seed=1, size_px=side_px, images_per_hospital=counts)
        environment = {
            **os.environ,
            **OFFLINE,
            "PYTHONPATH": f"{PROJECT}:{PROJECT}/benchmarks",
            "FLWR_HOME": f"{scratch}/flwr",
        }

        def child(way: str) -> dict[str, Any]:
            # Not as __main__: Ray's processes must be able to import what they unpickle.
            start = "import flower_ray, typer; typer.run(flower_ray.main)"
            command = [sys.executable, "-c", start, "--one", way, "--folder", str(root)]
            command += ["--side-px", str(side_px), "--rounds", str(rounds)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            line = next((line for line in done.stdout.splitlines() if line.startswith("MEASURED ")), None)
            if done.returncode or line is None:
                raise SystemExit(f"{way}: ended with {done.returncode}\n{done.stderr[-3000:]}")
            result: dict[str, Any] = json.loads(line.removeprefix("MEASURED "))
            return result

        rows: dict[str, dict[str, object]] = {}
        for work in WORK:
            turns = [(child(f"ours/{work}"), child(f"flower/{work}")) for _ in range(repeats)]
            for place, way in enumerate(("ours", "flower")):
                results = [turn[place] for turn in turns]
                rows[f"{work}, {way}"] = {
                    "first_round_s": statistics.median(result["seconds"][0] for result in results),
                    "later_rounds_s": statistics.median(statistics.median(r["seconds"][1:]) for r in results),
                    "peak_mb": statistics.median(result["peak_mb"] for result in results),
                }
    show(f"Rounds of three phantom hospitals, ResNet18, {side_px} px", rows, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
