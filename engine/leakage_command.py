"""`python -m engine leakage`: what of a run's training images its models and one update give away."""

import hashlib
import io
from typing import Annotated

import typer
from PIL import Image
from rich.table import Table

from engine.config import Federation
from engine.data.federation_data import read_federation_data
from engine.data.images import Pixels
from engine.options import Artifacts, DataFolder
from engine.results.files import write_bytes, write_json
from engine.results.leakage import Inversion, Leakage, Score, leakage_file, pictures_file
from engine.results.rounds import ALL
from engine.results.run_folder import artifacts_folder, find_run
from engine.results.words import count
from engine.terminal import output, progress_bar, say, stepper

N_STEPS = 600
SIDE_PX = 32


def measure_run_leakage(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="A finished run, run-NNN")],
    steps: Annotated[
        int, typer.Option(metavar="N", min=0, help="Of the search for each update's images; 0: no search")
    ] = N_STEPS,
    side: Annotated[
        int, typer.Option("--pixels", metavar="N", min=32, help="Larger images are scaled to this side for that search")
    ] = SIDE_PX,
    artifacts: Artifacts = None,
    data: DataFolder = None,
) -> None:
    """Attack a run: who was trained on, told by the loss, and images back out of one update."""
    from engine.federation.leakage import measure_leakage, require_measurable, require_same_images

    folder = artifacts_folder(artifacts)
    run = find_run(folder, run_name)
    require_measurable(run)
    with progress_bar() as bar:
        found = read_federation_data(run.federation, data, stepper(bar))
        require_same_images(run, found)
        result, pictures = measure_leakage(run, found, steps, side, stepper(bar))
    file, drawn = leakage_file(folder, run.name), pictures_file(folder, run.name)
    drawn.unlink(missing_ok=True)  # of an earlier measurement, or of another run that had this name
    if pictures is not None:
        content = _png(pictures)
        write_bytes(drawn, content)
        result["inversion"]["pictures_sha256"] = hashlib.sha256(content).hexdigest()
    write_json(file, result)
    _print(run.federation, Leakage.model_validate(result))
    say(f"Wrote {file}")


def _png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def _print(federation: Federation, result: Leakage) -> None:
    table = Table(title="Training images told from test images by the loss (AUC: 0.5 is a coin); 95% intervals")
    for column in ("Model", "Images of", "Trained on them", "AUC", "Found at 1% false alarms", "Images"):
        table.add_column(column, justify="left" if column in ("Model", "Images of") else "right")
    for row in result.membership:
        place = "all hospitals" if row.hospital == ALL else federation.display_name(row.hospital)
        found = "" if row.tpr is None else _interval(row.tpr)
        images = f"{row.n_members:,} and {row.n_others:,}"
        saw = "yes" if row.saw else "no (control)"
        table.add_row(federation.model_name(row.model), place, saw, _interval(row.auc), found, images)
    output().print(table)
    if result.inversion is not None:
        output().print(_inversion_table(federation, result.inversion))
    say(*(f"note: {note}" for note in result.notes), to=output())


def _inversion_table(federation: Federation, inversion: Inversion) -> Table:
    table = Table(
        title=f"Images back out of one update of {federation.display_name(inversion.hospital)}: structural similarity "
        f"(1: the same), means; {count(inversion.n_steps, 'step')} at {inversion.side_px} px"
    )
    for column in (
        "Update",
        "Images in it",
        "Rebuilt",
        "Mean image",
        "Best other image",
        "PSNR, dB",
        "Closer than both",
    ):
        table.add_column(column, justify="left" if column == "Update" else "right")
    for attack in inversion.attacks:
        means = [attack.mean(name) for name in ("ssim", "ssim_mean", "ssim_other")]
        cells = ["" if value is None else f"{value:.2f}" for value in means]
        better = f"{attack.n_better} of {len(attack.images)}"
        table.add_row(
            inversion.name(attack.variant), str(attack.batch_size), *cells, f"{attack.mean('psnr'):.1f}", better
        )
    return table


def _interval(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
