"""All hospitals in this process, one after the other, through one reusable network and without copying images."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from engine.config import Federation
from engine.errors import ConsiliumError, RunError
from engine.federation.hospital_round import Message, load_model, train_one_round
from engine.federation.named_tensors import label, of_kind
from engine.federation.privacy import KIND
from engine.federation.rounds import Rules
from engine.federation.secure_aggregation import Advertise, Participant, Reply, Request
from engine.federation.secure_round import mask_update
from engine.federation.seeds import derive_seed
from engine.federation.tasks import Task
from engine.federation.transports import AnyReply, PretextReply, ValidationReply
from engine.federation.updates import HospitalFailure, Update
from engine.results.metrics import confusion
from engine.training.device import explained_out_of_memory
from engine.training.images import TrainingSet
from engine.training.local import predict_logits, score_objective
from engine.training.networks import Network, Tensors
from engine.training.objectives import PretextObjective

OnImages = Callable[[int, str, int], None]  # round, hospital, n_images of one batch


class InProcessTransport:
    """`kept` is what each hospital keeps between rounds, by hospital id and "kind/name"; a hospital that has not
    trained yet has `at_start`: the private part of the network it began with. `tasks` say, by trainer and validator,
    who learns something else than labels, and on which network in place of `network`."""

    def __init__(
        self,
        network: Network,
        federation: Federation,
        *,
        training_sets: Mapping[str, TrainingSet],
        validation_sets: Mapping[str, TrainingSet],
        device: torch.device,
        on_images: OnImages,
        rules: Rules | None = None,
        kept: Mapping[str, Tensors] | None = None,
        at_start: Tensors | None = None,
        tasks: Mapping[str, Task] | None = None,
    ) -> None:
        self.trainers = tuple(training_sets)
        self._plain = Task(network)
        self._tasks = tasks or {}
        self._federation = federation
        self._training_sets = training_sets
        self._validation_sets = validation_sets
        self._device = device
        self._on_images = on_images
        self._rules = rules or Rules()
        self._kept = dict(kept or {})
        self._new: dict[str, Tensors] = {}  # of the round that is not settled yet
        self._at_start = at_start or {}
        self._participants: dict[str, Participant] = {}  # of secure aggregation, this round's

    def exchange(self, requests: Mapping[str, Request]) -> Mapping[str, Reply | HospitalFailure]:
        replies: dict[str, Reply | HospitalFailure] = {}
        for hospital, request in requests.items():
            if isinstance(request, Advertise):
                self._participants[hospital] = Participant(hospital)
            try:
                replies[hospital] = self._participants[hospital].answer(request)
            except ConsiliumError as error:
                replies[hospital] = HospitalFailure(hospital, str(error))
        return replies

    def train(self, sent: Tensors, round_number: int, hospitals: Sequence[str]) -> Iterator[Update | HospitalFailure]:
        for hospital in hospitals:
            task = self._tasks.get(hospital, self._plain)
            message = Message(self._rules.message(sent, hospital), round_number, hospital)
            try:
                with explained_out_of_memory(self._federation):
                    reply, kept = train_one_round(
                        task.network,
                        self._federation,
                        self._rules,
                        self._training_sets[hospital],
                        message,
                        self._kept.get(hospital, self._at_start),
                        device=self._device,
                        on_images=partial(self._on_images, round_number, hospital),
                        objective=task.objective,
                    )
                if self._rules.secure_aggregation:
                    reply = mask_update(reply, message.sent, self._participants[hospital], hospitals)
            except RunError:  # memory or disk ran out: that is this machine's, no hospital's
                raise
            except (ConsiliumError, RuntimeError, ValueError, OSError) as error:
                yield HospitalFailure(hospital, f"{type(error).__name__}: {error}")
            else:
                if kept:
                    self._new[hospital] = kept
                yield reply

    def settle(self, refused: Collection[str]) -> None:
        for hospital, kept in self._new.items():
            if hospital not in refused:
                self._kept[hospital] = kept
            elif account := label(KIND, of_kind(KIND, kept)):  # refused or not, its update was seen
                self._kept[hospital] = {**self._kept.get(hospital, self._at_start), **account}
        self._new = {}

    def validate(self, weights: Tensors, round_number: int) -> Iterator[AnyReply]:
        for number, (hospital, images) in enumerate(self._validation_sets.items()):
            task = self._tasks.get(hospital, self._plain)
            if number == 0 or self._at_start or task.objective:  # every hospital validates its own model
                load_model(task.network, weights, self._kept.get(hospital, self._at_start))
            if task.objective is not None:
                yield self._score(hospital, task.network, task.objective, images)
                continue
            with explained_out_of_memory(self._federation):
                logits = predict_logits(task.network, images, self._device)
            labels = images.labels.numpy()
            loss = float(functional.cross_entropy(torch.from_numpy(logits), images.labels))
            yield ValidationReply(hospital, loss, confusion(labels, np.argmax(logits, axis=1), logits.shape[1]))

    def _score(self, hospital: str, network: Network, objective: PretextObjective, images: TrainingSet) -> PretextReply:
        training = self._federation.training
        seed = derive_seed(training.seed, 0, hospital)  # of no round: every round is measured on the same views
        with explained_out_of_memory(self._federation):
            loss, share = score_objective(network, images, objective, training.batch_size, seed, self._device)
        return PretextReply(hospital, loss, share, len(images))

    def kept(self) -> dict[str, Tensors]:
        """By hospital id; the tensors are replaced by later rounds, never changed."""
        return dict(self._kept)
