"""One training from federation file to finished run folder: data, arms, rounds, predictions, manifest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from engine.config import Federation
from engine.data.audit import require_trainable
from engine.data.federation_data import FederationData, shared_classes
from engine.errors import ConfigError, RunError
from engine.federation.arms import SHOWN, ModelPlan, Sets, image_sets, plan_models
from engine.federation.audited import AuditedRounds
from engine.federation.checkpoint import Checkpoint, save_tensors
from engine.federation.environment import describe_environment
from engine.federation.frozen import FeatureMemory
from engine.federation.named_tensors import label, of_kind
from engine.federation.predictions import predict_all
from engine.federation.privacy import describe_privacy, require_noise
from engine.federation.progress import OnTraining, ProgressReport
from engine.federation.rounds import Rules, TrainingState, choose_hospitals, run_rounds
from engine.federation.secure_round import describe_secure_aggregation
from engine.federation.tasks import make_tasks, rules_of, with_heads
from engine.federation.training_log import log, logging_to
from engine.federation.transports.in_process import InProcessTransport
from engine.privacy_config import PrivacyConfig
from engine.results.audit_log import AUDIT_LOG, AuditLog, Resumed, Started, Stopped, who
from engine.results.evaluation import evaluate_predictions
from engine.results.files import sha256_of, write_atomically, write_json
from engine.results.lock import alone_with
from engine.results.rounds import communication, drop_rounds_after, metric_tables, read_rounds, training_history
from engine.results.run_folder import (
    EVALUATION,
    PRIVACY,
    RUN_NAME,
    SECURE_AGGREGATION,
    SUBGROUPS,
    Run,
    RunConfig,
    Transport,
    create_run,
    find_run,
    now,
    weights_name,
    write_manifest,
    write_table,
)
from engine.secure_aggregation_config import SecureAggregationConfig
from engine.training.build import build_network, start_sha256
from engine.training.device import choose_device
from engine.training.features import HeadNetwork
from engine.training.networks import Network, Tensors


def start_run(
    data: FederationData,
    federation_file: str,
    artifacts: Path,
    *,
    sweep: str | None = None,
    changes: Sequence[str] = (),
) -> Run:
    """Make the run folder and write down everything that is known before training.

    `changes` are the settings given beside the file, `sweep` is the sweep's name that the run belongs to.
    Raises ConfigError, and makes no folder, where the device or the starting weights are not here.
    """
    federation = data.federation
    environment, _ = check_start(data, artifacts)
    folder = create_run(artifacts)
    config = RunConfig(
        started_at=now(),
        federation_file=federation_file,
        federation=data.federation,
        sweep=sweep,
        changes=tuple(changes),
        starting_weights_sha256=start_sha256(federation.model, artifacts),
    )
    write_json(folder / "environment.json", environment)
    write_json(folder / "audit.json", data.audit.model_dump(mode="json"))
    write_json(folder / "dataset_stats.json", data.stats_json())
    write_json(folder / "dataset_splits.json", data.splits_json())
    if federation.source is not None and federation.source.subgroups:
        write_json(folder / SUBGROUPS, data.subgroups_json())
    write_json(folder / "label_map.json", {label: index for index, label in enumerate(data.federation.classes)})
    write_json(folder / "config.json", config.model_dump(mode="json"))  # last: a run that has it can be resumed
    return Run(folder)


def check_start(data: FederationData, artifacts: Path) -> tuple[dict[str, Any], Network]:
    """What `environment.json` says of this machine, and the network that the training would start from.

    Raises ConfigError or DataError for whatever a training is refused for before it has a folder.
    """
    require_trainable(data.audit)
    federation = data.federation
    environment = describe_environment(federation.training)
    network = build_network(federation.model, len(federation.classes), federation.training.seed, artifacts)
    _require_unseen(data, artifacts)
    if federation.privacy is not None:
        require_noise(federation.privacy, federation, image_sets(data, "train"))
    return environment, network


def _require_unseen(data: FederationData, artifacts: Path) -> None:
    """The runs behind the starting weights must not have learned from images that are to test or choose here, nor from
    any image of a hospital that is left out."""
    name, left_out = data.federation.model.weights, data.federation.left_out
    learned, weights, asked = set[str](), name, set[str]()
    while RUN_NAME.fullmatch(weights) and weights not in asked:
        if asked and left_out is None and not (artifacts / weights).is_dir():
            break  # an ancestor's folder may be gone; but who is to be left out may have taught it
        asked.add(weights)
        origin = find_run(artifacts, weights)
        without = origin.federation.left_out
        dealt = origin.read_json("dataset_splits.json")["images"]
        learned |= {one["sha256"] for one in dealt if one["split"] == "train" and one["hospital"] != without}
        weights = origin.federation.model.weights
    if not asked:
        return
    held_out = [
        split.image.sha256 for split in data.splits if split.part != "train" or split.image.hospital == left_out
    ]
    if data.external is not None:
        held_out += [image.sha256 for image in data.external.holding.images]
    if seen := sum(sha256 in learned for sha256 in held_out):
        mend = "give this federation the same [split] and the same hospitals"
        if left_out is not None:
            mend += f", and start from weights that never saw {left_out}, which is left out"
        raise ConfigError(
            f"model.weights = '{name}': learned from {seen:,} of the {len(held_out):,} images that are held out here; "
            f"{mend}"
        )


def reopen_run(artifacts: Path, name: str) -> Run:
    """An unfinished run to go on with. Raises RunError where there is nothing to resume."""
    run = find_run(artifacts, name)
    if run.is_finished:
        raise RunError(f"{run.folder}: is finished; there is nothing to resume")
    if not (run.folder / "config.json").is_file():
        raise RunError(f"{run.folder}: was stopped before it began; delete it and train anew")
    return run


def train_run(
    run: Run,
    data: FederationData,
    on_training: OnTraining = lambda progress: None,
    features: FeatureMemory | None = None,
) -> Run:
    """Train every arm that is not trained yet, then write predictions, evaluation and, last, the manifest.

    `features` is given by who trains several runs: a frozen backbone then sees the same images once.
    """
    federation = data.federation
    if run.read_json("dataset_splits.json") != data.splits_json():
        raise RunError(f"{run.folder}: the images are no longer those it began with; train anew")
    checkpoint = Checkpoint(run.folder, keep_rounds=federation.training.keep_rounds)
    with (
        alone_with(run.lock_file, f"{run.folder}: is being trained"),
        logging_to(run.folder / "training.log"),
        audited(run, checkpoint) as audit_log,
    ):
        _sweep(run.folder)
        if not _is_evaluated(run, checkpoint):
            device = choose_device(federation.training)
            seed = federation.training.seed
            network = build_network(federation.model, len(federation.classes), seed, run.folder.parent)
            if run.config.starting_weights_sha256 not in (None, start_sha256(federation.model, run.folder.parent)):
                raise RunError(f"{run.folder}: {federation.model.weights} is not as it was when it began; train anew")
            network = with_heads(network, federation).to(device)
            sets: Sets = {part: image_sets(data, part) for part in SHOWN}
            if federation.model.freeze_backbone:
                log.info("computing the features of every image, once")
                checkpoint.backbone = {name: tensor.clone() for name, tensor in network.state_dict().items()}
                memory = features or FeatureMemory()
                sets, network = memory.features(network, sets, data, device), HeadNetwork(network)
            plans = plan_models(data, sets)
            start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            _train_models(run, plans, federation, network, start, device, checkpoint, audit_log, on_training)
            _write_weights(run, plans, checkpoint, start)
            if federation.privacy is not None:
                _write_privacy(run, plans, checkpoint, federation.privacy)
            trainers = [tuple(plan.training_sets) for plan in plans if plan.arm == "federated"]
            if federation.secure_aggregation is not None and trainers:
                write_secure_aggregation(run, trainers[0], federation.secure_aggregation, in_one_process=True)
            if federation.pretext is None:
                _write_predictions(run, plans, data, sets, network, device)
            write_results(run, transport="in_process", pooling_once_bytes=_training_bytes(data))
        log.info("run %s is complete", run.name)
        checkpoint.remove()
        write_manifest(run.folder, run.config, audit_log)
    return Run(run.folder)


def _train_models(
    run: Run,
    plans: Sequence[ModelPlan],
    federation: Federation,
    network: Network,
    start: Tensors,
    device: torch.device,
    checkpoint: Checkpoint,
    audit_log: AuditLog,
    on_training: OnTraining,
) -> None:
    federated_rules = rules_of(federation)
    private = federated_rules.private(network)
    shared = {name: tensor for name, tensor in start.items() if name not in private}
    tasks = {plan.model: make_tasks(network, federation, plan.arm) for plan in plans}
    begun = {plan.model: shared for plan in plans if plan.arm == "federated"}
    for plan in plans:
        if plan.arm != "federated":  # one trainer, and all that its network has
            (trainer,) = plan.training_sets
            begun[plan.model] = {name: start[name] for name in tasks[plan.model][trainer].network.state_dict()}
    states = {model: checkpoint.read(model) or TrainingState(weights, weights) for model, weights in begun.items()}
    drop_rounds_after(run.folder / "rounds.jsonl", {model: state.round for model, state in states.items()})
    report = ProgressReport(
        checkpoint.folder / "progress.json",
        {plan.model: plan.sizes for plan in plans},
        federation.training,
        rounds_done={model: state.round for model, state in states.items()},
        on_training=on_training,
    )
    for plan in plans:
        report.begin(plan.model)
        state = states[plan.model].to(device)
        log.info("%s: from round %d to %d", plan.model, state.round, federation.training.rounds)
        federated = plan.arm == "federated"
        # The other arms answer what would be without a federation: its strategy and compression are not theirs.
        rules = federated_rules if federated else Rules()
        transport = InProcessTransport(
            network,
            federation,
            training_sets=plan.training_sets,
            validation_sets=plan.validation_sets,
            device=device,
            on_images=report.on_images,
            rules=rules,
            kept=state.hospitals,
            at_start=label("private", {name: start[name] for name in private}) if federated else {},
            tasks=tasks[plan.model],
        )
        if federated:
            audited = AuditedRounds(checkpoint, audit_log)
            run_rounds(
                plan.arm, plan.model, federation.training, transport, state, audited, rules, report, audited.see_update
            )
        else:
            run_rounds(plan.arm, plan.model, federation.training, transport, state, checkpoint, rules, report)


def _write_weights(run: Run, plans: Sequence[ModelPlan], checkpoint: Checkpoint, start: Tensors) -> None:
    for plan in plans:
        state = checkpoint.read(plan.model)
        if state is None:
            raise RunError(f"{run.folder}: checkpoint of {plan.model} is missing; train anew")
        best = {**checkpoint.backbone, **state.best_weights}
        save_tensors(run.folder / weights_name(plan.model), best)
        if plan.model == "global":
            save_tensors(run.folder / "weights" / "global-last.safetensors", {**checkpoint.backbone, **state.weights})
            if run.federation.aggregation.keeps_private:  # "global" is then what all hospitals share, and no more
                for hospital in plan.training_sets:
                    own = of_kind("private", state.best_hospitals.get(hospital, {}))
                    save_tensors(run.folder / weights_name(f"personal/{hospital}"), {**start, **best, **own})


def _write_privacy(run: Run, plans: Sequence[ModelPlan], checkpoint: Checkpoint, privacy: PrivacyConfig) -> None:
    models = {}
    for plan in plans:
        state = checkpoint.read(plan.model)
        models[plan.model] = plan.sizes, state.hospitals if state else {}
    write_json(run.folder / PRIVACY, describe_privacy(run.federation, privacy, models))


def write_secure_aggregation(
    run: Run, trainers: Sequence[str], secure: SecureAggregationConfig, *, in_one_process: bool
) -> None:
    """Of the federated arm: the others have one trainer each, and nothing to mask."""
    training = run.federation.training
    asked = {number: choose_hospitals(trainers, training, number) for number in range(1, training.rounds + 1)}
    told = describe_secure_aggregation(run.federation, secure, asked, run.rounds(), in_one_process=in_one_process)
    write_json(run.folder / SECURE_AGGREGATION, told)


def _write_predictions(
    run: Run, plans: Sequence[ModelPlan], data: FederationData, sets: Sets, network: Network, device: torch.device
) -> None:
    """Every model's predictions, and what follows from them."""
    predictions = predict_all(run, plans, data, sets, network, device)
    write_atomically(run.folder / "predictions.parquet", lambda path: predictions.to_parquet(path, index=False))
    evaluation = evaluate_predictions(
        predictions,
        data.federation.classes,
        shared_classes=shared_classes(data),
        positive=data.federation.positive_class,
    )
    write_json(run.folder / EVALUATION, evaluation)


def write_results(run: Run, *, transport: Transport, pooling_once_bytes: int) -> None:
    """What follows from the rounds; `pooling_once_bytes` are the training images' own, had they travelled instead."""
    lines = read_rounds(run.folder / "rounds.jsonl")
    write_json(run.folder / "training_history.json", training_history(lines))
    for name, rows in metric_tables(lines).items():
        columns = ["round"] + (["client_id"] if "client" in name else []) + ["num_examples", "loss", "accuracy"]
        columns.append("seconds" if name.startswith("fit") else "macro_f1")
        write_table(run.folder / "metrics" / f"{name}.csv", rows, columns)
    traffic = {
        "schema_version": 1,
        "transport": transport,
        "compression": run.federation.communication.compression,
        "hospitals": communication(lines),
        "pooling_once_bytes": pooling_once_bytes,
    }
    write_json(run.folder / "communication.json", traffic)


def _training_bytes(data: FederationData) -> int:
    return sum(
        (data.root / split.image.path).stat().st_size
        for hospital in data.federation.hospital
        for split in data.images_used("train", hospital)
    )


def _is_evaluated(run: Run, checkpoint: Checkpoint) -> bool:
    """Stopped between its last result and its manifest: the traffic is written after all else."""
    return (run.folder / "communication.json").is_file() and not checkpoint.folder.is_dir()


def _sweep(folder: Path) -> None:
    """Files that a killed process was still writing; their names begin with a dot."""
    for path in folder.rglob(".*"):
        if path.is_file():
            path.unlink()


@contextmanager
def audited(run: Run, checkpoint: Checkpoint) -> Iterator[AuditLog]:
    """The run's audit log, which is told who trains and, where it ends early, why."""
    audit_log = AuditLog(run.folder / AUDIT_LOG)
    user, host = who()
    if audit_log.last is None and not (run.folder / "rounds.jsonl").exists():
        known = [run.folder / name for name in ("config.json", "dataset_splits.json")]  # splits stay at far hospitals
        files = {path.name: sha256_of(path) for path in known if path.is_file()}
        audit_log.append(Started(user=user, host=host, files=files), now())
    else:
        trained = _is_evaluated(run, checkpoint)
        after = run.federation.training.rounds if trained else checkpoint.last_round("global")
        if audit_log.torn_bytes:
            log.info("%s: its last line was torn by a kill and is taken off", AUDIT_LOG)
        audit_log.append(
            Resumed(user=user, host=host, after_round=after, torn_bytes=audit_log.torn_bytes),
            now(),
        )
    try:
        yield audit_log
    except BaseException as error:
        with suppress(RunError):  # a full disk is what stopped it, perhaps
            audit_log.append(Stopped(reason=f"{type(error).__name__}: {error}".removesuffix(": ")), now())
        raise
