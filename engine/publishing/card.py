"""`card.md`: what a published version is, what it was taught with, how good it is, and what it must not be used for."""

from collections.abc import Mapping
from pathlib import Path

from engine.config import Federation
from engine.results.published import PublishedFile
from engine.results.rounds import ALL
from engine.results.run_folder import Run


def write_card(
    path: Path,
    run: Run,
    name: str,
    files: Mapping[str, PublishedFile],
    class_counts: Mapping[str, Mapping[str, int]],
) -> None:
    federation = run.federation
    test = run.read_json("evaluation.json")["splits"]["test"]
    lines = [
        f"# {federation.name} ({name})",
        "",
        "**Research demonstration, not for diagnosis.**",
        "",
        f"Made for {federation.intended_input}. Classes: {', '.join(federation.classes)}. Trained by {run.name}.",
        *(["", f"Simulated: {federation.simulated}"] if federation.simulated else []),
        *(["", f"Synthetic: {federation.synthetic}"] if federation.synthetic else []),
        "",
        "## Training images by hospital",
        "",
        *_table(
            ["Hospital", *federation.classes],
            [
                [federation.display_name(hospital), *(f"{counts[label]:,}" for label in federation.classes)]
                for hospital, counts in class_counts.items()
            ],
        ),
        "",
        "## Scores on the run's test images, all hospitals, before quantisation",
        "",
        *_table(
            ["Model", "Accuracy", "Balanced accuracy", "Macro-F1", "Images"],
            [
                [
                    federation.model_name(model),
                    *(f"{cells[ALL][key]:.3f}" for key in ("accuracy", "balanced_accuracy", "macro_f1")),
                    f"{cells[ALL]['n_images']:,}",
                ]
                for model, cells in test.items()
            ],
        ),
        "",
        "## What is served, and what quantisation cost on validation images",
        "",
        *_table(
            ["Model", "Precision", "Accuracy before", "Accuracy after", "Images"],
            [
                [
                    federation.model_name(model),
                    file.precision + (f" ({file.note})" if file.note else ""),
                    f"{file.accuracy_before:.3f}",
                    f"{file.accuracy_after:.3f}",
                    f"{file.validation_images:,}",
                ]
                for model, file in files.items()
            ],
        ),
        "",
        "## Limits",
        "",
        *_limits(federation),
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _limits(federation: Federation) -> list[str]:
    limits = [
        "- The same validation images chose the best round and measured what quantisation cost.",
        "- Probabilities are not calibrated, and no image is refused yet: the version holds no calibration.json.",
        "- The models share training images, so their agreement is no independent evidence.",
    ]
    if federation.split.patient_pattern is None:
        limits.append(
            "- Patients unknown: these figures flatter; expect a fall elsewhere. Images of one patient may lie on both "
            "sides of a split; only exact copies and look-alikes are kept on one side."
        )
    return limits


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = [":--"] + ["--:"] * (len(header) - 1)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (header, rule, *rows)]
