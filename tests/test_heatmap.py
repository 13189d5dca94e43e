"""Heatmaps: exact to the logit, in the right place, and silent where there is nothing to say."""

import base64
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from engine.data.phantoms import SCANNERS, draw_slice
from engine.errors import ModelError
from engine.inference.heatmap import (
    DIFFERENCE,
    EVIDENCE,
    Head,
    Map,
    class_maps,
    difference_overlay,
    enlarge,
    legend_colours,
    overlay,
    peak,
    read_head,
)
from engine.results.published import current_version

SIDE = 32
GRAPH = Path("models/g.onnx")


def encode(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


def metadata(**parts: object) -> str:
    return json.dumps({"weight": encode(1, 2, 3, 4, 5, 6), "bias": encode(7, 8), **parts})


def one_hot(row: int, column: int, cells: int = 4, value: float = 1.0) -> Map:
    grid = np.zeros((cells, cells), np.float32)
    grid[row, column] = value
    return grid


@pytest.fixture
def grey() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)


def rgb(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels, 3, axis=2)


@pytest.mark.parametrize("model", ["global", "local/hospital-a", "central"])
def test_the_maps_of_a_served_graph_add_up_to_its_logits(phantom_version: Path, model: str) -> None:
    version = current_version(phantom_version, "phantoms")
    entry = version.manifest.models[model]
    path = version.folder / entry.file
    session = onnxruntime.InferenceSession(path)
    head = read_head(session.get_modelmeta().custom_metadata_map["head"], path)
    side, rng = version.federation.model.image_size_px, np.random.default_rng(1)
    drawn = [draw_slice(label, SCANNERS["hospital-a"], side, rng)[0] for label in version.federation.classes]
    images = np.stack(drawn)[..., None]
    logits, feature_maps = session.run(["logits", "feature_map"], {"image": images})
    maps = [class_maps(feature_map, head) for feature_map in feature_maps]
    assert maps[0].shape == (4, *feature_maps.shape[2:])
    assert maps[0].dtype == np.float32
    assert np.ptp(maps[0]) > 0
    rounding = 0.02 if entry.precision == "fp16" else 1e-3  # a half-precision graph pools and applies its head in it
    np.testing.assert_allclose([each.mean((1, 2)) + head.bias for each in maps], logits, atol=rounding)


def test_a_map_is_the_head_applied_to_every_cell() -> None:
    head = read_head(metadata(), GRAPH)
    np.testing.assert_array_equal(head.weight, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(head.bias, [7, 8])
    features = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
    expected = [
        [[sum(head.weight[k, c] * features[c, i, j] for c in range(3)) for j in range(5)] for i in range(2)]
        for k in range(2)
    ]
    np.testing.assert_allclose(class_maps(features, head), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        "{}",
        json.dumps({"weight": encode(1, 2)}),
        metadata(weight=5),
        metadata(weight="a"),
        metadata(weight="not base64!"),
        metadata(weight="AAAA"),  # three bytes
        metadata(weight=""),
        metadata(weight=encode(1, 2, 3)),  # not a multiple of two classes
        metadata(bias=""),
        metadata(bias="ü"),
        metadata(weight=encode(1, np.nan)),
        metadata(bias=encode(np.inf, 1)),
        "[" * 100_000,
    ],
)
def test_a_malformed_head_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ModelError, match=r"models/g\.onnx: the head in its metadata cannot be read") as caught:
        read_head(text, GRAPH)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (1, 3, 4, 4)])
def test_a_feature_map_of_another_model_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="its head reads 3 channels"):
        class_maps(np.zeros(shape, np.float32), read_head(metadata(), GRAPH))


@pytest.mark.parametrize(("cells", "side"), [(2, 64), (4, 128), (3, 32), (7, 224)])
def test_enlarging_puts_cell_centres_where_they_are_and_holds_the_edges(cells: int, side: int) -> None:
    grid = np.random.default_rng(0).normal(size=(cells, cells)).astype(np.float32)
    centres, pixels = (np.arange(cells) + 0.5) * side / cells, np.arange(side) + 0.5
    down = np.stack([np.interp(pixels, centres, grid[:, j]) for j in range(cells)], axis=1)
    expected = np.stack([np.interp(pixels, centres, row) for row in down])
    enlarged = enlarge(grid, side)
    assert enlarged.dtype == np.float32
    np.testing.assert_allclose(enlarged, expected, atol=1e-5)
    assert enlarged[0, 0] == pytest.approx(grid[0, 0])
    assert enlarged[-1, 0] == pytest.approx(grid[-1, 0])


def test_a_map_of_the_models_side_is_left_alone() -> None:
    grid = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    np.testing.assert_array_equal(enlarge(grid, SIDE), grid)


def test_the_peak_is_the_highest_cells_centre_x_first() -> None:
    assert peak(one_hot(1, 3), SIDE) == (27.5, 11.5)  # pixels 24..31 and 8..15
    assert peak(-one_hot(1, 3) - 1, SIDE) == (3.5, 3.5)
    enlarged = enlarge(one_hot(2, 1), SIDE)
    rows, columns = np.nonzero(enlarged == enlarged.max())
    assert (columns.mean(), rows.mean()) == peak(one_hot(2, 1), SIDE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("draw", [overlay, lambda p, m, o: difference_overlay(p, m, one_hot(0, 0), o)])
def test_at_opacity_0_the_picture_is_the_picture(grey: np.ndarray, channels: int, draw) -> None:
    pixels = np.repeat(grey, channels, axis=2)
    before = pixels.copy()
    picture = draw(pixels, one_hot(2, 2), 0.0)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, rgb(grey))
    assert not np.array_equal(draw(pixels, one_hot(2, 2), 0.5), rgb(grey))
    np.testing.assert_array_equal(pixels, before)


def test_the_overlay_colours_the_evidence_and_nothing_else(grey: np.ndarray) -> None:
    picture = overlay(grey, one_hot(1, 2), 1.0)
    changed = (picture != rgb(grey)).any(2)
    assert changed[8:16, 16:24].all()
    far = np.ones((SIDE, SIDE), bool)
    far[4:20, 12:28] = False  # bilinear reaches the next cells' centres
    assert not changed[far].any()
    full = enlarge(one_hot(1, 2), SIDE)
    top = bytes.fromhex(EVIDENCE[-1][1:])
    np.testing.assert_allclose(overlay(grey, full / full.max(), 1.0)[full == full.max()][0], list(top), atol=1)


def test_more_evidence_and_more_opacity_hide_more_of_the_picture() -> None:
    ramp = np.linspace(0, 1, SIDE, dtype=np.float32)[None].repeat(SIDE, 0)
    black = np.zeros((SIDE, SIDE, 1), np.uint8)
    contrast = [overlay(black + 200, ramp, share).astype(int) - overlay(black, ramp, share) for share in (0.3, 0.6)]
    for share, each in zip((0.3, 0.6), contrast, strict=True):
        np.testing.assert_allclose(each[0, :, 0], 200 * (1 - share * ramp[0]), atol=1)


def test_evidence_against_the_class_is_not_drawn(grey: np.ndarray) -> None:
    against = one_hot(1, 2, value=2) - one_hot(3, 0, value=50)
    picture = overlay(grey, against, 0.6)
    np.testing.assert_array_equal(picture[20:, :12], rgb(grey)[20:, :12])
    np.testing.assert_array_equal(picture[8:16, 16:24], overlay(grey, one_hot(1, 2), 0.6)[8:16, 16:24])


def test_an_overlay_shows_where_and_not_how_much(grey: np.ndarray) -> None:
    grid = np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32)
    np.testing.assert_array_equal(overlay(grey, grid, 0.6), overlay(grey, grid * 64, 0.6))
    np.testing.assert_array_equal(
        difference_overlay(grey, grid, grid.T, 0.6), difference_overlay(grey, grid * 64, grid.T, 0.6)
    )


@pytest.mark.parametrize(
    "nothing",
    [
        np.zeros((4, 4), np.float32),
        np.full((4, 4), -3, np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), np.inf, np.float32),
        np.zeros((1, 1), np.float32),
    ],
)
def test_a_map_without_evidence_draws_nothing(grey: np.ndarray, nothing: Map) -> None:
    np.testing.assert_array_equal(overlay(grey, nothing, 1.0), rgb(grey))
    np.testing.assert_array_equal(difference_overlay(grey, nothing, nothing, 1.0), rgb(grey))
    assert all(np.isfinite(peak(nothing, SIDE)))


def test_the_difference_is_blue_for_a_orange_for_b_and_turns_over_with_them(grey: np.ndarray) -> None:
    a, b = one_hot(0, 0, cells=2), one_hot(1, 1, cells=2, value=9)
    one, other = difference_overlay(grey, a, b, 0.7), difference_overlay(grey, b, a, 0.7)
    # Turned by half, a is b and the colours change places; the picture beneath must turn with them.
    turned = difference_overlay(grey[::-1, ::-1], b, a, 0.7)[::-1, ::-1]
    np.testing.assert_array_equal(one, turned)
    black = np.zeros_like(grey)
    corner_a, corner_b = difference_overlay(black, a, b, 1.0)[[0, -1], [0, -1]].astype(int)
    np.testing.assert_allclose(corner_a, list(bytes.fromhex(DIFFERENCE[-1][1:])), atol=1)
    np.testing.assert_allclose(corner_b, list(bytes.fromhex(DIFFERENCE[0][1:])), atol=1)
    assert corner_a[2] > corner_a[0]
    assert corner_b[0] > corner_b[2]
    # What is hidden of the picture is the same whichever comes first.
    bright = [difference_overlay(black + 255, *pair, 0.7).astype(int) for pair in ((a, b), (b, a))]
    dark = [difference_overlay(black, *pair, 0.7).astype(int) for pair in ((a, b), (b, a))]
    np.testing.assert_allclose(bright[0] - dark[0], bright[1] - dark[1], atol=1)
    assert not np.array_equal(one, other)


def test_models_that_agree_leave_the_picture_alone_and_small_differences_stay_faint(grey: np.ndarray) -> None:
    grid = np.abs(np.random.default_rng(2).normal(size=(4, 4))).astype(np.float32)
    np.testing.assert_array_equal(difference_overlay(grey, grid, grid * 4, 0.6), rgb(grey))
    nearly = grid.copy()
    nearly[0, 0] += 0.02 * grid.max()
    faint = np.abs(difference_overlay(grey, nearly, grid, 0.6).astype(int) - rgb(grey))
    assert faint.max() <= 6


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_an_opacity_beyond_0_to_1_is_refused(grey: np.ndarray, opacity: float) -> None:
    with pytest.raises(ValueError, match="opacity"):
        overlay(grey, one_hot(0, 0), opacity)


def test_the_legend_has_the_scales_colours_in_order() -> None:
    def lightness(colour: str) -> float:
        return float(np.dot(list(bytes.fromhex(colour[1:])), [0.2126, 0.7152, 0.0722]))

    evidence, difference = legend_colours("evidence"), legend_colours("difference")
    assert [lightness(colour) for colour in evidence] == sorted(map(lightness, evidence))
    assert abs(lightness(difference[0]) - lightness(difference[-1])) < 10
    assert max(difference, key=lightness) == difference[len(difference) // 2]


def test_a_head_is_not_changed_once_made() -> None:
    head = read_head(metadata(), GRAPH)
    with pytest.raises(AttributeError):
        head.bias = np.zeros(2, np.float32)  # type: ignore[misc]
    assert isinstance(head, Head)
