"""The report as one A4 page of PDF.

It has the core fonts alone, which know Latin-1: other letters lose their accents or become "?" (see `latin`), and a
hospital or class whose name lost letters is told apart by its id or number. The JSON keeps every letter.
"""

import datetime
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from engine.data.images import Pixels
from engine.errors import DataError
from engine.inference.heatmap import overlay
from engine.inference.panel import Reading
from engine.inference.report import build_report, report_json
from engine.results.files import write_bytes
from engine.results.published import PublishedVersion
from engine.results.words import join_words, percent

if TYPE_CHECKING:
    from fpdf import FPDF  # 20 MB with its fontTools, and most readers of a page print nothing

WARNING = "This image was refused. The opinions below were asked for all the same: do not rely on them."
REFUSED = "The image was refused: the models give no opinion on it."

MAX_MODELS = 12  # on the page; the JSON holds all
SCALES = [0.93**step for step in range(16)]  # of type and pictures, until the page holds everything; 1 to 0.34
LEFT, WIDTH, TOP, BOTTOM = 12.0, 186.0, 11.0, 286.0  # mm, of A4's 210 x 297
LINE_MM = 0.43  # of one line per pt of type
OPACITY = 0.5
SIMULATED, TAIL = " (simulated)", 24
LETTERS = str.maketrans(
    {"œ": "oe", "Œ": "OE", "€": "EUR"} | dict(zip("łŁđĐħıŋ‐‑–—−‘’“”„", 'lLdDhin-----\'\'"""', strict=True))  # noqa: RUF001
)
Colour = tuple[int, int, int]
INK, GREY, PALE = (20, 24, 28), (88, 96, 104), (222, 226, 230)
FEDERATED, OTHERS, CAUTION = (47, 108, 179), (125, 135, 145), (176, 84, 0)


def write_report(
    reading: Reading, version: PublishedVersion, folder: Path, image_name: str, *, insisted: bool, made_at: str
) -> list[Path]:
    """Both files into a folder, named after the image ("image 1" -> image-1.pdf). Raises DataError, RunError."""
    report = build_report(reading, version, image_name=image_name, insisted=insisted, made_at=made_at)
    written = []
    for suffix, content in (("pdf", render_pdf(report, reading)), ("json", report_json(report))):
        path = folder / f"{image_name.replace(' ', '-')}.{suffix}"
        if path.exists():
            raise DataError(f"{path}: is there already; give --report a new folder")
        write_bytes(path, content)
        written.append(path)
    return written


def render_pdf(report: dict[str, Any], reading: Reading) -> bytes:
    """One A4 page of a report and the pictures of its reading. Equal input, equal bytes."""
    for scale in SCALES:
        page = _new_page(report, scale)
        y = _draw_image(page, report, reading, _draw_head(page, report, TOP))
        y = _draw_refusal(page, report, y) if report["refused"] else y
        if report["opinions"]:
            y = _draw_heatmaps(page, report, reading, _draw_opinions(page, report, y))
        if _draw_small_print(page, report, y) <= BOTTOM:
            break
    return bytes(page.pdf.output())


def latin(text: str) -> str:
    """Text in printable Latin-1, on one line: accents fall away where they must, any other letter becomes "?"."""
    text = unicodedata.normalize("NFC", text).translate(LETTERS)
    return re.sub(r"\s+", " ", "".join(map(_latin_letter, text))).strip()


def _latin_letter(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind in ("Cf", "Mn"):  # soft hyphens, direction marks, accents that combine with nothing here
        return ""
    if kind == "Cc" or kind.startswith("Z"):
        return " "
    plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if ord(part) < 256)
    return letter if ord(letter) < 256 else plain or "?"


def _shown(name: str, otherwise: str) -> str:
    """A name for the page; one that lost letters is led by `otherwise`, so that "???" and "???" stay two."""
    shown = latin(name)
    return shown if shown and shown.count("?") == name.count("?") else f"{otherwise}: {shown}"


def _class(report: dict[str, Any], label: str) -> str:
    classes = report["federation"]["classes"]
    return _shown(label, f"class {classes.index(label) + 1}" if label in classes else "class")


def _set(report: dict[str, Any], labels: Sequence[str]) -> str:
    """A prediction set in words: "pituitary or meningioma"."""
    if len(labels) == len(report["federation"]["classes"]) > 4:
        return f"any of the {len(labels)} classes"
    return join_words([_class(report, label) for label in labels], "or")


def _name(model: str, opinion: dict[str, Any]) -> str:
    return _shown(opinion["name"], model.removeprefix("local/"))


@dataclass(frozen=True)
class _Page:
    """A page being drawn. Places and widths in mm from the top left; `scale` shrinks type and pictures."""

    pdf: "FPDF"
    scale: float

    def write(
        self,
        text: str,
        x: float,
        y: float,
        width: float,
        size: float = 8,
        bold: bool = False,
        colour: Colour = INK,
        most: int = 2,
    ) -> float:
        """Text wrapped to a width, cut with "..." after the `most` lines; returns the y below it."""
        self.pdf.set_font("Helvetica", "B" if bold else "", size * self.scale)
        self.pdf.set_text_color(*colour)
        for line in self._lines(latin(text), width, most):
            self.pdf.text(x, y + 0.76 * LINE_MM * size * self.scale, line)
            y += LINE_MM * size * self.scale
        return y

    def rule(self, y: float, colour: Colour = PALE) -> float:
        self.fill(LEFT, y, WIDTH, 0.2, colour)
        return y + 1.6 * self.scale

    def fill(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        self.pdf.set_fill_color(*colour)
        self.pdf.rect(x, y, width, height, style="F")

    def picture(self, pixels: Pixels, x: float, y: float, side: float, description: str) -> float:
        rgb = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
        self.pdf.image(Image.fromarray(rgb), x, y, side, side, alt_text=latin(description))
        return y + side + 1.2 * self.scale

    def _lines(self, text: str, width: float, most: int) -> list[str]:
        lines = self._split(text, width)
        tail = text[-TAIL:] if text.endswith(SIMULATED) else ""  # that it is simulated, and what sets it apart
        kept = sum(map(len, lines[:most])) - len(tail)
        while len(lines) > most and kept > 0:
            lines = self._split(f"{text[:kept].rstrip()}...{tail}", width)
            kept -= 1
        return lines[:most]

    def _split(self, text: str, width: float) -> list[str]:
        return cast("list[str]", self.pdf.multi_cell(width, 1, text, align="L", dry_run=True, output="LINES"))


def _new_page(report: dict[str, Any], scale: float) -> _Page:
    from fpdf import FPDF

    pdf = FPDF(format="A4")
    pdf.set_auto_page_break(False)
    pdf.alias_nb_pages("")  # a hospital called "{nb}" keeps its name
    pdf.c_margin = 0
    pdf.set_title(f"Consilium report on {report['image']}")
    pdf.set_lang("en")
    pdf.set_creation_date(datetime.datetime.fromisoformat(report["made_at"]))
    pdf.add_page()
    return _Page(pdf, scale)


def _draw_head(page: _Page, report: dict[str, Any], y: float) -> float:
    made_at = datetime.datetime.fromisoformat(report["made_at"])
    y = page.write(f"Consilium report on {report['image']}", LEFT, y, WIDTH, 16, bold=True)
    served = f"{report['published']['name']} {report['published']['version']}"
    said = f"{report['federation']['name']}, {served}. Made {made_at:%Y-%m-%d %H:%M} UTC."
    y = page.write(said, LEFT, y, WIDTH, 9, colour=GREY) + 1.5 * page.scale
    height = 8 * page.scale
    page.fill(LEFT, y, WIDTH, height, INK)
    page.write(report["disclaimer"], LEFT + 3, y + 1.3 * page.scale, WIDTH - 6, 12.5, bold=True, colour=(255, 255, 255))
    return y + height + 3 * page.scale


def _draw_image(page: _Page, report: dict[str, Any], reading: Reading, y: float) -> float:
    """What the models saw, and beside it what it is to be read with."""
    side, px = 42 * page.scale, report["preprocessing"]["side_px"]
    below = page.picture(reading.pixels, LEFT, y, side, "The image as the models saw it")
    below = page.write(f"As the models saw it, {px} x {px} px", LEFT, below, side, 7, colour=GREY)
    federation, own, x = report["federation"], report["own_reading"], LEFT + side + 6
    for topic, said in (
        ("An example", report["example"].rstrip(":")),
        ("Made for", federation["intended_input"]),
        ("Reader's own label", f"{_class(report, own)}, noted before any opinion was shown" if own else ""),
        ("Read as", _read_as(report)),
        ("Image quality", " ".join(report["remarks"])),
        ("Simulated", federation["simulated"]),
        ("Synthetic", federation["synthetic"]),
        ("Licence", federation["licence"]),
    ):
        if said:
            topped = page.write(topic, x, y, 29, 8, bold=True)
            y = max(topped, page.write(said, x + 31, y, LEFT + WIDTH - x - 31, 8, most=5)) + 1.2 * page.scale
    return max(y, below) + 2 * page.scale


def _read_as(report: dict[str, Any]) -> str:
    """The reader's own choices of a DICOM file; empty where there were none."""
    frame, window = report["frame"], report["window"]
    said = [f"frame {frame:,}"] if frame else []
    if window:
        chosen = f"the reader's window, centre {window['centre']:g} and width {window['width']:g}"
        said.append(f"{chosen}, which is not the one the models were trained with")
    return "; ".join(said)


def _draw_refusal(page: _Page, report: dict[str, Any], y: float) -> float:
    top, x, width = y, LEFT + 5, WIDTH - 8
    said = WARNING if report["opinions"] else REFUSED
    y = page.write(said, x, y + 1.5 * page.scale, width, 11, bold=True, colour=CAUTION)
    meant = f"The models were made for {report['federation']['intended_input']}."
    for sentence in (*report["reasons"], meant):
        y = page.write(sentence, x, y + page.scale, width, 9, most=3)
    y += 1.5 * page.scale
    page.fill(LEFT, top, 1.2, y - top, CAUTION)
    return y + 3 * page.scale


def _draw_opinions(page: _Page, report: dict[str, Any], y: float) -> float:
    """A row per model: name, label with its bar, prediction set, and all other probabilities."""
    coverage = report["set_coverage"]
    page.write("Model", LEFT + 4, y, 54, 7, colour=GREY)
    page.write(f"Says, with its {'calibrated' if coverage else 'own'} probability", LEFT + 62, y, 54, 7, colour=GREY)
    held = f"Prediction set ({percent(coverage, 0)})" if coverage else "Top class"
    y = page.write(held, LEFT + 122, y, 64, 7, colour=GREY)
    y = page.rule(y + 0.6 * page.scale, GREY)
    for model, opinion in list(report["opinions"].items())[:MAX_MODELS]:
        y = _draw_opinion(page, report, model, opinion, y)
    hidden = len(report["opinions"]) - MAX_MODELS
    if hidden > 0:
        y = page.write(f"{hidden} more opinions stand in this report's JSON alone.", LEFT, y, WIDTH, 8, bold=True)
    return page.write(" ".join(report["notes"]), LEFT, y, WIDTH, 7.5, most=3) + 3 * page.scale


def _draw_opinion(page: _Page, report: dict[str, Any], model: str, opinion: dict[str, Any], y: float) -> float:
    leads = model == "global"
    top, size, colour = y, 11.5 if leads else 8.5, FEDERATED if leads else OTHERS
    ranked = sorted(opinion["probabilities"].items(), key=lambda item: (-item[1], item[0] != opinion["label"]))
    value = opinion["probabilities"][opinion["label"]]
    named = page.write(_name(model, opinion), LEFT + 4, y, 54, size, bold=True)
    if opinion["never_trained_on"]:
        missing = f"never trained on {_set(report, opinion['never_trained_on'])}"
        named = page.write(missing, LEFT + 4, named, 54, 7, colour=CAUTION, most=3)
    said = page.write(_class(report, opinion["label"]), LEFT + 62, y, 38, size, bold=True)
    page.write(percent(value), LEFT + 103, y, 17, size)
    page.fill(LEFT + 62, said + 0.3, 54, 1.5 * page.scale, PALE)
    page.fill(LEFT + 62, said + 0.3, 54 * value, 1.5 * page.scale, colour)
    held = page.write(_set(report, opinion["prediction_set"]), LEFT + 122, y, 64, 9 if leads else 8, most=8)
    rest = ", ".join(f"{_class(report, label)} {percent(share)}" for label, share in ranked[1:])
    y = max(said + 2.6 * page.scale, held + 0.8 * page.scale)
    y = max(named, page.write(rest, LEFT + 62, y, WIDTH - 62, 7, colour=GREY)) + 1.2 * page.scale
    page.fill(LEFT, top, 1.2 if leads else 0.5, y - top - 0.6, colour)
    return page.rule(y, GREY if leads else PALE)


def _draw_heatmaps(page: _Page, report: dict[str, Any], reading: Reading, y: float) -> float:
    """One picture per model, for its own label; the federation's class order is the order of the maps."""
    models = [model for model in report["opinions"] if model in reading.maps][:MAX_MODELS]
    if not models:
        return y
    words = "Where each model saw evidence for its own label: where, not how much. Colours do not compare models."
    y = page.write(words, LEFT, y, WIDTH, 8, bold=True) + page.scale
    step, below = min(37.0, WIDTH / len(models)), y
    for place, model in enumerate(models):
        opinion, x = report["opinions"][model], LEFT + place * step
        cells = reading.maps[model][report["federation"]["classes"].index(opinion["label"])]
        name, label = _name(model, opinion), _class(report, opinion["label"])
        side, width = min(step - 2, 30 * page.scale), step - 2
        under = page.picture(overlay(reading.pixels, cells, OPACITY), x, y, side, f"{name}: evidence for {label}")
        under = page.write(name, x, under, width, 6.5, bold=True, most=3)
        under = page.write(label, x, under, width, 6.5)
        coarse = f"coarse: {cells.shape[1]} x {cells.shape[0]} cells" + ("" if cells.max() > 0 else ", none for it")
        below = max(below, page.write(coarse, x, under, width, 6.5, colour=GREY))
    return below + 3 * page.scale


def _draw_small_print(page: _Page, report: dict[str, Any], y: float) -> float:
    published, prepared, gate = report["published"], report["preprocessing"], report["gate"]
    limits = (
        f"Refusal gate: limits {gate['features_limit']:.4g} (features) and {gate['statistics_limit']:.4g} (image "
        f"statistics), which {percent(gate['passed'])} of {gate['n_images']:,} validation images pass."
        if gate
        else "No calibration, no refusal gate."
    )
    y = page.rule(y, GREY)
    served = (
        f"{published['name']} {published['version']}, published {published['published_at'][:10]}, from "
        f"{published['run']} (manifest {published['run_manifest_sha256'][:12]}). Hashes: SHA-256, first 12 digits; "
        f"whole in the JSON. Preprocessing: {prepared['rule']}; {prepared['side_px']} x {prepared['side_px']} px, "
        f"{'colour' if prepared['colour'] else 'grey'}. {limits}"
    )
    y = page.write(served, LEFT, y, WIDTH, 6.5, colour=GREY, most=6)
    models = list(published["models"].values())[:MAX_MODELS]
    rows = -(-len(models) // 2)
    top, bottom = y + 0.6 * page.scale, y
    for x, column in ((LEFT, models[:rows]), (LEFT + 94, models[rows:])):
        y = top
        for entry in column:
            fitted = ""
            if entry["temperature"] is not None:
                fitted = f", temperature {entry['temperature']:.3f}, set threshold {entry['set_threshold']:.4f}"
            words = f"{entry['file']} {entry['precision']} {entry['sha256'][:12]}{fitted}"
            y = page.write(words, x, y, 91, 6, colour=GREY)
        bottom = max(bottom, y)
    return bottom
