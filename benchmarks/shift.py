"""How a run's federated model reads its validation images as other scanners would show them. Chooses between recipes
without a look at the test or the external images.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from pairs import show

from engine.data.federation_data import FederationData, read_federation_data
from engine.federation.arms import image_sets
from engine.federation.checkpoint import load_tensors
from engine.results.metrics import score
from engine.results.run_folder import artifacts_folder, find_run
from engine.sections import Scanner
from engine.training.build import build_network
from engine.training.local import predict_logits

SCANNERS = {
    "as they are": Scanner(),
    "blurred": Scanner(blur=1.5),
    "flat": Scanner(contrast=0.6),
    "harsh": Scanner(contrast=1.5),
    "noisy": Scanner(noise=0.06),
}
CPU = torch.device("cpu")


def seen_by(scanner: Scanner, original: FederationData, data: Path | None) -> FederationData:
    """The same images on the same sides of the split, as `scanner` shows them at every hospital."""
    hospitals = tuple(one.model_copy(update={"scanner": scanner}) for one in original.federation.hospital)
    shifted = read_federation_data(original.federation.model_copy(update={"hospital": hospitals}), data)
    return dataclasses.replace(original, holdings=shifted.holdings)


def main(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs of one federation, of one image side")],
    artifacts: Annotated[Path | None, typer.Option("--artifacts", metavar="DIR")] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Balanced accuracy on validation images, by scanner, and the mean over scanners."""
    runs = [find_run(artifacts_folder(artifacts), name) for name in names]
    rows: dict[str, dict[str, object]] = {run.name: {} for run in runs}
    scores: dict[str, list[float]] = {run.name: [] for run in runs}
    sides = {run.federation.model.image_size_px for run in runs}
    if len(sides) > 1:
        raise typer.BadParameter(f"these runs saw images of {sorted(sides)} pixels; give runs of one side")
    original = read_federation_data(runs[0].federation, data)
    for name, scanner in SCANNERS.items():
        sets = image_sets(seen_by(scanner, original, data), "validation")
        labels = torch.cat([images.labels for images in sets.values()]).numpy()
        for run in runs:
            federation = run.federation
            model = federation.model.model_copy(update={"weights": "none", "freeze_backbone": False})
            network = build_network(model, len(federation.classes), 0)
            network.load_state_dict(load_tensors(run.weights("global")))
            logits = np.concatenate([predict_logits(network, images, CPU) for images in sets.values()])
            scores[run.name].append(score(logits, labels, federation.classes)["balanced_accuracy"])
            rows[run.name][name] = scores[run.name][-1]
    for row, values in zip(rows.values(), scores.values(), strict=True):
        row["mean"] = float(np.mean(values))
    show(f"{runs[0].federation.name}: balanced accuracy on {len(labels):,} validation images", rows, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
