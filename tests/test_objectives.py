"""Learning without labels: views, the three objectives against references, and the network that carries their heads."""

import math

import pytest
import torch
from torch.nn import functional

from engine.pretext_config import PretextConfig
from engine.sections import ModelConfig, TrainingConfig, ViewsConfig
from engine.training.build import build_network
from engine.training.local import score_objective, train_locally
from engine.training.objectives import KINDS, make_objective
from engine.training.objectives.rotation import turn_all
from engine.training.objectives.simclr import SimCLR
from engine.training.objectives.simsiam import SimSiam
from engine.training.pretext import PretextNetwork, build_pretext
from engine.training.views import draw_pairs, draw_views, picture_squares
from tests.test_training import CPU, squares

STILL = ViewsConfig(crop=1, flip=False, jitter=0)
CONFIG = PretextConfig(objective="simclr", projection=16)
COMPACT = ModelConfig(architecture="compact-cnn", image_size_px=32)
every = pytest.mark.parametrize("name", sorted(KINDS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def partners(n: int) -> torch.Tensor:
    return torch.arange(2 * n).roll(n)


def naive_nt_xent(z: torch.Tensor, temperature: float) -> float:
    """Equation 1 of the paper, pair by pair."""
    n = len(z) // 2

    def similar(i: int, j: int) -> float:
        return float(z[i] @ z[j] / (z[i].norm() * z[j].norm())) / temperature

    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = sum(math.exp(similar(i, k)) for k in range(2 * n) if k != i)
        losses.append(-math.log(math.exp(similar(i, j)) / others))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_the_papers_double_loop(temperature: float) -> None:
    z = torch.randn(10, 7, generator=generator(), dtype=torch.float64)
    loss, _ = SimCLR(PretextConfig(objective="simclr", temperature=temperature), STILL).score(z, partners(5))
    assert float(loss) == pytest.approx(naive_nt_xent(z, temperature), rel=1e-9)


def test_nt_xent_in_closed_form() -> None:
    """All views alike: log(2n - 1). Pairs at right angles to one another: log(1 + (2n - 2) e^(-1/t))."""
    objective = SimCLR(PretextConfig(objective="simclr", temperature=0.5), STILL)
    assert float(objective.score(torch.ones(8, 4), partners(4)).loss) == pytest.approx(math.log(7), rel=1e-6)
    apart, hits = objective.score(torch.eye(4).repeat(2, 1) * 3, partners(4))
    assert float(apart) == pytest.approx(math.log(1 + 6 * math.exp(-2)), rel=1e-6)
    assert float(hits) == 4, "every view's nearest other is its partner"


def test_simsiam_is_minus_the_cosine_and_holds_the_projection_still() -> None:
    projected = torch.randn(6, 8, generator=generator(), requires_grad=True)
    predicted = torch.randn(6, 8, generator=generator(1), requires_grad=True)
    loss, _ = SimSiam(CONFIG, STILL).score(torch.stack([projected, predicted], 1), partners(3))
    one, two = slice(0, 3), slice(3, 6)
    cosine = functional.cosine_similarity
    expected = -(cosine(predicted[one], projected[two]) + cosine(predicted[two], projected[one])).mean() / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert projected.grad is None or not projected.grad.any()
    assert predicted.grad is not None
    assert predicted.grad.abs().max() > 0


def test_a_collapse_looks_best_by_simsiams_loss_and_is_chance_by_its_share() -> None:
    loss, hits = SimSiam(CONFIG, STILL).score(torch.ones(20, 2, 8), partners(10))
    assert float(loss) == pytest.approx(-1)
    assert float(hits) == 1, "one of ten"


def test_turning_back_gives_the_image_whatever_the_label() -> None:
    images = torch.rand(3, 1, 8, 8, generator=generator())
    turned, turns = turn_all(images)
    assert turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for place, (one, turn) in enumerate(zip(turned, turns.tolist(), strict=True)):
        assert torch.equal(torch.rot90(one, -turn, (1, 2)), images[place % 3])


def test_rotations_label_stays_right_where_views_are_flipped() -> None:
    """Bright above, dark below, however it is mirrored left to right: the label can be read off every input."""
    upright = torch.full((16, 1, 8, 8), 0.1)
    upright[:, :, :4] = 1

    class Same:
        def batch(self, positions: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
            return upright, positions

    rotation = make_objective("rotation", CONFIG, ViewsConfig(crop=1, flip=True, jitter=0))
    pixels, turns = rotation.inputs(Same(), torch.arange(16), CPU, generator(), 0)  # type: ignore[arg-type]
    sides = torch.stack([pixels[:, 0, :4].mean((1, 2)), pixels[:, 0, :, :4].mean((1, 2)),
                         pixels[:, 0, 4:].mean((1, 2)), pixels[:, 0, :, 4:].mean((1, 2))], 1)  # fmt: skip
    assert torch.equal(sides.argmax(1), turns), "top, then by quarter turns counter-clockwise: left, bottom, right"


def test_bars_around_a_wide_picture_do_not_tell_its_turn() -> None:
    """The flattest pair of edges names the axis of a turned letterbox; of a view it must not."""
    pixels = torch.zeros(200, 3, 64, 64)
    pixels[:, :, 8:56] = torch.rand(200, 3, 48, 64, generator=generator())

    class Wide:
        def batch(self, positions: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
            return pixels[positions], torch.zeros(len(positions))

    def axis_named(views: torch.Tensor, turns: torch.Tensor) -> float:
        spread = [views[:, :, 0], views[:, :, -1], views[..., 0], views[..., -1]]
        above, below, left, right = (edge.std(dim=(1, 2)) for edge in spread)
        sideways = torch.minimum(left, right) < torch.minimum(above, below)
        return float((sideways.long() == turns % 2).float().mean())

    views = ViewsConfig(crop=0.3)
    whole = turn_all(draw_views(pixels, views, generator()))
    rotation = make_objective("rotation", CONFIG, views)
    inside = rotation.inputs(Wide(), torch.arange(200), CPU, generator(), 0)  # type: ignore[arg-type]
    assert axis_named(*whole) > 0.8
    assert 0.4 < axis_named(*inside) < 0.6


def test_a_pictures_square_is_in_its_middle_without_padding() -> None:
    images = torch.zeros(4, 1, 20, 20)
    images[0, :, 4:16] = 1  # wide
    images[1, :, :, 2:12] = 1  # tall, to the left
    images[2] = 1
    found = picture_squares(images)
    expected = [[0, 0, 10 / 20], [-6 / 20, 0, 8 / 20], [0, 0, 18 / 20], [0, 0, 18 / 20]]
    assert found.tolist() == [pytest.approx(row) for row in expected]
    views = draw_views(images, ViewsConfig(crop=1, flip=False, jitter=0), generator(), found)
    assert views[:3].min() > 0.999, "no padding is mixed in"
    assert views[3].max() == 0


def test_views_are_seeded_stay_in_range_and_each_image_has_its_own() -> None:
    config = ViewsConfig(blur=1.0, noise=0.1, grayscale=0.2)
    for channels in (1, 3):
        images = torch.rand(1, channels, 24, 24, generator=generator()).expand(6, -1, -1, -1).contiguous()
        first, again = (draw_views(images, config, generator(3)) for _ in range(2))
        assert first.shape == images.shape
        assert torch.equal(first, again)
        assert float(first.min()) >= 0
        assert float(first.max()) <= 1
        assert not torch.equal(first[0], first[1])
    assert torch.equal(draw_views(images, STILL, generator()), images)


def test_a_crop_shows_a_part_and_the_whole_where_it_is_the_whole() -> None:
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32).contiguous()
    cropped = draw_views(ramp, ViewsConfig(crop=0.25, flip=False, jitter=0), generator())
    spans = cropped.amax((1, 2, 3)) - cropped.amin((1, 2, 3))
    assert float(spans.min()) > 0.4, "a quarter of the area is at least 0.43 of a side"
    assert float(spans.max()) < 1.01
    assert float(spans.std()) > 0.05
    flipped = draw_views(ramp, ViewsConfig(crop=1, flip=True, jitter=0), generator())
    backwards = flipped[:, 0, 0, 0] > 0.5
    assert 10 < int(backwards.sum()) < 54
    torch.testing.assert_close(flipped[backwards], ramp[backwards].flip(3), atol=1e-5, rtol=0)


def test_colour_changes_leave_grey_alone_and_grayscale_takes_colour_away() -> None:
    grey = torch.rand(4, 1, 8, 8, generator=generator()).expand(-1, 3, -1, -1).contiguous()
    jittered = draw_views(grey, ViewsConfig(crop=1, flip=False, jitter=0.5), generator())
    torch.testing.assert_close(jittered[:, 0], jittered[:, 2], atol=1e-5, rtol=0)
    colour = torch.rand(4, 3, 8, 8, generator=generator())
    without = draw_views(colour, ViewsConfig(crop=1, flip=False, jitter=0, grayscale=1), generator())
    assert torch.equal(without[:, 0], without[:, 1])


def test_pairs_know_their_partners() -> None:
    pairs, partner = draw_pairs(squares(6), torch.tensor([4, 1, 3]), CPU, STILL, generator())
    assert torch.equal(pairs[partner], pairs), "views that change nothing are equal"
    assert not torch.equal(partner, torch.arange(6))


@every
def test_the_encoder_keeps_its_names_and_only_its_own_head_is_trained(name: str) -> None:
    plain = build_network(COMPACT, 2, seed=0)
    objectives = {one: make_objective(one, CONFIG) for one in sorted(KINDS)}
    whole = build_pretext(plain, objectives, seed=0)
    encoder = {key for key in plain.state_dict() if not key.startswith("head.")}
    assert {key for key in whole.state_dict() if not key.startswith("pretext.")} == encoder
    before = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    network = whole.with_head(name)  # type: ignore[arg-type]
    training = TrainingConfig(rounds=1, batch_size=8, precision="float32")
    scores = train_locally(
        network,
        squares(17),
        COMPACT,
        training,
        round_number=1,
        seed=1,
        device=CPU,
        objective=objectives[name],  # type: ignore[index]
    )
    moved = {key for key, tensor in whole.state_dict().items() if not torch.equal(tensor, before[key])}
    assert encoder <= moved
    assert {key.split(".")[1] for key in moved - encoder} == {name}
    assert 0 <= scores[0].accuracy <= 1


@every
def test_validation_is_the_same_twice_and_moves_no_statistic(name: str) -> None:
    objective = make_objective(name, CONFIG)  # type: ignore[arg-type]
    network = build_pretext(build_network(ModelConfig(image_size_px=32), 2, seed=0), {name: objective}, seed=0)  # type: ignore[dict-item]
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    first, again = (score_objective(network, squares(9), objective, 4, 7, CPU) for _ in range(2))
    assert first == again
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "efficientnet-lite0", "patch-cnn"])
def test_every_architecture_can_carry_heads(architecture: str) -> None:
    model = ModelConfig(architecture=architecture, image_size_px=32)  # type: ignore[arg-type]
    plain = build_network(model, 2, seed=0).eval()
    network = build_pretext(plain, {"simclr": make_objective("simclr", CONFIG)}, seed=0).eval()
    images = torch.rand(2, 3, 32, 32)
    assert isinstance(network, PretextNetwork)
    assert network(images).shape == (2, 16)
    torch.testing.assert_close(network.feature_map(images), plain.feature_map(images))
