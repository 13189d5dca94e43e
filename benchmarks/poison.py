"""One hospital of several lies, on cached features of a frozen backbone: what FedAvg makes of it, and the robust rules.

Nothing of this is in the engine: the lie wraps a training set or a transport.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from pairs import show

from engine.aggregation_config import StrategyConfig
from engine.config import Federation, load_federation
from engine.data.federation_data import FederationData, read_federation_data
from engine.errors import ConfigError
from engine.federation.arms import Sets, image_sets
from engine.federation.frozen import FeatureMemory
from engine.federation.rounds import Rules, TrainingState, run_rounds
from engine.federation.strategies import make_strategy
from engine.federation.transports import Transport, ValidationReply
from engine.federation.transports.in_process import InProcessTransport
from engine.federation.updates import HospitalFailure, Update
from engine.results.bootstrap import mean_score
from engine.sections import AugmentConfig
from engine.training.build import build_network
from engine.training.device import choose_device
from engine.training.features import HeadNetwork
from engine.training.images import TrainingSet
from engine.training.local import predict_logits
from engine.training.networks import Tensors

LIES = ("nobody", "labels", "weights")
SCALE = -5.0


class FlippedLabels:
    """Every label is the next class's (of two classes, the other one's); the inputs are as they were."""

    def __init__(self, honest: TrainingSet, n_classes: int) -> None:
        self._honest = honest
        self._n_classes = n_classes
        self.labels = (honest.labels + 1) % n_classes

    def __len__(self) -> int:
        return len(self._honest)

    def batch(self, positions: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = self._honest.batch(positions, device)
        return inputs, (labels + 1) % self._n_classes

    def training_batch(
        self,
        positions: torch.Tensor,
        device: torch.device,
        config: AugmentConfig,
        generator: torch.Generator,
        epoch: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = self._honest.training_batch(positions, device, config, generator, epoch)
        return inputs, (labels + 1) % self._n_classes

    def join(self, others: Sequence["FlippedLabels"]) -> TrainingSet:
        raise NotImplementedError("a liar pools nothing")


class ScaledWeights:
    """The liar trains honestly and sends its weights times SCALE; every other message passes as it is."""

    def __init__(self, transport: Transport, liar: str) -> None:
        self._transport, self._liar = transport, liar

    @property
    def trainers(self) -> Sequence[str]:
        return self._transport.trainers

    def train(self, sent: Tensors, round_number: int, hospitals: Sequence[str]) -> Iterator[Update | HospitalFailure]:
        for reply in self._transport.train(sent, round_number, hospitals):
            if isinstance(reply, Update) and reply.hospital == self._liar:
                scaled = {name: SCALE * tensor for name, tensor in reply.tensors.items()}  # a head has floats alone
                yield replace(reply, tensors=scaled)
            else:
                yield reply

    def settle(self, refused: Collection[str]) -> None:
        self._transport.settle(refused)

    def validate(self, weights: Tensors, round_number: int) -> Iterator[ValidationReply | HospitalFailure]:
        return self._transport.validate(weights, round_number)

    def kept(self) -> dict[str, Tensors]:
        return self._transport.kept()


def frozen_federation(file: Path, settings: Sequence[str], seed: int) -> Federation:
    """The file's federation with its backbone frozen; without starting weights of its own, ImageNet's."""
    start = []
    if load_federation(file, settings).model.weights == "none":
        start = ["model.architecture=efficientnet-lite0", "model.weights=imagenet"]
    fixed = ["model.freeze_backbone=true", 'arms=["federated"]', f"training.seed={seed}"]
    return load_federation(file, [*settings, *start, *fixed])


def strategies(n_hospitals: int) -> dict[str, list[str]]:
    """By name, the settings of each; what is trimmed is one hospital at each end, as one lies."""
    trim = max(0.2, math.ceil(100 / n_hospitals) / 100)
    return {
        "fedavg": ["aggregation.strategy=fedavg"],
        "median": ["aggregation.strategy=median"],
        "trimmed-mean": ["aggregation.strategy=trimmed-mean", f"aggregation.trim={trim}"],
        "krum": ["aggregation.strategy=krum", "aggregation.n_malicious=1"],
    }


def train(
    federation: Federation,
    strategy: StrategyConfig,
    sets: Sets,
    head: HeadNetwork,
    start: Tensors,
    device: torch.device,
    lie: str,
    liar: str,
) -> np.ndarray:
    """Logits on the test images of the round that the honest hospitals' validation images choose."""
    training = dict(sets["train"])
    if lie == "labels":
        training[liar] = FlippedLabels(training[liar], len(federation.classes))
    rules = Rules(make_strategy(strategy, len(federation.hospital)), federation.communication)
    transport: Transport = InProcessTransport(
        head,
        federation,
        training_sets=training,
        validation_sets={hospital: images for hospital, images in sets["validation"].items() if hospital != liar},
        device=device,
        on_images=lambda *_: None,
        rules=rules,
    )
    if lie == "weights":
        transport = ScaledWeights(transport, liar)
    begun = TrainingState(start, start)
    state = run_rounds("federated", "global", federation.training, transport, begun, rules=rules)
    head.load_state_dict(state.best_weights)
    return np.concatenate([predict_logits(head, images, device) for images in sets["test"].values()])


def choose_liar(training: Mapping[str, TrainingSet]) -> str:
    """The hospital in the middle by its number of training images."""
    return sorted(training, key=lambda hospital: len(training[hospital]))[len(training) // 2]


def truth_of(data: FederationData, sets: Sets) -> tuple[np.ndarray, list[str]]:
    """Labels and groups of the test images, by hospital, as `train` predicts them."""
    labels = torch.cat([images.labels for images in sets["test"].values()]).numpy()
    groups = [
        split.group
        for hospital in sets["test"]
        for split in data.splits
        if split.part == "test" and split.image.hospital == hospital
    ]
    return labels, groups


def main(
    federation_file: Annotated[Path, typer.Argument(metavar="FEDERATION", help="federations/NAME.toml")],
    hospital: Annotated[str | None, typer.Option(metavar="ID", help="Who lies; default: the middle by size")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C")] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N")] = "0,1,2",
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Test macro-F1, mean over seeds, with its 95% interval (bootstrap over groups), per strategy and lie."""
    numbers = [int(seed) for seed in seeds.split(",")]
    given = list(settings or [])
    found: FederationData | None = None
    memory = FeatureMemory()
    logits: dict[tuple[str, str], list[np.ndarray]] = {}
    impossible: dict[str, str] = {}
    for seed in numbers:
        federation = frozen_federation(federation_file, given, seed)
        found = replace(found or read_federation_data(federation, data), federation=federation)
        device = choose_device(federation.training)
        network = build_network(federation.model, len(federation.classes), seed).to(device)
        images: Sets = {part: image_sets(found, part) for part in ("train", "validation", "test")}
        sets = memory.features(network, images, found, device)
        head = HeadNetwork(network)
        start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        liar = hospital or choose_liar(sets["train"])
        if liar not in sets["train"]:
            raise typer.BadParameter(f"{liar} is no hospital with training images; {', '.join(sets['train'])} are")
        for name, chosen in strategies(len(federation.hospital)).items():
            try:
                strategy = frozen_federation(federation_file, [*given, *chosen], seed).aggregation
            except ConfigError as error:
                impossible[name] = str(error)
                continue
            for lie in LIES:
                head.load_state_dict(start)
                read = train(federation, strategy, sets, head, start, device, lie, liar)
                logits.setdefault((name, lie), []).append(read)
    assert found is not None
    labels, groups = truth_of(found, sets)
    rows: dict[str, dict[str, object]] = {}
    for (name, lie), reads in logits.items():
        score = mean_score(np.stack(reads), labels, groups, found.federation.classes, "macro_f1")
        wrong = {"nobody": "nobody lies", "labels": "flipped labels", "weights": f"weights times {SCALE:g}"}[lie]
        rows[f"{name}, {wrong}"] = {"macro_f1": score.value, "low": score.low, "high": score.high}
    share = len(sets["train"][liar]) / sum(map(len, sets["train"].values()))
    title = (
        f"{found.federation.name}: {liar} ({share:.0%} of training images) lies; macro-F1 on all {len(labels):,} test "
        f"images, mean over {len(numbers)} seeds"
    )
    show(title, rows, as_json=as_json)
    for name, why in impossible.items():
        typer.echo(f"{name}: not here: {why}", err=True)


if __name__ == "__main__":
    typer.run(main)
