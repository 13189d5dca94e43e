"""What a training will cost, from what will really be trained and sent, without training anything."""

from pathlib import Path

from engine.config import Federation
from engine.data.federation_data import FederationData
from engine.federation.arms import SHOWN, ModelPlan, image_sets, plan_models
from engine.federation.compression import encode
from engine.federation.progress import images_by_round
from engine.federation.rounds import choose_hospitals
from engine.federation.secure_round import key_bytes, masked_like
from engine.federation.tasks import make_tasks, rules_of, with_heads
from engine.federation.training_run import check_start
from engine.federation.updates import count_bytes
from engine.results.estimate import Estimate, Traffic, find_timings
from engine.training.features import HeadNetwork
from engine.training.networks import Network
from engine.training.pretext import feature_width
from engine.training.private import AT_ONCE


def estimate_training(data: FederationData, artifacts: Path) -> Estimate:
    """Raises ConfigError or DataError for what a training would be refused for."""
    federation = data.federation
    environment, network = check_start(data, artifacts)
    plans = plan_models(data)
    timings = find_timings(artifacts, federation, environment, [plan.model for plan in plans])
    times = [
        timings[p.model].seconds(images_by_round(p.sizes, federation.training)) for p in plans if p.model in timings
    ]
    trained = HeadNetwork(network) if federation.model.freeze_backbone else with_heads(network, federation)
    traffic = {}
    for plan in plans:
        if plan.arm == "federated":
            traffic = _traffic(plan, federation, trained)
    return Estimate(
        n_training_images=sum(map(len, image_sets(data, "train").values())),
        hospitals=traffic,
        memory_bytes=_memory(data, network, trained),
        seconds=sum(times) if len(times) == len(plans) else None,
        timed_by={model: timing.run for model, timing in timings.items()},
        not_timed=tuple(plan.model for plan in plans if plan.model not in timings),
    )


def _traffic(plan: ModelPlan, federation: Federation, network: Network) -> dict[str, Traffic]:
    """Of every hospital the bytes of the very tensors that will travel: their values change, their sizes do not."""
    rules, training = rules_of(federation), federation.training
    private = rules.private(network)
    shared = {name: tensor.detach() for name, tensor in network.state_dict().items() if name not in private}
    sent = rules.strategy.sends(shared, {})
    asked = [choose_hospitals(tuple(plan.training_sets), training, n) for n in range(1, training.rounds + 1)]
    keys_down, keys_up = key_bytes(len(asked[0])) if federation.secure_aggregation else (0, 0)
    traffic = {}
    for hospital in plan.training_sets:
        rounds = sum(hospital in chosen for chosen in asked)
        if rounds:
            message = rules.message(sent, hospital)
            payload, _ = encode(message, message, {}, federation.communication)
            down = (count_bytes(message) + keys_down) * rounds
            up = (count_bytes(rules.answer(payload)) + keys_up) * rounds
            traffic[hospital] = Traffic(bytes_down=down, bytes_up=up, rounds=rounds)
    return traffic


def _memory(data: FederationData, network: Network, trained: Network) -> dict[str, int]:
    """What can be computed exactly. A batch's activations and torch itself cannot, and come on top."""
    federation, training = data.federation, data.federation.training
    networks = [task.network for task in make_tasks(trained, federation, "federated").values()]
    learned = max(sum(p.nbytes for p in one.parameters() if p.requires_grad) for one in networks)
    copies = int(training.momentum > 0) if training.optimizer == "sgd" else 2
    weights = count_bytes(network.state_dict() | trained.state_dict())
    memory = {"weights": weights, "gradients": learned, "optimiser state": copies * learned}
    if federation.privacy is not None:
        memory["gradients of single images"] = min(AT_ONCE, training.batch_size) * learned
    if federation.aggregation.is_robust and "federated" in federation.arms:
        n_updates = training.hospitals_per_round(len(federation.trainers))
        memory["a round's updates"] = n_updates * count_bytes(trained.state_dict())
    if federation.secure_aggregation is not None and "federated" in federation.arms:
        memory["masked updates"] = 2 * count_bytes(masked_like(trained.state_dict()))  # the sum, and one to be added
    if federation.model.freeze_backbone:
        views = {"train": max(training.views, 1)}
        n_features = sum(views.get(part, 1) * len(s) for part in SHOWN for s in image_sets(data, part).values())
        memory["features of all images"] = n_features * feature_width(network) * 4  # float32
    memory["decoded images"] = sum(holding.pixels.nbytes for holding in data.holdings)
    return memory
