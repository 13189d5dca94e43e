"""Training a whole network on a few labels, wherever its encoder comes from: the same budget for each."""

import math

import torch

from engine.config import Federation
from engine.federation.arms import POOLED
from engine.federation.rounds import TrainingState, run_rounds
from engine.federation.transports.in_process import InProcessTransport
from engine.results.metrics import Floats
from engine.sections import TrainingConfig
from engine.training.images import ImageSet
from engine.training.local import predict_logits
from engine.training.networks import Network

LEAST_STEPS = 400  # below, BatchNorm's statistics and a new head are still on their way, and from scratch looks bad


def fine_tuning(federation: Federation, n_labels: int) -> TrainingConfig:
    """The federation's own [training], with more epochs a round where it would make fewer than LEAST_STEPS steps."""
    training = federation.training
    epochs = math.ceil(LEAST_STEPS / (training.rounds * math.ceil(n_labels / training.batch_size)))
    return training.model_copy(update={"local_epochs": max(training.local_epochs, epochs)})


def fine_tune(
    network: Network,
    federation: Federation,
    labelled: ImageSet,
    validation: ImageSet,
    test: ImageSet,
    device: torch.device,
) -> tuple[Floats, int]:
    """Logits (n, classes) of test images by the best round on validation images, and that round.

    The pooled arm's rounds, by `fine_tuning`; every weight is trained, without noise.
    """
    training = fine_tuning(federation, len(labelled))
    supervised = federation.model_copy(update={"pretext": None, "privacy": None, "training": training})
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    transport = InProcessTransport(
        network,
        supervised,
        training_sets={POOLED: labelled},
        validation_sets={POOLED: validation},
        device=device,
        on_images=lambda *_: None,
    )
    state = run_rounds("central", "finetuned", supervised.training, transport, TrainingState(start, start))
    network.load_state_dict(state.best_weights)
    return predict_logits(network, test, device), state.best_round
