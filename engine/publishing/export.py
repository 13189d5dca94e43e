"""A network as the ONNX graph that is served: uint8 image in, logits and last feature map out."""

import base64
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from engine.config import Federation
from engine.data.images import Pixels
from engine.inference.panel import graph_metadata
from engine.training.networks import Network

OPSET = 18
CALIBRATION_BATCH = 16


class ServedNetwork(nn.Module):
    """Normalisation inside, so that a served graph cannot be fed differently from training."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image.permute(0, 3, 1, 2).float() / 255
        feature_map = self.network.feature_map(self.network.normalise(pixels))
        return self.network.classify(feature_map), feature_map


def export_onnx(network: Network, federation: Federation, model: str, path: Path) -> None:
    """Write the float32 graph: "image" uint8 (n, side, side, channels) -> "logits", "feature_map"."""
    side, channels = federation.model.image_size_px, 3 if federation.model.colour else 1
    example = torch.zeros((2, side, side, channels), dtype=torch.uint8)
    with _quiet_exporter():
        program = torch.onnx.export(
            ServedNetwork(network).eval(),
            (example,),
            input_names=["image"],
            output_names=["logits", "feature_map"],
            dynamic_shapes={"image": {0: torch.export.Dim("n", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # dynamo=True returns a program
    graph = program.model_proto
    _write_metadata(graph, network, federation, model)
    onnx.save(graph, path)


def quantise_int8(source: Path, target: Path, images: Pixels) -> None:
    """Static int8 quantisation, per channel, reduced range, calibrated on training images (n, side, side, channels)."""
    prepared = target.with_suffix(".prepared.onnx")
    try:
        with _quiet_exporter():
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                _Calibration(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "MaxPool", "Pad"],
            )
    finally:
        prepared.unlink(missing_ok=True)


def convert_fp16(source: Path, target: Path) -> None:
    """Half-precision weights and arithmetic; inputs and outputs keep their types."""
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _write_metadata(graph: onnx.ModelProto, network: Network, federation: Federation, model: str) -> None:
    onnx.helper.set_model_props(
        graph,
        {
            **graph_metadata(federation),
            "model": model,
            "normalisation": json.dumps({"mean": network.mean, "std": network.std, "inside_graph": True}),
            "intended_input": federation.intended_input,
            "head": _head(network),
        },
    )


def _head(network: Network) -> str:
    """The last layer's weight (classes, features) and bias, base64 of float32: what a class activation map needs."""
    layer = network.get_submodule(network.head_name)
    return json.dumps(
        {
            name: base64.b64encode(tensor.detach().numpy().astype("<f4").tobytes()).decode()
            for name, tensor in layer.named_parameters()
        }
    )


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # comes without types
    def __init__(self, images: Pixels) -> None:
        self._batches = iter(np.array_split(images, max(1, len(images) // CALIBRATION_BATCH)))

    def get_next(self) -> dict[str, object] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter and the quantiser print advice that is none of the user's business."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        root.setLevel(before)
