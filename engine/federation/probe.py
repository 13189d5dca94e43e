"""What a run's encoders are worth with few labels: linear probe and nearest neighbours on frozen features, and
fine-tuning, always beside an encoder that never learned anything and a network trained from scratch.

Every encoder gets the same labels: whole groups of the pooled training images, by class and seeded. Validation
images choose the linear probe's L2 and fine-tuning's round, with all their labels; scores are of held-out test groups.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.data.federation_data import FederationData
from engine.data.labelled import labelled_part
from engine.data.splits import PARTS, Part, SplitImage
from engine.errors import ConfigError, RunError
from engine.federation.arms import portion_of
from engine.federation.checkpoint import load_tensors
from engine.federation.finetune import fine_tune, fine_tuning
from engine.results.bootstrap import REPLICATES, mean_score
from engine.results.files import sha256_of
from engine.results.metrics import Floats
from engine.results.run_folder import RUN_NAME, Run, find_run
from engine.training.build import build_network, start_sha256
from engine.training.device import choose_device, explained_out_of_memory
from engine.training.features import compute_features
from engine.training.images import ImageSet
from engine.training.linear_probe import fit_linear, nearest_neighbours
from engine.training.networks import Network, Tensors

RANDOM, START = "random", "start"
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
DRAWN = 1000  # test images, at most, whose places in the embedding are written


@dataclass(frozen=True)
class Split:
    """One part of all hospitals' images, pooled, in the order of `dealt`."""

    dealt: Sequence[SplitImage]
    images: ImageSet


def probe_run(
    run: Run,
    data: FederationData,
    fractions: Sequence[float],
    *,
    finetune: bool,
    on_step: Callable[[str, int], None] = lambda what, of: None,
) -> list[dict[str, Any]]:
    """One result for each fraction of the training labels, as it is written; `on_step` hears each step and how many
    there are. Of a run that kept its rounds the federated encoder of each is asked too, frozen. Raises RunError where
    the run or its images are not what they were, ConfigError for a fraction that is none."""
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ConfigError(
                f"--labels {fraction:g}: must be above 0 and at most 1, as a share of the training labels"
            )
    run.verify(with_weights=True)
    if run.read_json("dataset_splits.json") != data.splits_json():
        raise RunError(f"{run.folder}: the images are not those it was trained on; give --data DIR with those")
    device = choose_device(run.federation.training)
    encoders = read_encoders(run)
    splits = {part: _pooled(data, part) for part in PARTS}
    train, seed = splits["train"].dealt, data.federation.split.seed
    chosen = {fraction: labelled_part(train, fraction, seed) for fraction in fractions}
    results = {fraction: _describe(run, fraction, chosen[fraction], splits) for fraction in fractions}
    axes: dict[str, Any] = {}
    rounds = _kept_rounds(run)
    n_steps = len(encoders) + len(rounds) + len(fractions) * (len(encoders) if finetune else 1)

    def features_of(network: Network) -> dict[Part, Tensor]:
        with explained_out_of_memory(run.federation):
            return {part: _features(run, network, split.images, device) for part, split in splits.items()}

    def ask(features: Mapping[Part, Tensor], scaled: Mapping[Part, Tensor]) -> Iterator[tuple[float, dict[str, Any]]]:
        for fraction, labelled in chosen.items():
            for method, logits in _frozen(features, scaled, splits, labelled, len(data.federation.classes)):
                yield fraction, {**method, "scores": _scores(logits, splits["test"], data)}

    for encoder, tensors in encoders.items():
        on_step(f"{encoder}: frozen features", n_steps)
        features = features_of(network_with(run, tensors).to(device))
        scaled = _standardised(features)
        axes[encoder] = _principal_axes(scaled, _drawn(splits))
        for fraction, row in ask(features, scaled):
            results[fraction]["rows"].append({"encoder": encoder, **row})
        for fraction, labelled in chosen.items() if finetune or encoder == RANDOM else ():
            on_step(f"{encoder}: fine-tuning on {len(labelled):,} labels", n_steps)
            parts = (_image_set(data, labelled), splits["validation"].images, splits["test"].images)
            logits, best = fine_tune(network_with(run, tensors).to(device), run.federation, *parts, device)
            epochs = run.federation.training.rounds * fine_tuning(run.federation, len(labelled)).local_epochs
            row = {"encoder": encoder, "method": "finetuned", "best_round": best, "epochs": epochs}
            results[fraction]["rows"].append({**row, "scores": _scores(logits, splits["test"], data)})
    for number, file in rounds.items():
        on_step(f"round {number}: frozen features", n_steps)
        features = features_of(network_with(run, _of_encoder(load_tensors(file), encoders[RANDOM])).to(device))
        for fraction, row in ask(features, _standardised(features)):
            results[fraction]["rounds"].append({"encoder": "global", "round": number, **row})
    drawn = [splits["test"].dealt[row].image for row in _drawn(splits)]
    whose = {"labels": [image.label for image in drawn], "hospitals": [image.hospital for image in drawn]}
    return [{**result, "embedding": {**whose, "encoders": axes}} for result in results.values()]


def read_encoders(run: Run) -> dict[str, Tensors]:
    """By name, without heads: a random one, one as the run began where that was not random, and the run's models.

    Raises RunError where the run learned its labels, or began from one that did: a probe with few of them would
    flatter it.
    """
    federation = run.federation
    if federation.pretext is None:
        raise RunError(f"{run.folder}: learned its labels, so a probe with few of them would flatter it; evaluate it")
    _require_unlabelled_ancestors(run)
    plain = federation.model.model_copy(update={"weights": "none", "freeze_backbone": False})
    n_classes, seed = len(federation.classes), federation.training.seed
    encoders = {RANDOM: _encoder(build_network(plain, n_classes, seed))}
    if federation.model.weights != "none":
        if run.config.starting_weights_sha256 not in (None, start_sha256(federation.model, run.folder.parent)):
            raise RunError(f"{run.folder}: {federation.model.weights} is not as it was when this run began from it")
        encoders[START] = _encoder(build_network(federation.model, n_classes, seed, run.folder.parent))
    for model in dict.fromkeys(line.model for line in run.rounds()):
        encoders[model] = _of_encoder(load_tensors(run.weights(model)), encoders[RANDOM])
    return encoders


def _require_unlabelled_ancestors(run: Run) -> None:
    ancestor = run
    while RUN_NAME.fullmatch(ancestor.federation.model.weights):
        ancestor = find_run(run.folder.parent, ancestor.federation.model.weights)
        if ancestor.federation.pretext is None and ancestor.federation.data == run.federation.data:
            raise RunError(
                f"{run.folder}: began from {ancestor.name}, which learned labels of these images, so a probe with few "
                "of them would flatter it"
            )


def network_with(run: Run, encoder: Tensors) -> Network:
    """The run's architecture with this encoder and a new head, the same for every encoder."""
    plain = run.federation.model.model_copy(update={"weights": "none", "freeze_backbone": False})
    network = build_network(plain, len(run.federation.classes), run.federation.training.seed)
    network.load_state_dict({**network.state_dict(), **encoder})
    return network


def _kept_rounds(run: Run) -> dict[int, Path]:
    """The federated model's weights file of every round; empty where the run did not keep them."""
    if not run.federation.training.keep_rounds or "federated" not in run.federation.arms:
        return {}
    return {number: run.round_weights("global", number) for number in range(1, run.federation.training.rounds + 1)}


def _of_encoder(weights: Tensors, encoder: Tensors) -> Tensors:
    """Without heads: the tensors that an encoder of this architecture has."""
    return {name: tensor for name, tensor in weights.items() if name in encoder}


def _encoder(network: Network) -> Tensors:
    head = f"{network.head_name}."
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(head)}


def _pooled(data: FederationData, part: Part) -> Split:
    dealt = [
        split
        for hospital in data.federation.hospital
        for split in data.splits
        if split.part == part and split.image.hospital == hospital.id
    ]
    return Split(dealt, _image_set(data, dealt))


def _image_set(data: FederationData, dealt: Sequence[SplitImage]) -> ImageSet:
    """By hospital, in the federation's order, as `dealt` is."""
    return ImageSet(
        [
            portion_of(data, hospital.id, [split for split in dealt if split.image.hospital == hospital.id])
            for hospital in data.federation.hospital
        ]
    )


def _features(run: Run, network: Network, images: ImageSet, device: torch.device) -> Tensor:
    """float64 (n, width) on the CPU; in evaluation mode, so that BatchNorm's statistics stand still."""
    computed = compute_features(network, images, device, augment=run.federation.training.augment, views=0, seed=0)
    features, _ = computed.batch(torch.arange(len(images)), torch.device("cpu"))
    return features.double()


def _frozen(
    features: Mapping[Part, Tensor],
    scaled: Mapping[Part, Tensor],
    splits: Mapping[Part, Split],
    chosen: Sequence[SplitImage],
    n_classes: int,
) -> Iterator[tuple[dict[str, Any], Floats]]:
    """Each method, and its logits or votes for the test images; the linear probe reads `scaled` features."""
    row_of = {(one.image.hospital, one.image.path): row for row, one in enumerate(splits["train"].dealt)}
    rows = torch.tensor([row_of[one.image.hospital, one.image.path] for one in chosen])
    labels = splits["train"].images.labels[rows]
    validation_labels = splits["validation"].images.labels
    probe = fit_linear(scaled["train"][rows], labels, scaled["validation"], validation_labels, n_classes)
    yield {"method": "linear", "l2": probe.l2}, probe.logits(scaled["test"]).numpy()
    votes = nearest_neighbours(features["train"][rows], labels, features["test"], n_classes)
    yield {"method": "neighbours"}, votes.numpy()


def _standardised(features: Mapping[Part, Tensor]) -> dict[Part, Tensor]:
    """By all training images' mean and deviation, which take no label."""
    mean, deviation = features["train"].mean(0), features["train"].std(0).clamp(min=1e-6)
    return {part: (values - mean) / deviation for part, values in features.items()}


def _principal_axes(scaled: Mapping[Part, Tensor], drawn: Sequence[int]) -> dict[str, Any]:
    """Test images on the first two principal components of the standardised training features, as `Axes` has them.
    A component's sign is free: its largest weight is made positive."""
    variances, components = torch.linalg.eigh(scaled["train"].T @ scaled["train"])
    first = components[:, [-1, -2]]
    first = first * first.gather(0, first.abs().argmax(0, keepdim=True)).sign()
    places = (scaled["test"][list(drawn)] @ first).round(decimals=3)
    explained = variances[[-1, -2]].clamp(min=0) / variances.clamp(min=0).sum().clamp(min=1e-12)
    return {"x": places[:, 0].tolist(), "y": places[:, 1].tolist(), "explained": explained.tolist()}


def _drawn(splits: Mapping[Part, Split]) -> list[int]:
    """Rows of the test images, evenly over hospitals, as these lie one after another."""
    n_test = len(splits["test"].dealt)
    return [place * n_test // DRAWN for place in range(DRAWN)] if n_test > DRAWN else list(range(n_test))


def _scores(logits: Floats, test: Split, data: FederationData) -> dict[str, dict[str, float]]:
    labels, groups = test.images.labels.numpy(), [one.group for one in test.dealt]
    classes = data.federation.classes
    return {metric: mean_score(logits, labels, groups, classes, metric)._asdict() for metric in METRICS}


def _describe(run: Run, fraction: float, chosen: Sequence[SplitImage], splits: Mapping[Part, Split]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "run": run.name,
        "run_manifest_sha256": sha256_of(run.folder / "manifest.json"),
        "labels": fraction,
        "n_labels": len(chosen),
        "n_groups": len({one.group for one in chosen}),
        "n_train": len(splits["train"].dealt),
        "n_validation": len(splits["validation"].dealt),
        "n_test": len(splits["test"].dealt),
        "n_test_groups": len({one.group for one in splits["test"].dealt}),
        "intervals": f"95%, percentile bootstrap over groups, {REPLICATES} replicates",
        "rows": [],
        "rounds": [],
    }
