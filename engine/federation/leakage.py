"""What of a run's training images could be told: from its models (membership.py), and from one update (inversion.py).

The update is the gradient of one step of plain SGD, of 1 and of 8 images of one hospital, at the weights that the run
began with. It is attacked as it is, as DP-SGD would have clipped and noised it, and where the attacker sees only the
sum of what all hospitals send.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.data.federation_data import FederationData
from engine.data.images import Pixels
from engine.errors import RunError
from engine.federation.inversion import Gradient, gradient_of, invert, private_gradient_of
from engine.federation.inversion_targets import Batch, choose_targets
from engine.federation.membership import measure_membership, plan_membership
from engine.federation.similarity import peak_signal_to_noise, structural_similarity
from engine.results.bootstrap import REPLICATES
from engine.results.files import sha256_of
from engine.results.leakage import ENOUGH, VARIANTS, VariantName
from engine.results.run_folder import PRIVACY, Run, now
from engine.sections import TrainingConfig
from engine.training.build import build_network, start_sha256
from engine.training.device import choose_device, explained_out_of_memory
from engine.training.networks import Network

SINGLES = 4  # updates of one image
BATCH = 8  # images of the one update of several; the first of them are the single ones
EXAMPLE_NOISE = {"multiplier": 1.0, "max_grad_norm": 1.0, "recorded": False}
MASKED: VariantName = "masked"

OnStep = Callable[[str, int, int], None]  # what, done, of


def measure_leakage(
    run: Run, data: FederationData, n_steps: int, side_px: int, on_step: OnStep = lambda what, done, of: None
) -> tuple[dict[str, Any], Pixels | None]:
    """The content of `leakage_file`, and what the attack drew, for `pictures_file`: a row of images for what there was
    and for each attack, uint8 (height, width, channels). None where the federation is not synthetic: nothing that
    looks like a patient's image leaves this function. Larger images are scaled to `side_px` before their update is
    attacked; with 0 steps none is.

    Raises RunError where the run or its images are not what they were, or where its weights are not here.
    """
    federation = run.federation
    device = choose_device(federation.training)
    why_not = _no_update(run, n_steps)
    network = None if why_not else start_network(run).to(device)  # first: it may be what is not here
    plan = plan_membership(run, data)
    n_passes, passes = sum(map(len, plan.values())), itertools.count(1)
    membership = list(
        measure_membership(run, data, plan, device, lambda: on_step("Scoring images", next(passes), n_passes))
    )
    inversion, pictures = None, None
    if network is not None:
        with explained_out_of_memory(federation):
            inversion, pictures = _attack_updates(run, data, network, n_steps, side_px, on_step)
    result = {
        "schema_version": 1,
        "run": run.name,
        "run_manifest_sha256": sha256_of(run.folder / "manifest.json"),
        "measured_at": now(),
        "intervals": f"95%, percentile bootstrap over groups, {REPLICATES} replicates",
        "membership": membership,
        "inversion": inversion,
        "notes": [
            *_membership_notes(run, data, membership),
            *([why_not] if why_not else _inversion_notes(run, side_px)),
        ],
    }
    return result, pictures


def require_measurable(run: Run) -> None:
    """Raise RunError where nothing can be measured of the run, before its images are read."""
    run.require_labels()
    run.require_whole("measure")
    run.verify(with_weights=True)
    for model in dict.fromkeys(line.model for line in run.rounds()):
        if model != "global" or not run.federation.aggregation.keeps_private:
            run.weights(model)


def require_same_images(run: Run, data: FederationData) -> None:
    if run.read_json("dataset_splits.json") != data.splits_json():
        raise RunError(f"{run.folder}: the images are not those it was trained on; give --data DIR with those")


def start_network(run: Run) -> Network:
    """The network as the run began. Raises RunError where its starting weights are not what they were."""
    federation = run.federation
    if run.config.starting_weights_sha256 not in (None, start_sha256(federation.model, run.folder.parent)):
        raise RunError(f"{run.folder}: {federation.model.weights} is not as it was when this run began from it")
    classes, seed = len(federation.classes), federation.training.seed
    return build_network(federation.model, classes, seed, run.folder.parent).eval()


def _no_update(run: Run, n_steps: int) -> str:
    """Why no update is attacked; empty where one is."""
    if "federated" not in run.federation.arms:
        return "No update was attacked: this run has no federated arm, so no hospital sent any."
    if run.federation.aggregation.keeps_private:
        return (
            f"No update was attacked: every hospital keeps {run.federation.aggregation.keeps_private}, which the "
            "attacker of this attack knows."
        )
    return "" if n_steps else "No update was attacked: it was measured with --steps 0."


def _attack_updates(
    run: Run, data: FederationData, network: Network, n_steps: int, side_px: int, on_step: OnStep
) -> tuple[dict[str, Any], Pixels | None]:
    device = next(network.parameters()).device
    targets = choose_targets(data, BATCH, min(side_px, run.federation.model.image_size_px), device)
    noise = _noise(run, targets.hospital)
    shape = targets.mean.shape[1:]
    own = targets.batches[targets.hospital]
    n_images, n_hospitals = len(own.labels), len(targets.batches)
    singles = min(SINGLES, n_images)
    variants = VARIANTS if n_hospitals > 1 else VARIANTS[:2]
    plan = [
        (size, starts, variant) for size, starts in ((1, range(singles)), (n_images, range(1))) for variant in variants
    ]
    total = n_steps * sum(
        len(targets.seen(start, size, of_all=variant == MASKED).labels)
        for size, starts, variant in plan
        for start in starts
    )
    done = 0

    def advance(n_more: int) -> None:
        nonlocal done
        done += n_more
        on_step("Inverting updates", done, total)

    attacks: list[dict[str, Any]] = []
    drawn = [own.pixels[:singles]]
    for size, starts, variant in plan:
        rebuilt: list[dict[str, Any]] = []
        closest: list[Tensor] = []
        for start in starts:
            seen = targets.seen(start, size, of_all=variant == MASKED)
            observed = _observe(network, seen, variant, noise, seed=start)
            count = partial(advance, len(seen.labels))
            guesses = invert(network, observed, seen.labels, shape, n_steps=n_steps, seed=start, on_step=count)
            for place in range(start, min(start + size, n_images)):
                image = own.pixels[place : place + 1]
                rebuilt.append(_compare(image, guesses, targets.mean, targets.others[place]))
                alike = structural_similarity(guesses, image.expand_as(guesses))
                closest.append(guesses[alike.argmax()][None])
        attacks.append({"variant": variant, "batch_size": size, "n_updates": len(starts), "images": rebuilt})
        drawn.append(torch.cat(closest)[:singles])
    result = {
        "hospital": targets.hospital,
        "n_hospitals": n_hospitals,
        "n_steps": n_steps,
        "side_px": shape[-1],
        "channels": shape[0],
        "noise": noise,
        "attacks": attacks,
        "pictures_sha256": None,
    }
    return result, _sheet(drawn) if run.federation.synthetic else None


def _observe(network: Network, seen: Batch, variant: VariantName, noise: Mapping[str, Any], seed: int) -> Gradient:
    if variant == "private":
        strength = float(noise["multiplier"]), float(noise["max_grad_norm"])
        return private_gradient_of(network, seen.pixels, seen.labels, *strength, seed=seed)
    return gradient_of(network, seen.pixels, seen.labels)


def _noise(run: Run, hospital: str) -> dict[str, Any]:
    privacy = run.federation.privacy
    if privacy is None:
        return dict(EXAMPLE_NOISE)
    history = run.read_json(PRIVACY)["models"]["global"][hospital]["history"]
    return {
        "multiplier": history[-1]["noise_multiplier"],
        "max_grad_norm": privacy.max_grad_norm,
        "recorded": True,
    }


def _compare(image: Tensor, guesses: Tensor, mean: Tensor, others: Tensor) -> dict[str, Any]:
    """As `Rebuilt` has it. The attack's best of n stands beside the best of n other images: both may choose."""

    def best(candidates: Tensor) -> tuple[float | None, float | None]:
        if not len(candidates):
            return None, None
        same = image.expand_as(candidates)
        return (
            float(structural_similarity(candidates, same).max()),
            float(peak_signal_to_noise(candidates, same).max()),
        )

    found = zip(("", "_mean", "_other"), (guesses, mean, others[: len(guesses)]), strict=True)
    scores = {suffix: best(candidates) for suffix, candidates in found}
    return {
        **{f"ssim{suffix}": ssim for suffix, (ssim, _) in scores.items()},
        **{f"psnr{suffix}": psnr for suffix, (_, psnr) in scores.items()},
        "n_candidates": len(guesses),
    }


def _sheet(rows: Sequence[Tensor]) -> Pixels:
    lines = [torch.cat(list(row), dim=2) for row in rows]  # (channels, side, n x side)
    pixels: Pixels = (torch.cat(lines, dim=1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def _membership_notes(run: Run, data: FederationData, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    federation = run.federation
    notes = [
        "The attack knows each image's label and looks at its loss alone; attacks that train shadow models are "
        "stronger, so an AUC near 0.5 does not prove that nothing was remembered.",
        "Images were scored as they are; training saw them augmented.",
    ]
    if federation.split.patient_pattern is None and not any(split.image.patient for split in data.splits):
        notes.append(
            "Patients are unknown, so a patient may have images on both sides, which would hide memory; the intervals "
            "then know of look-alike images alone."
        )
    if federation.model.weights not in ("none", "imagenet"):
        notes.append(
            f"Every model, the control's too, began from {federation.model.weights}, which may have seen these images."
        )
    if any(row["n_others"] < ENOUGH for row in rows):
        notes.append(f"Where test images are fewer than {ENOUGH}, no share at 1% false alarms is given.")
    return notes


def _inversion_notes(run: Run, side_px: int) -> list[str]:
    federation, training, side = run.federation, run.federation.training, run.federation.model.image_size_px
    notes = [
        "The update is one step of plain SGD on images as they are, at the weights the run began with; what this run's "
        f"hospitals sent was the outcome of {_local_work(training)}, which was not attacked.",
        "The attacker is given the labels and the number of images. One attack, one start: a better one may see more.",
    ]
    if side_px < side:
        notes.append(
            f"Images were scaled from {side} to {side_px} px before their update was made: smaller ones are easier to "
            "rebuild and take less time."
        )
    if federation.model.has_batch_norm:
        notes.append(
            "BatchNorm stood still at the weights' own statistics, which favours the attacker; in training it mixes "
            "the images of a batch, and the statistics that travel beside the weights tell something more."
        )
    if federation.model.freeze_backbone:
        notes.append("The backbone is frozen, so an update is the gradient of the head alone.")
    if federation.communication.compression != "none":
        notes.append(f"Compression ({federation.communication.compression}) was not applied to the attacked update.")
    return notes


def _local_work(training: TrainingConfig) -> str:
    epochs = "an epoch" if training.local_epochs == 1 else f"{training.local_epochs} epochs"
    return f"{epochs} of {training.optimizer} in batches of {training.batch_size}, augmented"
