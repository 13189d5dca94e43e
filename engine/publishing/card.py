"""`card.md`: what a published version is, what it was taught with, how good it is, and what it must not be used for."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.config import EXTERNAL, Federation
from engine.inference.calibration import Calibration
from engine.results.files import write_text
from engine.results.metrics import ECE_BINS
from engine.results.published import Composite, PublishedFile
from engine.results.rounds import ALL
from engine.results.run_folder import Run
from engine.results.words import DISCLAIMER, SHARED_IMAGES, count, join_words, percent


def write_card(
    path: Path,
    run: Run,
    name: str,
    files: Mapping[str, PublishedFile],
    class_counts: Mapping[str, Mapping[str, int]],
    calibration: Calibration,
    composites: Collection[Composite],
) -> None:
    federation = run.federation
    test = run.read_json("evaluation.json")["splits"]["test"]
    lines = [
        f"# {federation.name} ({name})",
        "",
        f"**{DISCLAIMER}**",
        "",
        f"Made for {federation.intended_input}. Classes: {', '.join(federation.classes)}. Trained by {run.name}.",
        *(["", f"Simulated: {federation.simulated}"] if federation.simulated else []),
        *(["", f"Synthetic: {federation.synthetic}"] if federation.synthetic else []),
        *(["", f"Licence of the images: {federation.licence}"] if federation.licence else []),
        "",
        _recipe(run),
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
        *_scores(federation, test),
        "",
        *_external(federation, run.read_json("evaluation.json")["splits"].get(EXTERNAL)),
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
        *_calibration(federation, calibration),
        "",
        "## Limits",
        "",
        *_limits(run, test, composites),
        "",
    ]
    write_text(path, "\n".join(lines))


def _scores(federation: Federation, cells: Mapping[str, Any]) -> list[str]:
    """The federation's leading score first; of two classes what is missed and what is called falsely, too."""
    names = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro-F1"}
    if federation.headline != "macro_f1":
        names = {federation.headline: names[federation.headline]} | names
    errors = {"missed": "Missed", "false_alarms": "False alarms"} if federation.positive_class else {}
    return _table(
        ["Model", *errors.values(), *names.values(), "Images"],
        [
            [
                federation.model_name(model),
                *(f"{row[ALL][key]:,}" for key in errors),
                *(_score(row[ALL], key) for key in names),
                f"{row[ALL]['n_images']:,}",
            ]
            for model, row in cells.items()
        ],
    )


def _external(federation: Federation, cells: Mapping[str, Any] | None) -> list[str]:
    if cells is None:
        return []
    return [
        f"## Scores on the external test set, before quantisation: {federation.display_name(EXTERNAL)}",
        "",
        *_scores(federation, cells),
        "",
        "No model was trained on these images, and nothing was chosen by them.",
        "",
    ]


def _recipe(run: Run) -> str:
    federation = run.federation
    model, training = federation.model, federation.training
    start = {"none": "random weights", "imagenet": "ImageNet weights"}.get(model.weights)
    if start is None:
        start = f"the weights of {model.weights} (SHA-256 {run.config.starting_weights_sha256})"
    frozen = ", its backbone frozen" if model.freeze_backbone else ""
    colour = "colour" if model.colour else "grey"
    compression = federation.communication.compression
    sent = "" if compression == "none" else f", updates compressed by {compression}"
    return (
        f"Recipe: {model.architecture}{frozen} from {start}, {colour} images at {model.image_size_px} px, "
        f"{training.rounds:,} rounds of {count(training.local_epochs, 'local epoch')}, "
        f"aggregated by {federation.aggregation.strategy}{sent}.{_labels(federation)}"
    )


def _labels(federation: Federation) -> str:
    shares = {federation.display_name(one.id): federation.labelled_fraction(one) for one in federation.hospital}
    if all(share == 1 for share in shares.values()):
        return ""
    told = join_words([f"{percent(share, 0)} at {name}" for name, share in shares.items()])
    return f" Only a share of the training images' labels was used, {told}; the others took no part in this training."


def _calibration(federation: Federation, calibration: Calibration) -> list[str]:
    measured, promised = calibration.measured, percent(calibration.coverage, 0)
    if ALL not in measured["refused"]:
        return ["## Calibration", "", "The run has no test images, so the calibration is not measured."]
    refused = measured["refused"][ALL]
    rows = []
    for model, fitted in calibration.models.items():
        cell, sets = measured["calibration"][model][ALL], measured["sets"][model][ALL]
        rows.append(
            [
                federation.model_name(model),
                f"{fitted.temperature:.2f}",
                f"{cell['before']['ece']:.3f}",
                f"{cell['after']['ece']:.3f} ({_ends(cell['after']['interval'])})",
                f"{sets['coverage']:.3f} ({_ends(sets['interval'])})",
                f"{sets['mean_size']:.2f} ({_ends(sets['size_interval'])})",
                f"{sets['n_images']:,}",
            ]
        )
    return [
        "## Calibration, prediction sets and refusal, on the run's test images, as served",
        "",
        *_table(
            ["Model", "Temperature", "ECE before", "ECE after", f"Coverage of {promised} sets", "Mean size", "Images"],
            rows,
        ),
        "",
        f"In brackets 95% intervals; ECE over {ECE_BINS} bins. A local model's sets are promised for images like its "
        "own hospital's alone; the table shows them on all hospitals' images. The gate refuses "
        f"{percent(refused['share'])} ({_percents(refused['interval'])}) of these {refused['n_images']:,} images.",
    ]


def _percents(interval: list[float]) -> str:
    return "-".join(f"{100 * end:.1f}" for end in interval)


def _ends(interval: list[float]) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}"


def _score(cell: Mapping[str, Any], key: str) -> str:
    interval = cell["intervals"].get(key)
    return f"{cell[key]:.3f}" + (f" ({_ends(interval)})" if interval else "")


def _limits(run: Run, test: Mapping[str, Any], composites: Collection[Composite]) -> list[str]:
    """What the fit and the audit's own findings about the data make of the scores."""
    leading = next(iter(test.values()))[ALL]
    shared = run.read_json("evaluation.json")["shared_classes"]
    limits = [
        "- One validation set serves everything: it chose the best round, measured what quantisation cost, and fitted "
        "the temperatures, the prediction sets and the refusal gate's limits.",
        "- The shares of validation images that pass the gate's two halves (99% and 98.5%) were settled once, on "
        "brain-mri, after a look at what a first choice refused of that federation's test images.",
        "- The gate knows the training images by sums alone; what it lets pass may still be no image for these models.",
        f"- {SHARED_IMAGES}",
    ]
    if composites:
        limits.append(
            f"- Its examples are composites, each the average of {min(made.n_images for made in composites)} training "
            "images or more that are not too alike; of how many patients is not known where patients are not."
        )
    for finding in run.read_json("audit.json")["findings"]:
        sentence = f"{finding['sentence'][:1].upper()}{finding['sentence'][1:]}."
        if finding["kind"] == "patients-unknown":
            limits.append(f"- {sentence} Images of one patient may lie on both sides of a split.")
        elif finding["kind"] == "one-hospital-class":
            if len(shared) > 1:
                share = f"{leading['macro_f1_shared']:.3f}"
                sentence += f" Over the classes that several hospitals hold ({', '.join(shared)}), macro-F1 is {share}."
            limits.append(f"- {sentence}")
    return limits


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = [":--"] + ["--:"] * (len(header) - 1)
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in (header, rule, *rows)]
