"""Commands that ask models: `evaluate` on folders of labelled images, `predict` on single ones."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.data.labels import nearest_class
from engine.errors import ConfigError, ConsiliumError, ImageError
from engine.inference.panel import Panel, open_panel
from engine.options import Artifacts, Models
from engine.results.files import write_json
from engine.results.published import find_source, models_folder
from engine.results.run_folder import RUN_NAME, artifacts_folder, find_run, now
from engine.terminal import print_opinions, print_scores, progress_bar, say

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="run-NNN, NAME (served version) or NAME@vN")]


def evaluate(
    source: Source,
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="One folder per class")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all metrics there")] = None,
    artifacts: Artifacts = None,
    models: Models = None,
) -> None:
    """Score every model of a run or a published version on folders of labelled images."""
    from engine.inference.evaluate import evaluate_folder

    panel = _open_source(source, artifacts, models)
    with progress_bar() as bar:
        task = bar.add_task("Evaluating", total=None)
        scores, left_out = evaluate_folder(panel, images, lambda done, of: bar.update(task, completed=done, total=of))
    for folder in left_out.folders:
        close = nearest_class(folder, panel.federation.classes)
        hint = f" (did it mean {close}?)" if close else ""
        say(f"left out: folder '{folder}' names no class{hint}")
    for path, reason in left_out.images:
        say(f"left out: {path}: {reason}")
    n_images = next(iter(scores.values()))["n_images"]
    if json_file is not None:
        write_json(json_file, {"source": source, "images": n_images, "models": scores})
    print_scores(panel.federation, scores, title=f"{images}")


def predict(
    source: Source,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="PNG, JPEG or DICOM")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, everything else on stderr")] = False,
    insist: Annotated[bool, typer.Option(help="Opinions on refused images too, marked as refused")] = False,
    frame: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of a DICOM file with several, from 1")] = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="A PDF and JSON per image, nameless")] = None,
    artifacts: Artifacts = None,
    models: Models = None,
) -> None:
    """What every model of a run or a published version says about each image, and whether it is refused."""
    panel = _open_source(source, artifacts, models)
    version = None
    if report is not None:
        if RUN_NAME.fullmatch(source):
            raise ConfigError("--report needs a published version, whose hashes it names: publish the run first")
        version = find_source(models_folder(models), source)
    answers: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, image in enumerate(images, start=1):
        try:
            reading = panel.read(Path(image), frame=None if frame is None else frame - 1, insist=insist)
        except ImageError as error:
            problems.append(f"{image}: {error}")
            answers.append({"image": image, "refused": True, "reasons": [str(error)], "opinions": {}})
            continue
        opinions = {model: dataclasses.asdict(opinion) for model, opinion in reading.opinions.items()}
        answers.append(
            {"image": image, "refused": reading.refused, "reasons": list(reading.reasons), "opinions": opinions}
        )
        if report is not None and version is not None:
            from engine.inference.report_page import write_report

            try:
                paths = write_report(reading, version, report, f"image {number}", insisted=insist, made_at=now())
            except ConsiliumError as error:  # the answers are still printed
                problems.append(str(error))
            else:
                say(*(f"Wrote {path}" for path in paths))
    if as_json:
        typer.echo(json.dumps(answers, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_opinions(panel.federation, answers, calibrated=panel.calibration is not None)
    if problems:
        raise ImageError("; ".join(problems))


def _open_source(source: str, artifacts: Path | None, models: Path | None) -> Panel:
    """run-NNN scores its own weights in torch; NAME and NAME@vN need nothing but ONNX Runtime."""
    if RUN_NAME.fullmatch(source):
        from engine.publishing.run_panel import open_run_panel

        return open_run_panel(find_run(artifacts_folder(artifacts), source))
    return open_panel(find_source(models_folder(models), source))
