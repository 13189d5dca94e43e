"""Five opinions on one image, decoding included, against five bare ONNX Runtime session runs on the decoded image."""

from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import typer
from pairs import show, summarise, time_pairs

from engine.inference.panel import THREADS, open_panel
from engine.results.published import find_source, models_folder


def main(
    source: Annotated[str, typer.Argument(help="A published model: NAME or NAME@vN")],
    image: Annotated[Path, typer.Argument(help="PNG, JPEG or DICOM")],
    models: Annotated[Path | None, typer.Option(help="Published models; default models/")] = None,
    readings: Annotated[int, typer.Option(help="Readings timed together in one turn")] = 20,
    repeats: Annotated[int, typer.Option(help="Turns of each")] = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    version = find_source(models_folder(models), source)
    panel = open_panel(version)
    content = image.read_bytes()
    ready = np.stack([panel.prepare(content)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    sessions = [
        onnxruntime.InferenceSession(str(version.folder / entry.file), options, providers=["CPUExecutionProvider"])
        for entry in version.manifest.models.values()
    ]

    def ours() -> None:
        for _ in range(readings):
            panel.read(content)

    def bare() -> None:
        for _ in range(readings):
            for session in sessions:
                session.run(["logits"], {"image": ready})

    row = summarise(time_pairs(ours, bare, repeats))
    side = version.federation.model.image_size_px
    name = f"{readings} readings by {len(sessions)} models, {side} px, {THREADS} threads"
    show("Opinions against bare session runs (goal: ratio <= 1.15)", {name: row}, as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
