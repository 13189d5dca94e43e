"""How often a version's gate refuses images of the wrong kind, and test images of its own federation.

Kinds that need a data set (photographs, other modalities) are measured where it lies under $CONSILIUM_DATA. The gate's
limits are quantiles of validation images. Which quantiles (FEATURES_PASS, STATISTICS_PASS in publishing/calibrate.py)
was settled after one look at this table for brain-mri, where the first choice refused more of its test images than 5%.
"""

import io
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from intervals import wilson
from pairs import show
from PIL import Image, ImageDraw, ImageFont, ImageOps

from engine.inference.panel import Panel, open_panel
from engine.results.published import PublishedVersion, find_source, models_folder
from engine.results.run_folder import artifacts_folder, find_run

Pictures = Iterator[Image.Image]
TEXT = """patient report findings normal image brain with contrast and of the no evidence clinical history signed
doctor hospital date lesion left right mm axial sequence weighted settings file edit view open save password search"""
WORDS = TEXT.split()
SIZES_PT = (10, 14, 20)


def photographs(root: Path, rng: np.random.Generator, n: int, side_px: int = 0, *, grey: bool = False) -> Pictures:
    """CIFAR-10's test images at 32 px, or enlarged so that size alone does not give them away."""
    with zipfile.ZipFile(root / "cifar10" / "cifar10-test.zip") as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png"))]
        for index in rng.choice(len(names), n, replace=False):
            picture = Image.open(io.BytesIO(archive.read(names[index]))).convert("L" if grey else "RGB")
            yield picture.resize((side_px, side_px), Image.Resampling.BICUBIC) if side_px else picture


def photograph_crops(rng: np.random.Generator, n: int, *, grey: bool = False) -> Pictures:
    """Crops of scikit-learn's two full-size photographs."""
    from sklearn.datasets import load_sample_images

    wholes = [Image.fromarray(picture) for picture in load_sample_images().images]
    for number in range(n):
        whole = wholes[number % len(wholes)]
        width = int(rng.integers(120, 400))
        height = min(whole.height, int(width * rng.uniform(0.7, 1.3)))
        left, top = int(rng.integers(0, whole.width - width)), int(rng.integers(0, whole.height - height + 1))
        yield whole.crop((left, top, left + width, top + height)).convert("L" if grey else "RGB")


def files(folder: Path, rng: np.random.Generator, n: int) -> Pictures:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for index in rng.choice(len(found), min(n, len(found)), replace=False):
        yield Image.open(found[index])


def noise(rng: np.random.Generator, n: int) -> Pictures:
    """Uniform in colour and in grey, Gaussian about some grey, and clouds."""
    for number in range(n):
        side = int(rng.integers(64, 300))
        if number % 4 == 0:
            values = rng.integers(0, 256, (side, side, 3))
        elif number % 4 == 1:
            values = rng.integers(0, 256, (side, side))
        elif number % 4 == 2:
            values = np.clip(rng.normal(rng.uniform(20, 200), rng.uniform(5, 60), (side, side)), 0, 255)
        else:
            coarse = Image.fromarray(rng.integers(0, 256, (side // 8 + 1, side // 8 + 1), dtype=np.uint8))
            values = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
        yield Image.fromarray(values.astype(np.uint8))


def blank(rng: np.random.Generator, n: int) -> Pictures:
    for number in range(n):
        size = int(rng.integers(50, 500)), int(rng.integers(50, 500))
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        yield Image.new("RGB", size, colour if number % 2 else (colour[0],) * 3)


def documents(rng: np.random.Generator, n: int) -> Pictures:
    """Pages of black text on white, filled to different heights."""
    chosen = random.Random(int(rng.integers(2**32)))
    fonts = [ImageFont.load_default(size) for size in SIZES_PT]
    for _ in range(n):
        page = Image.new("L", (int(rng.integers(300, 900)), int(rng.integers(300, 1100))), 255)
        pen, y = ImageDraw.Draw(page), 20
        while y < page.height * rng.uniform(0.5, 1):
            number = chosen.randrange(len(fonts))
            pen.text((20, y), " ".join(chosen.choices(WORDS, k=max(1, page.width // 60))), fill=0, font=fonts[number])
            y += int(SIZES_PT[number] * 1.4)
        yield page


def screens(rng: np.random.Generator, n: int) -> Pictures:
    """Windows with a sidebar, boxes and labels, light and dark by turns."""
    chosen = random.Random(int(rng.integers(2**32)))
    font = ImageFont.load_default(14)
    for number in range(n):
        ground, ink = ((24, 26, 32), (230,) * 3) if number % 2 else ((248, 249, 251), (30,) * 3)
        screen = Image.new("RGB", (int(rng.integers(600, 1400)), int(rng.integers(400, 900))), ground)
        pen = ImageDraw.Draw(screen)
        pen.rectangle((0, 0, screen.width // 5, screen.height), fill=tuple(int(c * 0.9) for c in ground))
        for line in range(8):
            pen.text((12, 30 + line * 30), chosen.choice(WORDS), fill=ink, font=font)
        for box in range(int(rng.integers(2, 7))):
            x, y = int(rng.integers(screen.width // 5, screen.width - 120)), int(rng.integers(40, screen.height - 80))
            end = x + int(rng.integers(80, 300)), y + int(rng.integers(40, 200))
            fill = tuple(map(int, rng.integers(40, 230, 3))) if box % 2 else ground
            pen.rectangle((x, y, *end), fill=fill, outline=ink)
            pen.text((x + 6, y + 6), " ".join(chosen.choices(WORDS, k=3)), fill=ink, font=font)
        yield screen


def test_images(version: PublishedVersion, data: Path, artifacts: Path) -> list[Path]:
    """The test split of the run that the version was made from."""
    run = find_run(artifacts, version.manifest.run)
    rows = run.read_json("dataset_splits.json")["images"]
    return [data / row["path"] for row in rows if row["split"] == "test"]


def refusal_rate(panel: Panel, pictures: Pictures) -> dict[str, object]:
    refused = [panel.read(_png(picture)).refused for picture in pictures]
    low, high = wilson(sum(refused), len(refused))
    share = sum(refused) / len(refused)
    return {"images": len(refused), "refused": share, "95% interval": f"{low:.3f}-{high:.3f}"}


def main(
    name: Annotated[str, typer.Argument(help="A published model: NAME or NAME@vN")],
    images: Annotated[int, typer.Option(help="Images of each kind")] = 200,
    seed: int = 0,
    models: Annotated[Path | None, typer.Option(help="Published models; default models/")] = None,
    artifacts: Annotated[Path | None, typer.Option(help="Run folders; default artifacts/")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    version = find_source(models_folder(models), name)
    panel = open_panel(version)
    root = Path(os.environ.get("CONSILIUM_DATA", "data"))
    own = test_images(version, root / version.federation.data, artifacts_folder(artifacts))

    def scans(change: Callable[[Image.Image], Image.Image] = lambda scan: scan) -> Pictures:
        return (change(Image.open(path)) for path in own)

    kinds: dict[str, Callable[[np.random.Generator], Pictures]] = {
        "own test images (goal <= 0.05)": lambda rng: scans(),
        "photographs, crops": lambda rng: photograph_crops(rng, images),
        "photographs, crops, grey": lambda rng: photograph_crops(rng, images, grey=True),
        "noise": lambda rng: noise(rng, images),
        "blank": lambda rng: blank(rng, images),
        "documents": lambda rng: documents(rng, images),
        "screens": lambda rng: screens(rng, images),
        "own, inverted": lambda rng: scans(lambda scan: ImageOps.invert(scan.convert("RGB"))),
        "own, turned by 90 degrees": lambda rng: scans(lambda scan: scan.rotate(90, expand=True)),
        "own, upside down": lambda rng: scans(lambda scan: scan.rotate(180)),
    }
    if (root / "cifar10").is_dir():
        kinds["photographs, 32 px"] = lambda rng: photographs(root, rng, images)
        kinds["photographs, 32 px enlarged to 224"] = lambda rng: photographs(root, rng, images, 224)
        kinds["photographs, enlarged, grey"] = lambda rng: photographs(root, rng, images, 224, grey=True)
    for folder in ("brain-mri", "chest-xray", "ham10000"):
        if folder != version.federation.data and (root / folder).is_dir():
            kinds[f"other modality: {folder}"] = lambda rng, folder=folder: files(root / folder, rng, images)
    rows = {kind: refusal_rate(panel, make(np.random.default_rng(seed))) for kind, make in kinds.items()}
    show(f"Refused by {name} (goal: each wrong kind >= 0.95)", rows, as_json=as_json)


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


if __name__ == "__main__":
    typer.run(main)
