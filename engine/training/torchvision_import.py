"""Import torchvision beside a CPU torch.

The registry's torchvision is built for CUDA torch; beside a CPU torch its import dies with "operator
torchvision::nms does not exist", because its compiled operators did not load. Nothing here uses them, so declaring
their schemas first is enough. Where torchvision fits torch, nothing is declared.
"""

import importlib
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []  # a Library withdraws its operators when it is collected


def torchvision_models() -> ModuleType:
    """`torchvision.models`, whichever build of torch is installed."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision.models")
