"""One training from federation file to finished run folder: data, arms, rounds, predictions, manifest."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from engine.config import Arm, Federation
from engine.data.audit import require_trainable
from engine.data.federation_data import FederationData
from engine.data.splits import Part
from engine.errors import DataError, RunError
from engine.federation.checkpoint import Checkpoint, load_tensors, save_tensors
from engine.federation.environment import describe_environment
from engine.federation.rounds import TrainingState, run_rounds
from engine.federation.transports.in_process import InProcessTransport
from engine.results.evaluation import evaluate_predictions
from engine.results.files import write_atomically, write_json
from engine.results.rounds import communication, drop_rounds_after, metric_tables, read_rounds, training_history
from engine.results.run_folder import (
    Progress,
    Run,
    RunConfig,
    create_run,
    find_run,
    now,
    weights_name,
    write_manifest,
    write_table,
)
from engine.training.device import choose_device
from engine.training.images import ImageSet, Portion
from engine.training.local import predict_logits
from engine.training.networks import Network, build_network

log = logging.getLogger("consilium")
OnTraining = Callable[[Progress], None]
POOLED = "pooled"


@dataclass(frozen=True)
class ModelPlan:
    """One model to train: its key in every artefact, whose images train it, and whose validation images choose it."""

    arm: Arm
    model: str
    training_sets: dict[str, ImageSet]
    validation_sets: dict[str, ImageSet]

    @property
    def n_training_images(self) -> int:
        return sum(len(images) for images in self.training_sets.values())


def start_run(data: FederationData, federation_file: str, artifacts: Path) -> Run:
    """Make the run folder and write down everything that is known before training."""
    require_trainable(data.audit)
    folder = create_run(artifacts)
    config = RunConfig(started_at=now(), federation_file=federation_file, federation=data.federation)
    write_json(folder / "environment.json", describe_environment())
    write_json(folder / "audit.json", data.audit.model_dump(mode="json"))
    write_json(folder / "dataset_stats.json", data.stats_json())
    write_json(folder / "dataset_splits.json", data.splits_json())
    write_json(folder / "label_map.json", {label: index for index, label in enumerate(data.federation.classes)})
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return Run(folder)


def reopen_run(artifacts: Path, name: str) -> Run:
    """An unfinished run to go on with. Raises RunError where there is nothing to resume."""
    run = find_run(artifacts, name)
    if run.is_finished:
        raise RunError(f"{run.folder}: is finished; there is nothing to resume")
    if not (run.folder / "config.json").is_file():
        raise RunError(f"{run.folder}: was stopped before it began; delete it and train anew")
    return run


def train_run(run: Run, data: FederationData, on_training: OnTraining = lambda progress: None) -> Run:
    """Train every arm that is not trained yet, then write predictions, evaluation and, last, the manifest."""
    federation = data.federation
    if run.read_json("dataset_splits.json") != data.splits_json():
        raise RunError(f"{run.folder}: the images are no longer those it began with; train anew")
    checkpoint = Checkpoint(run.folder, keep_rounds=federation.training.keep_rounds)
    with _logging_to(run.folder / "training.log"):
        if not _is_evaluated(run, checkpoint):
            device = choose_device(federation.training)
            network = build_network(federation.model, len(federation.classes), federation.training.seed).to(device)
            plans = plan_models(data)
            _train_models(run, plans, federation, network, device, checkpoint, on_training)
            _write_weights(run, plans, checkpoint)
            _write_results(run, plans, data, network, device)
        log.info("run %s is complete", run.name)
    checkpoint.remove()
    write_manifest(run.folder, run.config)
    return Run(run.folder)


def plan_models(data: FederationData) -> list[ModelPlan]:
    """The models of the configured arms, in order; every arm sees the same splits."""
    training = _image_sets(data, "train")
    validation = _image_sets(data, "validation")
    for hospital in data.federation.hospital:
        n_images = len(training.get(hospital.id, ()))
        if n_images < 2:
            raise DataError(f"{hospital.name}: has {n_images} training images; training needs at least 2")
    plans = []
    for arm in data.federation.arms:
        if arm == "federated":
            plans.append(ModelPlan(arm, "global", training, validation))
        elif arm == "central":
            pooled = ImageSet([_portion(data, "train", hospital.id) for hospital in data.federation.hospital])
            plans.append(ModelPlan(arm, "central", {POOLED: pooled}, validation))
        else:
            for name, images in training.items():
                own = {name: validation[name]} if name in validation else {}
                plans.append(ModelPlan(arm, f"local/{name}", {name: images}, own))
    return plans


def _train_models(
    run: Run,
    plans: Sequence[ModelPlan],
    federation: Federation,
    network: Network,
    device: torch.device,
    checkpoint: Checkpoint,
    on_training: OnTraining,
) -> None:
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    states = {plan.model: checkpoint.read(plan.model) or TrainingState(start, start) for plan in plans}
    drop_rounds_after(run.folder / "rounds.jsonl", {model: state.round for model, state in states.items()})
    report = _ProgressReport(run, plans, federation, states, on_training)
    for plan in plans:
        state = states[plan.model]
        state.weights = {name: tensor.to(device) for name, tensor in state.weights.items()}
        log.info("%s: from round %d to %d", plan.model, state.round, federation.training.rounds)
        transport = InProcessTransport(
            network,
            federation,
            training_sets=plan.training_sets,
            validation_sets=plan.validation_sets,
            device=device,
            on_images=report.listener(plan.model),
        )
        run_rounds(plan.arm, plan.model, federation.training, transport, state, checkpoint)


def _write_weights(run: Run, plans: Sequence[ModelPlan], checkpoint: Checkpoint) -> None:
    for plan in plans:
        state = checkpoint.read(plan.model)
        if state is None:
            raise RunError(f"{run.folder}: checkpoint of {plan.model} is missing; train anew")
        save_tensors(run.folder / weights_name(plan.model), state.best_weights)
        if plan.model == "global":
            save_tensors(run.folder / "weights" / "global-last.safetensors", state.weights)


def _write_results(
    run: Run, plans: Sequence[ModelPlan], data: FederationData, network: Network, device: torch.device
) -> None:
    """Predictions of every model on every hospital's validation and test images, and all that follows from them."""
    frames = []
    for plan in plans:
        network.load_state_dict(load_tensors(run.folder / weights_name(plan.model)))
        frames += [_predict(plan.model, part, data, network, device) for part in ("validation", "test")]
    predictions = pd.concat(frames, ignore_index=True)
    write_atomically(run.folder / "predictions.parquet", lambda path: predictions.to_parquet(path, index=False))
    lines = read_rounds(run.folder / "rounds.jsonl")
    write_json(run.folder / "training_history.json", training_history(lines))
    for name, rows in metric_tables(lines).items():
        columns = ["round"] + (["client_id"] if "client" in name else []) + ["num_examples", "loss", "accuracy"]
        columns.append("seconds" if name.startswith("fit") else "macro_f1")
        write_table(run.folder / "metrics" / f"{name}.csv", rows, columns)
    traffic = {
        "schema_version": 1,
        "transport": "in_process",
        "hospitals": communication(lines),
        "pooling_once_bytes": sum(
            (data.root / split.image.path).stat().st_size for split in data.splits if split.part == "train"
        ),
    }
    write_json(run.folder / "communication.json", traffic)
    write_json(run.folder / "evaluation.json", evaluate_predictions(predictions, data.federation.classes))


def _predict(model: str, part: Part, data: FederationData, network: Network, device: torch.device) -> pd.DataFrame:
    rows = []
    for hospital, images in _image_sets(data, part).items():
        logits = predict_logits(network, images, device)
        splits = [split for split in data.splits if split.part == part and split.image.hospital == hospital]
        for split, values in zip(splits, logits, strict=True):
            rows.append(
                {
                    "model": model,
                    "split": part,
                    "hospital": hospital,
                    "group": split.group,
                    "path": split.image.path,
                    "label": split.image.label,
                    "logits": values.astype(np.float32),
                }
            )
    return pd.DataFrame(rows)


def _portion(data: FederationData, part: Part, hospital: str) -> Portion:
    holding = next(holding for holding in data.holdings if holding.hospital.id == hospital)
    row_of = {image.path: row for row, image in enumerate(holding.images)}
    mine = [split.image for split in data.splits if split.part == part and split.image.hospital == hospital]
    labels = [data.federation.classes.index(image.label) for image in mine]
    rows = [row_of[image.path] for image in mine]
    return Portion(holding.pixels, np.array(rows, np.int64), np.array(labels, np.int64))


def _image_sets(data: FederationData, part: Part) -> dict[str, ImageSet]:
    """By hospital id, in the federation's order; a hospital without images in this part has none."""
    sets = {hospital.id: ImageSet([_portion(data, part, hospital.id)]) for hospital in data.federation.hospital}
    return {hospital: images for hospital, images in sets.items() if len(images)}


def _is_evaluated(run: Run, checkpoint: Checkpoint) -> bool:
    """Stopped between its last result and its manifest: the evaluation is written after all else."""
    return (run.folder / "evaluation.json").is_file() and not checkpoint.folder.is_dir()


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        log.error("stopped: %s: %s", type(error).__name__, error)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


class _ProgressReport:
    """Counts images over all arms and tells the screen and, at most once a second, the dashboard."""

    def __init__(
        self,
        run: Run,
        plans: Sequence[ModelPlan],
        federation: Federation,
        states: dict[str, TrainingState],
        on_training: OnTraining,
    ) -> None:
        training = federation.training
        per_round = {plan.model: plan.n_training_images * training.local_epochs for plan in plans}
        self._total = sum(per_round.values()) * training.rounds
        self._done = sum(per_round[model] * state.round for model, state in states.items())
        self._at_start = self._done
        self._rounds = training.rounds
        self._started = now()
        self._file = run.folder / "checkpoint" / "progress.json"
        self._written = 0.0
        self._on_training = on_training

    def listener(self, model: str) -> Callable[[int, str, int], None]:
        def on_images(round_number: int, hospital: str, n_images: int) -> None:
            self._done += n_images
            progress = Progress(
                model=model,
                round=round_number,
                rounds=self._rounds,
                hospital=hospital,
                images_done=self._done,
                images_total=self._total,
                images_at_start=self._at_start,
                started_at=self._started,
                updated_at=now(),
            )
            self._on_training(progress)
            if time.monotonic() - self._written > 1:
                write_json(self._file, progress.model_dump(mode="json"))
                self._written = time.monotonic()

        return on_images
