"""One hospital's node: answers a coordinator's questions from its own images, and keeps its results at home.

Its state folder has, by training: `kept/` what it keeps between rounds, `alone/` its own model as it is trained, and
at the end `dataset_splits.json` and `predictions.parquet`, which never leave it.
"""

import datetime
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from engine.config import Federation, networked
from engine.data.federation_data import read_federation_data
from engine.data.splits import PARTS, Part
from engine.errors import ConfigError, ConsiliumError, DataError
from engine.federation.arms import ModelPlan, Sets, image_sets, plan_models
from engine.federation.audited import fingerprint
from engine.federation.checkpoint import Checkpoint, load_tensors, save_tensors
from engine.federation.conversation import (
    TRAINING_ID,
    Compared,
    Declined,
    Evaluated,
    Exchanged,
    Joined,
    Question,
    Saying,
    Trained,
    TrainedAlone,
    Validated,
)
from engine.federation.frozen import cache_features
from engine.federation.named_tensors import label, of_kind
from engine.federation.policy import Policy
from engine.federation.predictions import prediction_rows
from engine.federation.privacy import KIND, Account, require_noise
from engine.federation.rounds import Rules, TrainingState, run_rounds
from engine.federation.secure_aggregation import Advertise, Participant, Request, ShareKeys
from engine.federation.secure_round import mask_update
from engine.federation.tasks import make_tasks, rules_of, with_heads
from engine.federation.training_log import log
from engine.federation.transports import PretextReply
from engine.federation.transports.in_process import InProcessTransport
from engine.federation.updates import HospitalFailure
from engine.results.files import read_json, write_atomically, write_json
from engine.results.rounds import drop_rounds_after, read_rounds
from engine.results.summaries import summarise
from engine.secure_aggregation_config import FEWEST
from engine.training.build import build_network
from engine.training.device import choose_device
from engine.training.features import HeadNetwork
from engine.training.local import predict_logits
from engine.training.networks import Network, Tensors


class HospitalNode:
    """`data` holds the hospital's class folders, or its part of the federation's [source]."""

    def __init__(
        self,
        hospital: str,
        data: Path,
        state: Path,
        policy: Policy | None = None,
        clock: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        self.hospital = hospital
        self._data = data
        self._state = state
        self._policy = policy or Policy()
        self._clock = clock
        self._work: _Work | None = None

    def answer(self, question: Question, tensors: Tensors) -> tuple[Saying, Tensors]:
        """Never raises what a hospital's files could show through: the reason that travels names none of them."""
        try:
            if question.hospital != self.hospital:
                raise RefusalError(f"this node is {self.hospital}, not {question.hospital}")
            federation = _agreed(question.federation)
            if reason := self._policy.refusal(federation, self._clock().time()):
                raise RefusalError(reason)
            if self._work is None or self._work.federation != federation or self._work.training != question.training:
                self._work = _Work(self.hospital, federation, question.training, self._data, self._state)
            return self._work.answer(question, tensors, share_local_model=self._policy.share_local_model)
        except RefusalError as refusal:
            log.warning("%s: refused: %s", question.kind, refusal)
            return Declined(reason=str(refusal)), {}
        except ValidationError as error:
            log.error("%s: the federation is none that this version knows: %s", question.kind, error)
            return Declined(reason="the federation is none that this hospital's version knows"), {}
        except Exception as error:  # whatever it was asked, this node goes on
            log.error("%s failed: %s: %s", question.kind, type(error).__name__, error)
            return Declined(reason=f"{question.kind} failed ({type(error).__name__}); this hospital's log says why"), {}


class RefusalError(ConsiliumError):
    """Its words may travel."""


class _Work:
    """One training at one hospital, from the first question about it."""

    def __init__(self, hospital: str, federation: Federation, training: str, data: Path, state: Path) -> None:
        self.federation, self.training = federation, training
        self._hospital = hospital
        self._folder = state / training
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        agreed, told = self._folder / "federation.json", federation.model_dump(mode="json")
        if agreed.is_file() and read_json(agreed) != told:  # or what one file keeps here, another could send away
            raise RefusalError("this training began here with another federation file")
        write_json(agreed, told)
        self._data = read_federation_data(alone(federation, hospital), data)
        if wrong := [found for found in self._data.audit.errors if found.kind != "absent-class"]:
            raise DataError(wrong[0].sentence)
        write_json(self._folder / "dataset_splits.json", self._data.splits_json())
        training_config = federation.training
        self._device = choose_device(training_config)
        network = build_network(federation.model, len(federation.classes), training_config.seed)
        self._network: Network = with_heads(network, federation).to(self._device)
        self._sets: Sets = {part: image_sets(self._data, part) for part in PARTS}
        if federation.model.freeze_backbone:
            self._sets = cache_features(self._network, self._sets, self._data.federation, self._device)
            self._network = HeadNetwork(self._network)
        if federation.privacy is not None:
            require_noise(federation.privacy, self._data.federation, image_sets(self._data, "train"))
        self._plans = {plan.arm: plan for plan in plan_models(self._data, self._sets)}
        self._start = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}
        self._rules = rules_of(federation)  # of the whole federation: a strategy may count its hospitals
        self._participant: Participant | None = None  # of secure aggregation, this round's
        self._private = {name: self._start[name] for name in self._rules.private(self._network)}

    def answer(self, question: Question, tensors: Tensors, *, share_local_model: bool) -> tuple[Saying, Tensors]:
        match question.kind:
            case "join":
                return self._join(), {}
            case "exchange":
                return self._exchange(question.request), {}
            case "train":
                return self._train(question, tensors)
            case "validate":
                return self._validate(question, tensors), {}
            case "local":
                return self._train_alone(), {}
            case "evaluate":
                scores = self._evaluate(question, tensors)
                own = self._own_model() if share_local_model and "local" in self.federation.arms else {}
                return scores, own

    def _join(self) -> Joined:
        counts: dict[Part, dict[str, int]] = {part: dict.fromkeys(self.federation.classes, 0) for part in PARTS}
        for split in self._data.splits:
            counts[split.part][split.image.label] += 1
        mine = self._data.audit.hospitals[self._hospital]
        used = self._data.images_used("train", self._data.federation.hospital[0])
        return Joined(
            counts=counts,
            unreadable=mine.unreadable,
            exact_duplicates=mine.exact_duplicates,
            findings={
                severity: sum(found.severity == severity for found in self._data.audit.findings)
                for severity in ("error", "warning", "note")
            },
            patients_known=all(split.image.patient is not None for split in self._data.splits),
            image_bytes=sum((self._data.root / split.image.path).stat().st_size for split in used),
        )

    def _exchange(self, request: Request | None) -> Exchanged:
        if isinstance(request, Advertise):
            self._participant = Participant(self._hospital)
        if self._participant is None or request is None:
            raise RefusalError("this hospital has no keys of this round; it was started anew")
        secure = self._rules.secure_aggregation
        if isinstance(request, ShareKeys):
            few = len(request.keys) < FEWEST or secure is None or request.threshold < secure.minimum(len(request.keys))
            if few or not request.keys.keys() <= {one.id for one in self.federation.hospital}:
                raise RefusalError("a sum of so few would show this hospital's own update")
        return Exchanged(reply=self._participant.answer(request))

    def _train(self, question: Question, sent: Tensors) -> tuple[Saying, Tensors]:
        if not 1 <= question.round <= self.federation.training.rounds:
            raise RefusalError(f"round {question.round} is none of the {self.federation.training.rounds} agreed on")
        privacy, asked = self.federation.privacy, f"{question.round} {fingerprint(sent)}"
        spent = self._spent(asked) if privacy is not None else {}
        in_the_clear = replace(self._rules, secure_aggregation=None)  # until it leaves
        transport = self._transport(self._plans["federated"], in_the_clear, {**self._kept(question), **spent})
        (reply,) = transport.train(sent, question.round, [self._hospital])
        if isinstance(reply, HospitalFailure):
            raise ConfigError(reply.reason)
        transport.settle(refused=())
        kept = transport.kept().get(self._hospital, {})
        if privacy is not None:
            if reply.epsilon is None or reply.epsilon > 1.01 * privacy.epsilon:
                raise RefusalError("this hospital's epsilon is spent")
            self._spend(asked, spent, label(KIND, of_kind(KIND, kept)))
        if kept:
            save_tensors(self._kept_file(question.round), kept)
        if self._rules.secure_aggregation is not None:
            if self._participant is None:
                raise RefusalError("this hospital has no keys of this round; it was started anew")
            reply = mask_update(reply, sent, self._participant, question.peers)
        said = Trained(n_images=reply.n_images, epochs=reply.epochs, seconds=reply.seconds, epsilon=reply.epsilon)
        return said, reply.tensors

    def _spent(self, asked: str) -> Tensors:
        """The privacy account that a question begins from. The last question again (its answer was lost) has the same
        noise, so the same answer, and is paid for once; any other is paid for, whatever rounds it calls itself."""
        folder = self._folder / "spent"
        if not (folder / "after.safetensors").is_file():  # the key must outlive even a first answer that was lost
            save_tensors(folder / "after.safetensors", Account.of({}).kept())
        last = folder / "asked.json"
        again = last.is_file() and read_json(last) == asked
        return load_tensors(folder / ("before.safetensors" if again else "after.safetensors"))

    def _spend(self, asked: str, before: Tensors, after: Tensors) -> None:
        """Before the answer leaves. A kill in between counts a round twice, never not at all."""
        folder = self._folder / "spent"
        save_tensors(folder / "before.safetensors", before)
        save_tensors(folder / "after.safetensors", after)
        write_json(folder / "asked.json", asked)

    def _kept(self, question: Question) -> Tensors:
        """Of the last round that was averaged; of others' files only the best round's and the newest stay."""
        files = {int(path.stem): path for path in self._kept_file(0).parent.glob("*.safetensors")}
        for number in files.keys() - {question.accepted, question.best, max(files, default=0)}:
            files[number].unlink()
        return self._kept_from(question.accepted)

    def _kept_from(self, round_number: int) -> Tensors:
        file = self._kept_file(round_number)
        if file.is_file():
            return load_tensors(file)
        if round_number and (self._private or self.federation.privacy is not None):
            raise RefusalError(f"this hospital no longer has what it kept from round {round_number}; train anew")
        return label("private", self._private)

    def _kept_file(self, round_number: int) -> Path:
        return self._folder / "kept" / f"{round_number:04d}.safetensors"

    def _validate(self, question: Question, weights: Tensors) -> Saying:
        transport = self._transport(self._plans["federated"], self._rules, self._kept(question))
        for reply in transport.validate(weights, question.round):
            if isinstance(reply, HospitalFailure):
                raise ConfigError(reply.reason)
            loss = reply.loss if math.isfinite(reply.loss) else None
            if isinstance(reply, PretextReply):
                return Compared(loss=loss, share=reply.share, n_images=reply.n_images)
            rows = tuple(tuple(int(count) for count in row) for row in reply.confusion_matrix)
            return Validated(loss=loss, confusion_matrix=rows)
        raise RefusalError("this hospital has no validation images")

    def _train_alone(self) -> TrainedAlone:
        """The local arm, which nobody else has a part in; goes on where a stopped node left it."""
        plan, folder = self._plans["local"], self._folder / "alone"
        folder.mkdir(exist_ok=True)
        checkpoint = Checkpoint(folder, keep_rounds=False)
        own = make_tasks(self._network, self._data.federation, "local")[self._hospital].network.state_dict()
        begun = {name: self._start[name] for name in own}
        state = checkpoint.read(plan.model) or TrainingState(begun, begun)
        drop_rounds_after(folder / "rounds.jsonl", {plan.model: state.round})
        transport = self._transport(plan, Rules(), state.hospitals.get(self._hospital, {}))
        run_rounds("local", plan.model, self.federation.training, transport, state.to(self._device), checkpoint)
        return TrainedAlone(rounds=tuple(read_rounds(folder / "rounds.jsonl")))

    def _evaluate(self, question: Question, weights: Tensors) -> Evaluated:
        models = {"global": {**weights, **of_kind("private", self._kept_from(question.best))}}
        if "local" in self.federation.arms:
            models[f"local/{self._hospital}"] = self._own_model()
        rows, scores = [], dict[Part, dict[str, object]]()
        for model, tensors in models.items():
            self._network.load_state_dict({name: tensors[name] for name in self._network.state_dict()})
            for part in ("validation", "test"):
                images = self._sets[part].get(self._hospital)
                if images is None or not len(images):
                    continue
                logits = predict_logits(self._network, images, self._device)
                dealt = [(split.image, split.group) for split in self._data.splits if split.part == part]
                rows.append(prediction_rows(model, part, dealt, logits))
                summary = summarise(logits, images.labels.numpy(), [g for _, g in dealt], len(self.federation.classes))
                scores.setdefault(part, {})[model] = summary
        if rows:
            table = pd.concat(rows, ignore_index=True)
            write_atomically(self._folder / "predictions.parquet", lambda path: table.to_parquet(path, index=False))
        return Evaluated.model_validate({"scores": scores})

    def _own_model(self) -> Tensors:
        state = Checkpoint(self._folder / "alone", keep_rounds=False).read(self._plans["local"].model)
        if state is None:
            raise RefusalError("this hospital has not trained its own model yet")
        return state.best_weights

    def _transport(self, plan: ModelPlan, rules: Rules, kept: Tensors) -> InProcessTransport:
        return InProcessTransport(
            self._network,
            self._data.federation,
            training_sets=plan.training_sets,
            validation_sets=plan.validation_sets,
            device=self._device,
            on_images=lambda round_number, hospital, n_images: None,
            rules=rules,
            kept={self._hospital: kept} if kept else {},
            at_start=label("private", self._private) if plan.arm == "federated" else {},
            tasks=make_tasks(self._network, self.federation, plan.arm),
        )


def alone(federation: Federation, hospital: str) -> Federation:
    """The federation as one hospital's machine sees it: its own images, below its own data folder, and no other's."""
    mine = [one for one in federation.hospital if one.id == hospital]
    if not mine:
        raise RefusalError(f"the federation has no hospital '{hospital}'")
    folder = {"folder": "."} if federation.source is None else {}
    return federation.model_copy(update={"hospital": (mine[0].model_copy(update=folder),)})


def _agreed(told: dict[str, object]) -> Federation:
    """The federation that a question names, if it is one that can be trained over a network: no weights file of this
    machine, no pool of images that somebody deals."""
    federation = Federation.model_validate(told)
    try:
        return networked(federation)
    except ConfigError as error:
        raise RefusalError(str(error)) from None


def forget(state: Path) -> list[str]:
    """Delete every training's state; gives back their names."""
    gone = [path for path in sorted(state.iterdir()) if path.is_dir() and TRAINING_ID.fullmatch(path.name)]
    for path in gone:
        shutil.rmtree(path)
    return [path.name for path in gone]
