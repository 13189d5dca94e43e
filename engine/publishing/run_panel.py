"""The models of a run as networks, from its weights: to export them, or to score them as they were trained."""

from dataclasses import dataclass
from functools import cached_property

import torch

from engine.data.images import Pixels
from engine.federation.checkpoint import load_tensors
from engine.inference.heatmap import Head
from engine.inference.panel import FeatureMaps, Logits, Panel
from engine.results.run_folder import Run
from engine.training.build import build_network
from engine.training.networks import Network


def run_models(run: Run) -> list[str]:
    """Model keys of a finished run: "global", "local/<hospital id>" ..., "central", as far as its arms go.

    Where hospitals keep a part of the network private, "personal/<hospital id>" ... stand for "global".
    """
    keys = list(dict.fromkeys(line.model for line in run.rounds()))
    if run.federation.aggregation.keeps_private and "global" in keys:
        place = keys.index("global")
        keys[place : place + 1] = [f"personal/{hospital.id}" for hospital in run.federation.hospital]
    return keys


def load_network(run: Run, model: str) -> Network:
    """The chosen round of one model, in evaluation mode. Raises RunError where the weights are not here."""
    network = empty_network(run)
    network.load_state_dict(load_tensors(run.weights(model)))
    return network.eval()


def empty_network(run: Run) -> Network:
    """The run's architecture with weights of no meaning."""
    config = run.federation.model.model_copy(update={"weights": "none", "freeze_backbone": False})
    return build_network(config, len(run.federation.classes), seed=0)


def open_run_panel(run: Run) -> Panel:
    """A run's own weights as a panel; scores in torch, float32."""
    run.require_labels()
    run.verify(with_weights=True)
    return Panel(run.federation, {model: TorchModel(load_network(run, model)) for model in run_models(run)})


@dataclass(frozen=True)
class TorchModel:
    """A run's own weights as a scorer."""

    network: Network

    @cached_property
    def head(self) -> Head:
        layer = self.network.get_submodule(self.network.head_name)
        weight, bias = (layer.get_parameter(name).detach().numpy() for name in ("weight", "bias"))
        return Head(weight, bias)

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> tuple[Logits, FeatureMaps]:
        pixels = torch.tensor(images).permute(0, 3, 1, 2).float().div_(255)
        feature_map = self.network.feature_map(self.network.normalise(pixels))
        return self.network.classify(feature_map).numpy(), feature_map.numpy()
