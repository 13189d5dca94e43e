"""All hospitals in this process, one after the other, through one reusable network and without copying images."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from engine.config import Federation
from engine.errors import ConsiliumError, RunError, UpdateError
from engine.federation.seeds import derive_seed
from engine.federation.transports import ValidationReply
from engine.federation.updates import HospitalFailure, Update
from engine.results.metrics import confusion
from engine.results.rounds import Epoch
from engine.training.device import explained_out_of_memory
from engine.training.images import ImageSet
from engine.training.local import predict_logits, train_locally
from engine.training.networks import Network, Tensors

OnImages = Callable[[int, str, int], None]  # round, hospital, n_images of one batch


class InProcessTransport:
    def __init__(
        self,
        network: Network,
        federation: Federation,
        *,
        training_sets: Mapping[str, ImageSet],
        validation_sets: Mapping[str, ImageSet],
        device: torch.device,
        on_images: OnImages,
    ) -> None:
        self.trainers = tuple(training_sets)
        self._network = network
        self._federation = federation
        self._training_sets = training_sets
        self._validation_sets = validation_sets
        self._device = device
        self._on_images = on_images

    def train(
        self, weights: Tensors, round_number: int, hospitals: Sequence[str]
    ) -> Iterator[Update | HospitalFailure]:
        for hospital in hospitals:
            try:
                with explained_out_of_memory(self._federation):
                    reply = self._train_one(weights, round_number, hospital)
            except RunError:  # memory or disk ran out: that is this machine's, no hospital's
                raise
            except (ConsiliumError, RuntimeError, ValueError, OSError) as error:
                yield HospitalFailure(hospital, f"{type(error).__name__}: {error}")
            else:
                yield reply

    def validate(self, weights: Tensors, round_number: int) -> Iterator[ValidationReply | HospitalFailure]:
        self._network.load_state_dict(weights)
        for hospital, images in self._validation_sets.items():
            with explained_out_of_memory(self._federation):
                logits = predict_logits(self._network, images, self._device)
            labels = images.labels.numpy()
            loss = float(functional.cross_entropy(torch.from_numpy(logits), images.labels))
            yield ValidationReply(hospital, loss, confusion(labels, np.argmax(logits, axis=1), logits.shape[1]))

    def _train_one(self, weights: Tensors, round_number: int, hospital: str) -> Update:
        started = time.perf_counter()
        images = self._training_sets[hospital]
        self._network.load_state_dict(weights)
        scores = train_locally(
            self._network,
            images,
            self._federation.model,
            self._federation.training,
            round_number=round_number,
            seed=derive_seed(self._federation.training.seed, round_number, hospital),
            device=self._device,
            on_images=lambda n_images: self._on_images(round_number, hospital, n_images),
        )
        if not all(math.isfinite(score.loss) for score in scores):
            raise UpdateError("the loss is no longer a finite number; train anew with a lower training.learning_rate")
        epochs = tuple(Epoch(loss=s.loss, accuracy=s.accuracy, seconds=s.seconds) for s in scores)
        tensors = {name: tensor.detach() for name, tensor in self._network.state_dict().items()}
        return Update(hospital, tensors, len(images), epochs, time.perf_counter() - started)
