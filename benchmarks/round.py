"""One federated round over the three phantom hospitals against the same work in a bare PyTorch loop."""

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from pairs import show, summarise, time_pairs
from torch.nn import functional

from engine.config import Federation, load_federation
from engine.data.federation_data import read_federation_data
from engine.data.phantoms import write_phantoms
from engine.federation.arms import image_sets
from engine.federation.audited import fingerprint
from engine.federation.rounds import TrainingState, run_rounds
from engine.federation.transports.in_process import InProcessTransport
from engine.training.augment import augment
from engine.training.build import build_network
from engine.training.device import autocast
from engine.training.images import ImageSet
from engine.training.networks import Network, Tensors

PROJECT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


def bare_round(
    network: Network,
    start: Tensors,
    federation: Federation,
    training_sets: dict[str, ImageSet],
    validation_sets: dict[str, ImageSet],
) -> None:
    """The same images, network, precision, optimizer, augmentation and validation, and nothing else."""
    config = federation.training
    weights = {name: tensor.clone() for name, tensor in start.items()}
    copies, sizes = [], []
    for number, images in enumerate(training_sets.values()):
        network.load_state_dict(weights)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        generator = torch.Generator().manual_seed(number)
        batches = list(torch.randperm(len(images), generator=generator).split(config.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        for positions in batches:
            pixels, labels = images.batch(positions, CPU)
            pixels = augment(pixels, config.augment, generator)
            optimizer.zero_grad()
            with autocast(CPU, config):
                logits = network(network.normalise(pixels))
            functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
        copies.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        sizes.append(len(images))
    average = {
        name: sum(copy[name] * (size / sum(sizes)) for copy, size in zip(copies, sizes, strict=True)).to(tensor.dtype)
        for name, tensor in weights.items()
    }
    network.load_state_dict(average)
    network.eval()
    with torch.inference_mode():
        for images in validation_sets.values():
            for positions in torch.arange(len(images)).split(64):
                pixels, labels = images.batch(positions, CPU)
                logits = network(network.normalise(pixels))
                float(functional.cross_entropy(logits, labels)), int((logits.argmax(1) == labels).sum())


def main(
    side_px: Annotated[int, typer.Option(help="Image side")] = 64,
    batch_size: int = 16,
    images_per_class: Annotated[int, typer.Option(help="Phantoms drawn per hospital and class")] = 12,
    repeats: int = 5,
    threads: Annotated[int, typer.Option(help="0 leaves torch's own choice")] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Ratio of engine.federation.rounds.run_rounds to a bare loop; the goal is at most 1.05."""
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    settings = ["model.architecture='resnet18'", f"model.image_size_px={side_px}", f"training.batch_size={batch_size}"]
    settings += ["training.rounds=1", "training.device='cpu'"]
    federation = load_federation(PROJECT / "federations" / "phantoms.toml", settings)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "phantoms"
        counts = {hospital.id: dict.fromkeys(federation.classes, images_per_class) for hospital in federation.hospital}
        write_phantoms(root, seed=1, size_px=side_px, images_per_hospital=counts)
        data = read_federation_data(federation, root)
        training_sets, validation_sets = image_sets(data, "train"), image_sets(data, "validation")
        network = build_network(federation.model, len(federation.classes), seed=0)
        start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        transport = InProcessTransport(
            network,
            federation,
            training_sets=training_sets,
            validation_sets=validation_sets,
            device=CPU,
            on_images=lambda *_: None,
        )

        def ours() -> None:
            run_rounds("federated", "global", federation.training, transport, TrainingState(start, start))

        def told() -> None:
            """As a run does it, whose audit log holds the fingerprint of every update and of the round's weights."""
            state = run_rounds(
                "federated",
                "global",
                federation.training,
                transport,
                TrainingState(start, start),
                on_update=lambda update: fingerprint(update.tensors),
            )
            fingerprint(state.weights)

        def bare() -> None:
            bare_round(network, start, federation, training_sets, validation_sets)

        rows = {
            f"one round, ResNet18, {side_px} px": summarise(time_pairs(ours, bare, repeats)),
            "the same, with fingerprints": summarise(time_pairs(told, bare, repeats)),
        }
    show(
        f"A federated round against a bare loop (goal: ratio <= 1.05), {torch.get_num_threads()} threads",
        rows,
        as_json=as_json,
    )


if __name__ == "__main__":
    typer.run(main)
