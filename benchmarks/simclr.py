"""Images per second of SimCLR training against a bare PyTorch loop with the same views."""

from typing import Annotated

import numpy as np
import torch
import typer
from pairs import show, summarise, time_pairs
from torch.nn import functional

from engine.pretext_config import PretextConfig
from engine.sections import ModelConfig, TrainingConfig
from engine.training.build import build_network
from engine.training.device import autocast
from engine.training.images import ImageSet, Portion
from engine.training.local import train_locally
from engine.training.objectives import make_objective
from engine.training.pretext import build_pretext
from engine.training.views import draw_views

CPU = torch.device("cpu")


def main(
    n_images: int = 256,
    side_px: int = 32,
    batch_size: int = 64,
    repeats: int = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Ratio of engine.training.local.train_locally to a bare loop; the goal is at most 1.05, 0.95 of its speed."""
    torch.set_flush_denormal(True)
    pixels = np.random.default_rng(0).integers(0, 256, (n_images, side_px, side_px, 3), dtype=np.uint8)
    images = ImageSet([Portion(pixels, np.arange(n_images), np.zeros(n_images, np.int64))])
    model = ModelConfig(image_size_px=side_px, colour=True)
    training = TrainingConfig(rounds=1, batch_size=batch_size, device="cpu")
    config = PretextConfig(objective="simclr")
    objective = make_objective("simclr", config)
    network = build_pretext(build_network(model, 2, seed=0), {"simclr": objective}, seed=0)

    def ours() -> None:
        train_locally(network, images, model, training, round_number=1, seed=0, device=CPU, objective=objective)

    def bare() -> None:
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), training.learning_rate, weight_decay=training.weight_decay)
        generator = torch.Generator().manual_seed(0)
        for positions in torch.randperm(n_images, generator=generator).split(batch_size):
            batch = torch.from_numpy(pixels[positions.numpy()]).permute(0, 3, 1, 2).float().div_(255)
            both = draw_views(torch.cat([batch, batch]), config.views, generator)
            optimizer.zero_grad()
            with autocast(CPU, training):
                projected = network(network.normalise(both))
            unit = functional.normalize(projected.float(), dim=1)
            similar = (unit @ unit.T / config.temperature).fill_diagonal_(-torch.inf)
            functional.cross_entropy(similar, torch.arange(len(both)).roll(len(batch))).backward()
            optimizer.step()

    pairs = time_pairs(ours, bare, repeats)
    rows = {f"SimCLR, ResNet18, {side_px} px, batches of {batch_size}": summarise(pairs)}
    for row in rows.values():
        row["ours_images_per_second"] = n_images / float(row["ours_seconds"])  # type: ignore[arg-type]
        row["speed_of_bare"] = 1 / float(row["ratio"])  # type: ignore[arg-type]
    show(
        f"SimCLR training against a bare loop (goal: speed >= 0.95), {torch.get_num_threads()} threads",
        rows,
        as_json=as_json,
    )


if __name__ == "__main__":
    typer.run(main)
