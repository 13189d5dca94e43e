"""What the federation itself costs: hospitals that train nothing and send a ResNet18 back."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any

import torch
import typer
from pairs import show, summarise

from engine.federation.rounds import TrainingState, run_rounds
from engine.federation.transports import ValidationReply
from engine.federation.updates import Update
from engine.results.rounds import Epoch
from engine.sections import ModelConfig, TrainingConfig
from engine.training.build import build_network
from engine.training.networks import Network, Tensors

UPDATES = 30


def rounds_of(n_hospitals: int) -> int:
    """Enough rounds for at least UPDATES updates."""
    return -(-UPDATES // n_hospitals)


class Idle:
    """Hospitals that load the weights they are sent, train nothing, and answer. As InProcessTransport, one network."""

    def __init__(self, network: Network, n_hospitals: int) -> None:
        self.trainers = [f"hospital-{number}" for number in range(n_hospitals)]
        self._network = network

    def train(self, weights: Tensors, round_number: int, hospitals: Sequence[str]) -> Iterator[Update]:
        for hospital in hospitals:
            self._network.load_state_dict(weights)
            tensors = {name: tensor.detach() for name, tensor in self._network.state_dict().items()}
            yield Update(hospital, tensors, 10, (Epoch(loss=1.0, accuracy=0.5, seconds=0.0),), 0.0)

    def settle(self, refused: Collection[str]) -> None:
        pass

    def validate(self, weights: Tensors, round_number: int) -> Iterator[ValidationReply]:
        yield from ()

    def kept(self) -> dict[str, Tensors]:
        return {}


def ours(network: Network, n_hospitals: int) -> None:
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = TrainingConfig(rounds=rounds_of(n_hospitals))
    run_rounds("federated", "global", config, Idle(network, n_hospitals), TrainingState(start, start))


def bare(network: Network, n_hospitals: int) -> None:
    """Load the weights, copy the state dict, add it to a running mean: float32, unchecked."""
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(rounds_of(n_hospitals)):
        mean: Tensors = {}
        for _ in range(n_hospitals):
            network.load_state_dict(weights)
            copy = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            for name, tensor in copy.items():
                share = tensor / n_hospitals if tensor.is_floating_point() else tensor
                mean[name] = mean[name] + share if name in mean and tensor.is_floating_point() else share
        weights = mean


def measure(way: str, n_hospitals: int) -> None:
    """In a process of its own: seconds per update and peak memory, as JSON on stdout."""
    network = build_network(ModelConfig(), 4, seed=0)
    work = {"ours": ours, "bare": bare}[way]
    started = time.perf_counter()
    work(network, n_hospitals)
    seconds = (time.perf_counter() - started) / (rounds_of(n_hospitals) * n_hospitals)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    json.dump({"seconds": seconds, "peak_mb": peak * (1 if sys.platform == "darwin" else 1024) / 1e6}, sys.stdout)


def main(
    hospitals: Annotated[list[int] | None, typer.Option(help="Numbers of hospitals; default 3 and 100")] = None,
    repeats: int = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Seconds per update (send, check, average) against a plain copy and mean; peak memory, many against few."""
    counts = hospitals or [3, 100]
    if one:
        measure(one, counts[0])
        return

    def child(way: str, n_hospitals: int) -> dict[str, Any]:
        command = [sys.executable, __file__, "--one", way, "--hospitals", str(n_hospitals)]
        result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return result

    rows: dict[str, dict[str, object]] = {}
    for n_hospitals in counts:
        turns = [(child("ours", n_hospitals), child("bare", n_hospitals)) for _ in range(repeats)]
        rows[f"{n_hospitals} hospitals"] = {
            **summarise([(ours["seconds"], bare["seconds"]) for ours, bare in turns]),
            "ours_peak_mb": sorted(ours["peak_mb"] for ours, _ in turns)[repeats // 2],
        }
    first = next(iter(rows.values()))
    for row in rows.values():
        row["memory_ratio"] = row["ours_peak_mb"] / first["ours_peak_mb"]  # type: ignore[operator]
    threads = torch.get_num_threads()
    show(f"One update of a ResNet18, {threads} threads (goal: memory_ratio <= 1.2)", rows, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
