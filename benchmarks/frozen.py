"""One federated round over cached features of a frozen backbone, against running the backbone in every epoch."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from pairs import show, summarise, time_pairs
from safetensors.torch import save_file

from engine.config import load_federation
from engine.data.federation_data import read_federation_data
from engine.data.phantoms import write_phantoms
from engine.federation.arms import Sets, image_sets
from engine.federation.frozen import cache_features
from engine.federation.rounds import TrainingState, run_rounds
from engine.federation.transports.in_process import InProcessTransport
from engine.training.build import build_network
from engine.training.features import HeadNetwork
from engine.training.images import TrainingSet
from engine.training.networks import Network

PROJECT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def main(
    side_px: Annotated[int, typer.Option(help="Image side")] = 96,
    images_per_class: Annotated[int, typer.Option(help="Phantoms drawn per hospital and class")] = 12,
    views: Annotated[int, typer.Option(help="Augmented views cached per training image")] = 2,
    repeats: int = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Seconds per round after the first; the goal is 20 times faster. What the first one costs stands beside."""
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "encoder.safetensors"
        settings = ["model.architecture='resnet18'", f"model.image_size_px={side_px}", "training.rounds=1"]
        settings += ["training.device='cpu'"]
        federation = load_federation(PROJECT / "federations" / "phantoms.toml", settings)
        fresh = build_network(federation.model, len(federation.classes), seed=0).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in fresh.items()}, weights)
        frozen = [f"model.weights='{weights}'", "model.freeze_backbone=true", f"training.views={views}"]
        federation = load_federation(PROJECT / "federations" / "phantoms.toml", [*settings, *frozen])
        root = Path(folder) / "phantoms"
        counts = {hospital.id: dict.fromkeys(federation.classes, images_per_class) for hospital in federation.hospital}
        write_phantoms(root, seed=1, size_px=side_px, images_per_hospital=counts)
        data = read_federation_data(federation, root)
        sets: Sets = {"train": image_sets(data, "train"), "validation": image_sets(data, "validation")}
        network = build_network(federation.model, len(federation.classes), seed=0)
        started = time.perf_counter()
        features = cache_features(network, sets, federation, CPU)
        caching_seconds = time.perf_counter() - started

        def one_round(
            trained: Network, training: Mapping[str, TrainingSet], validation: Mapping[str, TrainingSet]
        ) -> None:
            start = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
            transport = InProcessTransport(
                trained,
                federation,
                training_sets=training,
                validation_sets=validation,
                device=CPU,
                on_images=lambda *_: None,
            )
            run_rounds("federated", "global", federation.training, transport, TrainingState(start, start))

        head = HeadNetwork(build_network(federation.model, len(federation.classes), seed=0))
        pairs = time_pairs(
            lambda: one_round(network, sets["train"], sets["validation"]),
            lambda: one_round(head, features["train"], features["validation"]),
            repeats,
        )
    summary = summarise(pairs)
    row = {
        "recomputing_seconds": summary["ours_seconds"],
        "cached_seconds": summary["bare_seconds"],
        "times_faster": summary["ratio"],
        "caching_once_seconds": caching_seconds,
        "ratios": summary["ratios"],
    }
    title = f"A round with a frozen ResNet18 (goal: >= 20 times faster), {torch.get_num_threads()} threads"
    show(title, {f"{side_px} px, {views} views": row}, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
