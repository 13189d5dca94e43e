"""A training whose hospitals are on other machines: the coordinator's side, from joining to the finished run folder.

Arms are federated and local. Of the images it learns counts; predictions and splits stay in the hospitals' own state
folders, so the run folder has neither, and copies of an image at two hospitals are noticed by nobody.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.config import Federation
from engine.data.audit import Audit, HospitalCounts
from engine.data.findings import Finding
from engine.data.skew import measure_skew
from engine.errors import DataError, RunError
from engine.federation.audited import AuditedRounds
from engine.federation.checkpoint import Checkpoint, save_tensors
from engine.federation.conversation import Evaluated, Joined, Kind, Question, Saying, TrainedAlone
from engine.federation.environment import describe_environment
from engine.federation.progress import ProgressReport
from engine.federation.rounds import TrainingState, run_rounds
from engine.federation.tasks import rules_of, with_heads
from engine.federation.training_log import log, logging_to
from engine.federation.training_run import audited, write_results, write_secure_aggregation
from engine.federation.transports.networked import Link, NetworkTransport, failure, square
from engine.federation.updates import HospitalFailure, Update, all_finite
from engine.results.bootstrap import REPLICATES
from engine.results.files import write_json
from engine.results.lock import alone_with
from engine.results.metrics import ECE_BINS
from engine.results.rounds import ALL, RoundLine, append_rounds, drop_rounds_after
from engine.results.run_folder import EVALUATION, JOINED, Run, RunConfig, create_run, now, weights_name, write_manifest
from engine.results.summaries import SCORE_BINS, ScoreSummary, score_summaries
from engine.results.words import count
from engine.training.build import build_network
from engine.training.features import HeadNetwork
from engine.training.networks import Network, Tensors


def start_networked_run(
    federation: Federation,
    training: str,
    joined: Mapping[str, Joined],
    federation_file: str,
    artifacts: Path,
    changes: Sequence[str] = (),
) -> Run:
    """Make the run folder and write down all that hospitals told when they joined."""
    audit = _audit(federation, joined)
    if audit.errors:
        raise DataError(audit.errors[0].sentence)
    environment = describe_environment(federation.training)
    folder = create_run(artifacts)
    config = RunConfig(
        started_at=now(),
        federation_file=federation_file,
        federation=federation,
        changes=tuple(changes),
        transport="flower",
    )
    counts = {hospital: audit.hospitals[hospital].class_counts for hospital in joined}
    skew = measure_skew(counts)
    stats: dict[str, dict[str, object]] = {
        hospital.name: {
            "total_samples": sum(counts[hospital.id].values()),
            "class_distribution": counts[hospital.id],
            "class_divergence": skew.from_federation[hospital.id],
            "location": hospital.location.place if hospital.location else "",
            "specialty": hospital.specialty,
            "dataset_id": "",
            "unmatched_folders": [],
        }
        for hospital in federation.hospital
        if hospital.id in joined
    }
    write_json(folder / "environment.json", environment)
    write_json(folder / "audit.json", audit.model_dump(mode="json"))
    write_json(folder / "dataset_stats.json", stats)
    told = {name: one.model_dump(mode="json") for name, one in joined.items()}
    write_json(folder / JOINED, {"schema_version": 1, "training": training, "hospitals": told})
    write_json(folder / "label_map.json", {label: index for index, label in enumerate(federation.classes)})
    write_json(folder / "config.json", config.model_dump(mode="json"))
    return Run(folder)


def new_training() -> str:
    """Names a training at its hospitals, from joining through every resume."""
    return secrets.token_hex(8)


def join(federation: Federation, link: Link, training: str) -> dict[str, Joined]:
    """What every hospital that takes part holds; who does not join now has no part in this training.

    Raises RunError where fewer join than a round needs.
    """
    hospitals = [hospital.id for hospital in federation.hospital]
    config = federation.model_dump(mode="json")
    asked = [Question(kind="join", training=training, hospital=one, federation=config) for one in hospitals]
    joined, declined = {}, []
    for hospital, reply in zip(hospitals, link.ask([(question, {}) for question in asked]), strict=True):
        match reply:
            case (Joined() as said, _) if all(set(told) == set(federation.classes) for told in said.counts.values()):
                joined[hospital] = said
            case _:
                reason = failure(hospital, reply).reason
                log.warning("%s does not join: %s", hospital, reason)
                declined.append(f"{federation.display_name(hospital)}: {reason}")
    needed = max(federation.training.min_hospitals, 1)
    if len(joined) < needed:
        raise RunError(f"{len(joined)} of at least {needed} hospitals joined ({'; '.join(declined)})")
    return joined


def train_networked_run(run: Run, link: Link) -> Run:
    """Every round, every hospital's own model, then what hospitals tell of their predictions; the manifest last."""
    federation, known = run.federation, run.read_json(JOINED)
    checkpoint = Checkpoint(run.folder, keep_rounds=federation.training.keep_rounds)
    with (
        alone_with(run.lock_file, f"{run.folder}: is being trained"),
        logging_to(run.folder / "training.log"),
        audited(run, checkpoint) as audit_log,
    ):
        network = with_heads(
            build_network(federation.model, len(federation.classes), federation.training.seed), federation
        )
        if federation.model.freeze_backbone:
            checkpoint.backbone = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            network = HeadNetwork(network)
        rules = rules_of(federation)
        state = checkpoint.read("global") or _beginning(network, rules.private(network))
        drop_rounds_after(run.folder / "rounds.jsonl", {"global": state.round})
        held = {name: Joined.model_validate(told) for name, told in known["hospitals"].items()}
        validators = [name for name, told in held.items() if sum(told.counts["validation"].values())]
        sizes = {name: sum(told.counts["train"].values()) for name, told in held.items()}
        transport = NetworkTransport(link, federation, known["training"], rules, state, sizes, validators)
        log.info("global: from round %d to %d", state.round, federation.training.rounds)
        rounds = AuditedRounds(checkpoint, audit_log)
        report = ProgressReport(
            checkpoint.folder / "progress.json",
            {"global": sizes},
            federation.training,
            rounds_done={"global": state.round},
            on_training=lambda progress: None,
        )
        report.begin("global")

        def on_update(update: Update) -> None:
            rounds.see_update(update)
            report.on_images(state.round + 1, update.hospital, federation.training.local_epochs * update.n_images)

        state = run_rounds(
            "federated", "global", federation.training, transport, state, rounds, rules, report, on_update
        )
        if "local" in federation.arms:
            _train_alone(run, link, transport)
        save_tensors(run.folder / weights_name("global"), {**checkpoint.backbone, **state.best_weights})
        save_tensors(run.folder / "weights" / "global-last.safetensors", {**checkpoint.backbone, **state.weights})
        if federation.secure_aggregation is not None:
            write_secure_aggregation(run, list(held), federation.secure_aggregation, in_one_process=False)
        if federation.pretext is None:
            _evaluate(run, link, transport, state.best_weights, held)
        image_bytes = sum(told.image_bytes for told in held.values())
        write_results(run, transport="flower", pooling_once_bytes=image_bytes)
        log.info("run %s is complete", run.name)
        checkpoint.remove()
        write_manifest(run.folder, run.config, audit_log)
    return Run(run.folder)


def _beginning(network: Network, private: frozenset[str]) -> TrainingState:
    shared = {name: tensor.clone() for name, tensor in network.state_dict().items() if name not in private}
    return TrainingState(shared, shared)


def _train_alone(run: Run, link: Link, transport: NetworkTransport) -> None:
    """Each hospital's own model, at the hospital; its rounds come back, and replace what an earlier sitting left."""
    for hospital, reply in _ask_all(link, transport, "local", {}):
        match reply:
            case (TrainedAlone() as said, _) if _are_own_rounds(said.rounds, hospital, run.federation.training.rounds):
                append_rounds(run.folder / "rounds.jsonl", said.rounds)
            case _:
                log.warning("%s: its own model is missing: %s", hospital, failure(hospital, reply).reason)


def _are_own_rounds(lines: Sequence[RoundLine], hospital: str, n_rounds: int) -> bool:
    """Each round once for the hospital and once in sum, of its own model alone."""
    expected = [("local", f"local/{hospital}", number, name) for number in range(1, n_rounds + 1)
                for name in (hospital, ALL)]  # fmt: skip
    return [(line.arm, line.model, line.round, line.hospital) for line in lines] == expected


def _evaluate(run: Run, link: Link, transport: NetworkTransport, weights: Tensors, held: Mapping[str, Joined]) -> None:
    federation = run.federation
    told: dict[str, dict[str, dict[str, ScoreSummary]]] = {}
    for hospital, reply in _ask_all(link, transport, "evaluate", weights):
        match reply:
            case (Evaluated() as said, own) if _is_sound(said, hospital, federation):
                for part, models in said.scores.items():
                    for model, summary in models.items():
                        told.setdefault(part, {}).setdefault(model, {})[hospital] = summary
                if own and _is_like(own, weights):
                    save_tensors(run.folder / weights_name(f"local/{hospital}"), own)
            case _:
                log.warning("%s: is not evaluated: %s", hospital, failure(hospital, reply).reason)
    classes = federation.classes
    owners = {label: sum(bool(sum(one.counts[part][label] for part in one.counts)) for one in held.values())
              for label in classes}  # fmt: skip
    shared = [label for label in classes if owners[label] > 1]

    def cell(summaries: Sequence[ScoreSummary]) -> dict[str, object]:
        return score_summaries(summaries, classes, shared_classes=shared, positive=federation.positive_class)

    splits = {
        part: {
            model: {ALL: cell(list(cells.values()))} | {hospital: cell([one]) for hospital, one in cells.items()}
            for model, cells in models.items()
        }
        for part, models in told.items()
    }
    write_json(
        run.folder / EVALUATION,
        {
            "schema_version": 1,
            "classes": list(classes),
            "shared_classes": shared,
            "positive": federation.positive_class,
            "intervals": "95%, percentile bootstrap over groups, drawn by each hospital",
            "ece_bins": ECE_BINS,
            "splits": splits,
        },
    )


def _is_like(own: Tensors, weights: Tensors) -> bool:
    """Finite tensors of the shared ones' names, shapes and types, and perhaps private ones beside them."""
    shared = {name: own.get(name) for name in weights}
    return all(all_finite(tensor) for tensor in own.values() if tensor.is_floating_point()) and all(
        tensor is not None and tensor.shape == weights[name].shape and tensor.dtype == weights[name].dtype
        for name, tensor in shared.items()
    )


def _is_sound(said: Evaluated, hospital: str, federation: Federation) -> bool:
    """A hospital speaks of the federated model and of its own, in counts of the federation's classes."""
    n_classes = len(federation.classes)
    models_here = ("global", f"local/{hospital}") if "local" in federation.arms else ("global",)
    return all(
        model in models_here
        and sum(images for images, _, _ in one.calibration) == sum(map(sum, one.confusion_matrix))
        and all(sum(row) > 0 for row in one.replicates)
        and square(one.confusion_matrix, n_classes) is not None
        and len(one.calibration) == ECE_BINS
        and len(one.scores) == n_classes
        and all(len(bins) == SCORE_BINS for both in one.scores for bins in both)
        and len(one.replicates) == REPLICATES
        and all(len(row) == n_classes**2 for row in one.replicates)
        for models in said.scores.values()
        for model, one in models.items()
    )


def _ask_all(
    link: Link, transport: NetworkTransport, kind: Kind, tensors: Tensors
) -> list[tuple[str, tuple[Saying, Tensors] | HospitalFailure]]:
    asked = [(transport.question(kind, hospital), tensors) for hospital in transport.trainers]
    return list(zip(transport.trainers, link.ask(asked), strict=True))


def _audit(federation: Federation, joined: Mapping[str, Joined]) -> Audit:
    """Of what hospitals told. What each found among its own files stays there; here is how much."""
    findings, hospitals = [], {}
    for name, told in joined.items():
        classes = {label: sum(told.counts[part][label] for part in told.counts) for label in federation.classes}
        hospitals[name] = HospitalCounts(
            n_images=sum(classes.values()),
            class_counts=classes,
            unreadable=told.unreadable,
            exact_duplicates=told.exact_duplicates,
        )
        if told.findings.get("warning"):
            findings.append(
                Finding(
                    severity="warning",
                    kind="kept-at-hospital",
                    hospital=name,
                    sentence=f"{federation.display_name(name)}: its own audit has "
                    f"{count(told.findings['warning'], 'warning')}, kept there",
                )
            )
    for label in federation.classes:
        owners = [name for name, one in hospitals.items() if one.class_counts[label]]
        if not owners:
            sentence = f"no hospital holds an image of '{label}'; drop the class"
            findings.append(Finding(severity="error", kind="absent-class", hospital=None, sentence=sentence))
        elif len(owners) == 1 and len(hospitals) > 1:
            only = federation.display_name(owners[0])
            sentence = f"only {only} holds {label}: the model may learn to recognise the hospital instead"
            findings.append(
                Finding(severity="warning", kind="one-hospital-class", hospital=owners[0], sentence=sentence)
            )
    if not all(told.patients_known for told in joined.values()):
        sentence = "patients unknown at some hospital: these figures flatter; expect a fall elsewhere"
        findings.append(Finding(severity="warning", kind="patients-unknown", hospital=None, sentence=sentence))
    sentence = "hospitals are on machines of their own, so copies of an image at two of them are unchecked"
    findings.append(Finding(severity="warning", kind="unchecked-duplicates", hospital=None, sentence=sentence))
    order = {"error": 0, "warning": 1, "note": 2}
    return Audit(
        federation=federation.name,
        hospitals=hospitals,
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
    )
