"""Where on the image a model saw evidence for a class: exact class activation maps, and pictures of them.

Every network here ends in global average pooling and one linear head, so a map is the head applied before the pooling
(Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016): no gradient, no second pass.

A map is as coarse as the last feature map (2 x 2 cells for a ResNet18 at 64 px): a picture of it is smooth because it
was enlarged, not because the model saw that finely. Nor does a cell see only its own part of the image: its receptive
field may be all of it, and then the cell's place says little. `benchmarks/pointing.py` measures what it says.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.data.images import Pixels
from engine.errors import ModelError

Map = npt.NDArray[np.float32]

# viridis (Smith & van der Walt, matplotlib), every eighth of it: perceptually uniform and safe for colour-blind eyes.
# Not cividis, whose middle is the grey of the anatomy beneath.
EVIDENCE = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
# From -1 to 1: ColorBrewer's oranges (PuOr) and blues (RdBu), ends of like lightness that show on a dark image too.
DIFFERENCE = ("#e08214", "#fdb863", "#f7f7f7", "#92c5de", "#4393c3")


@dataclass(frozen=True)
class Head:
    """A network's last layer: float32 weight (classes, channels) and bias (classes,)."""

    weight: Map
    bias: Map


def read_head(metadata: str, path: Path) -> Head:
    """The head from the value of "head" in the metadata of the served graph at `path`.

    JSON {"weight": base64 of little-endian float32 (classes, channels), "bias": likewise (classes,)}.
    Raises ModelError naming `path` where it is anything else.
    """
    try:
        parts = json.loads(metadata)
        weight, bias = (np.frombuffer(base64.b64decode(parts[key], validate=True), "<f4") for key in ("weight", "bias"))
        head = Head(weight.reshape(len(bias), -1).astype(np.float32), bias.astype(np.float32))
        if not weight.size or not np.isfinite(weight).all() or not np.isfinite(bias).all():
            raise ValueError("its numbers are missing or not finite")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path}: the head in its metadata cannot be read ({error}); publish the run anew") from None
    return head


def class_maps(feature_map: Map, head: Head) -> Map:
    """float32 (classes, h, w) of one image's feature map (channels, h, w).

    Exact: the mean over a map's cells plus the class's bias is the class's logit. Positive speaks for the class,
    negative against it. Raises ModelError where map and head are not of one model.
    """
    channels = head.weight.shape[1]
    if feature_map.ndim != 3 or len(feature_map) != channels:
        shape = " x ".join(map(str, feature_map.shape))
        raise ModelError(f"its feature map is {shape}, but its head reads {channels} channels; publish the run anew")
    return np.tensordot(head.weight, feature_map.astype(np.float32), 1).astype(np.float32)


def enlarge(cells: Map, side_px: int) -> Map:
    """A map (h, w) at the model's side (side_px, side_px), bilinear.

    The centre of cell i lies (i + 0.5) * side_px / h from the edge, that of pixel j at j + 0.5; beyond the outermost
    cell centres the value is held. A map that has this side already comes back as it is.
    """
    image = Image.fromarray(np.ascontiguousarray(cells, np.float32))
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR))


def peak(cells: Map, side_px: int) -> tuple[float, float]:
    """The centre (x, y) of the map's highest cell, in pixels of the model's image: pixel (0, 0)'s centre is 0, 0.

    The first of equals, row by row. A map without positive evidence has a peak too: where least speaks against.
    """
    height, width = cells.shape
    row, column = np.unravel_index(int(np.argmax(cells)), cells.shape)
    return (float(column) + 0.5) * side_px / width - 0.5, (float(row) + 0.5) * side_px / height - 0.5


def overlay(pixels: Pixels, cells: Map, opacity: float) -> Pixels:
    """The image (side, side, 1 or 3) with one map (h, w) of any size over it: uint8 RGB (side, side, 3).

    Only evidence for the class is drawn, as a share of this map's own highest cell: it shows where, never how much,
    and two overlays' colours do not compare models. A pixel's colour covers it by `opacity` (0 to 1) times that share,
    so the anatomy stays visible; a map without positive evidence leaves the image as it is.
    """
    share = _positive_share(cells, len(pixels))
    return _blend(pixels, _colours(share, EVIDENCE), share, opacity)


def difference_overlay(pixels: Pixels, a: Map, b: Map, opacity: float) -> Pixels:
    """Where model a (blue) and model b (orange) look, one less the other: uint8 RGB (side, side, 3), as `overlay`.

    Each map first becomes what `overlay` draws of it, its evidence for the class as a share of its own highest cell.
    Two models' logits share no scale, so their raw difference would mostly show which one is louder. The colours then
    always span -1 to 1 and are never stretched to the difference at hand: two models that agree leave the image as it
    is. Where one has no positive evidence, the other's overlay remains.
    """
    difference = _positive_share(a, len(pixels)) - _positive_share(b, len(pixels))
    return _blend(pixels, _colours((difference + 1) / 2, DIFFERENCE), np.abs(difference), opacity)


def legend_colours(kind: Literal["evidence", "difference"]) -> list[str]:
    """Hex colours, evenly spaced: evidence from none to the map's highest, or difference from all b to all a."""
    return list(EVIDENCE if kind == "evidence" else DIFFERENCE)


def _positive_share(cells: Map, side_px: int) -> Map:
    """Evidence for the class, 0 to 1 of the map's highest cell, at (side_px, side_px); zeros where there is none."""
    highest = cells.max()
    if not (np.isfinite(highest) and highest > 0):
        return np.zeros((side_px, side_px), np.float32)
    return np.clip(enlarge(cells / highest, side_px), 0, 1)


def _colours(values: npt.NDArray[np.floating], anchors: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Values 0 to 1 (h, w) -> RGB 0 to 255 (h, w, 3) on the scale through `anchors`."""
    stops = np.linspace(0, 1, len(anchors))
    rgb = np.array([list(bytes.fromhex(anchor[1:])) for anchor in anchors])
    return np.stack([np.interp(values, stops, channel) for channel in rgb.T], axis=-1)


def _blend(pixels: Pixels, colours: npt.NDArray[np.float64], share: Map, opacity: float) -> Pixels:
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is a share of 0 to 1, not {opacity}")
    anatomy = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.float64)
    cover = opacity * share[..., None].astype(np.float64)
    return np.round(anatomy + cover * (colours - anatomy)).astype(np.uint8)
