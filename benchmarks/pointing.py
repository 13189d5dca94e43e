"""Do the heatmaps point at the tumour? The pointing game on phantoms that no model was trained on.

Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV 2018: a hit is a map whose peak lies on the object.
A map of h x h cells can say no more than a cell, so the disc of the lesion is widened by half a cell. That alone makes
hits easier, so each rate stands beside the strict one and beside what needs no model: pointing at any cell by chance,
and always at the one cell that hits most often. A rate that does not clear both says nothing about the model.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import typer
from intervals import wilson
from rich.console import Console
from rich.table import Table

from engine.config import Federation
from engine.data.images import Pixels, fit
from engine.data.phantom_heads import PHANTOM_CLASSES
from engine.data.phantoms import SCANNERS, Lesion, draw_slice
from engine.errors import ConsiliumError
from engine.inference.heatmap import Map, class_maps, peak, read_head
from engine.results.published import PublishedVersion, find_source, models_folder

DRAWN_PX = 128  # as the phantom federation's own images
STREAM = 2_026  # neither the training images' (0, 1, 2) nor the examples' (ui/examples.py)
TUMOURS = tuple(label for label in PHANTOM_CLASSES if label != "notumor")
BATCH = 50


@dataclass(frozen=True)
class Case:
    """One tumour as the models see it: pixels uint8 (side, side, channels), the lesion in pixels of those."""

    label: str
    pixels: Pixels
    lesion: Lesion


@dataclass(frozen=True)
class Rate:
    """Share of cases, with its 95% Wilson interval."""

    rate: float
    low: float
    high: float


def draw_cases(federation: Federation, n_per_class: int) -> list[Case]:
    """Tumours of new heads, each class from every scanner in turn."""
    side, colour = federation.model.image_size_px, federation.model.colour
    scanners = [hospital.id for hospital in federation.hospital if hospital.id in SCANNERS] or list(SCANNERS)
    cases = []
    for label in TUMOURS:
        for number in range(n_per_class):
            seed = [federation.phantom_seed or 0, STREAM, PHANTOM_CLASSES.index(label), number]
            scanner = SCANNERS[scanners[number % len(scanners)]]
            drawn, lesion = draw_slice(label, scanner, DRAWN_PX, np.random.default_rng(seed))
            assert lesion is not None  # every class in TUMOURS has one
            grey = fit(drawn, side)
            cases.append(Case(label, np.repeat(grey, 3, axis=2) if colour else grey, at_side(lesion, side)))
    return cases


def at_side(lesion: Lesion, side_px: int) -> Lesion:
    """A lesion of the drawn image, in pixels of the image resized to `side_px`."""
    scale = side_px / DRAWN_PX
    return Lesion((lesion.x + 0.5) * scale - 0.5, (lesion.y + 0.5) * scale - 0.5, lesion.radius * scale)


def maps_of(path: Path, cases: Sequence[Case]) -> tuple[npt.NDArray[np.int64], list[Map]]:
    """What one served graph makes of the cases: predicted classes (n,), and each case's maps (classes, h, w)."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    head = read_head(session.get_modelmeta().custom_metadata_map.get("head", ""), path)
    predicted, maps = [], []
    for start in range(0, len(cases), BATCH):
        images = np.stack([case.pixels for case in cases[start : start + BATCH]])
        logits, features = session.run(["logits", "feature_map"], {"image": images})
        predicted.append(logits.argmax(1))
        maps += [class_maps(feature_map, head) for feature_map in features]
    return np.concatenate(predicted), maps


def hits(lesion: Lesion, x: float, y: float, widened_px: float) -> bool:
    return math.hypot(x - lesion.x, y - lesion.y) <= lesion.radius + widened_px


def cells_that_hit(lesion: Lesion, n_cells: int, side_px: int, widened_px: float) -> npt.NDArray[np.bool_]:
    """For each cell of an n_cells x n_cells grid, row by row, whether pointing at its centre is a hit."""
    centres = (np.arange(n_cells) + 0.5) * side_px / n_cells - 0.5
    return np.array([hits(lesion, x, y, widened_px) for y in centres for x in centres])


def without_a_model(cases: Sequence[Case], n_cells: int, side_px: int, widened_px: float) -> dict[str, float]:
    """Chance: the mean share of cells that hit. Best fixed cell: one cell for all. Reachable: any cell would hit."""
    grid = np.stack([cells_that_hit(case.lesion, n_cells, side_px, widened_px) for case in cases])
    return {
        "chance": float(grid.mean()),
        "best_fixed_cell": float(grid.mean(0).max()),
        "reachable": float(grid.any(1).mean()),
    }


def measure(version: PublishedVersion, cases: Sequence[Case]) -> dict[str, Any]:
    """By model key: accuracy, and hit rates by rule (widened, strict) for the predicted and the true class's map."""
    federation = version.federation
    side = federation.model.image_size_px
    truth = np.array([federation.classes.index(case.label) for case in cases])
    report: dict[str, Any] = {"n": len(cases), "side_px": side, "models": {}}
    for model, entry in version.manifest.models.items():
        predicted, maps = maps_of(version.folder / entry.file, cases)
        n_cells = maps[0].shape[-1]
        rules = {"widened": side / n_cells / 2, "strict": 0.0}
        report["cells"] = n_cells
        report["without_a_model"] = {rule: without_a_model(cases, n_cells, side, wide) for rule, wide in rules.items()}
        scores: dict[str, Any] = {"accuracy": float((predicted == truth).mean())}
        for rule, wide in rules.items():
            for name, chosen in (("predicted", predicted), ("true", truth)):
                hit = [
                    hits(case.lesion, *peak(of_case[index], side), wide)
                    for case, of_case, index in zip(cases, maps, chosen, strict=True)
                ]
                scores[f"{rule}_{name}"] = asdict(Rate(sum(hit) / len(cases), *wilson(sum(hit), len(cases))))
                scores[f"{rule}_{name}_by_class"] = {
                    label: float(np.mean([h for h, case in zip(hit, cases, strict=True) if case.label == label]))
                    for label in TUMOURS
                }
        report["models"][model] = scores
    return report


def show(report: dict[str, Any]) -> None:
    console = Console(width=140)
    cells, side = report["cells"], report["side_px"]
    table = Table(
        "model",
        "accuracy",
        *(f"{rule}, {name} class" for rule in ("widened", "strict") for name in ("predicted", "true")),
        title=f"Pointing game, {report['n']} unseen tumours, {side} px, maps of {cells} x {cells} cells (goal: >= 80%)",
    )
    for model, scores in report["models"].items():
        rates = [Rate(**scores[f"{rule}_{name}"]) for rule in ("widened", "strict") for name in ("predicted", "true")]
        words = (f"{rate:.1%} ({low:.1%}-{high:.1%})" for rate, low, high in map(astuple, rates))
        table.add_row(model, f"{scores['accuracy']:.1%}", *words)
    console.print(table)
    console.print(
        f"widened: the peak lies in the lesion's disc widened by half a cell ({side / cells / 2:g} px), because a map "
        "cannot be finer; strict: in the disc itself. 95% Wilson intervals. Only a rate clear of those "
        "without a model shows that the maps point."
    )
    for rule, shares in report["without_a_model"].items():
        console.print(
            f"without a model, {rule}: any cell by chance {shares['chance']:.1%}, always the best cell "
            f"{shares['best_fixed_cell']:.1%}; some cell would hit in {shares['reachable']:.1%}"
        )


def main(
    source: Annotated[str, typer.Argument(help="A published model of the phantoms: NAME or NAME@vN")],
    models: Annotated[Path | None, typer.Option(help="Published models; default models/")] = None,
    n_per_class: Annotated[int, typer.Option("--images", help="Tumours per class", min=1)] = 100,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    try:
        version = find_source(models_folder(models), source)
        version.verify()
        if version.federation.phantom_seed is None or not set(TUMOURS) <= set(version.federation.classes):
            raise typer.BadParameter("was not trained on phantoms; only of those is it known where the tumour lies")
        report = measure(version, draw_cases(version.federation, n_per_class))
    except ConsiliumError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        Console().print_json(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    typer.run(main)
