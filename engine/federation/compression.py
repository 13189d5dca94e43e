"""How an update travels: named tensors -> the smaller named tensors that are sent, and back.

What is compressed is the change to the round's message, and what compression leaves out is added to the next round's
change (error feedback), so that nothing is lost for good, only late. The residual stays at its hospital.

Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014; Karimireddy et al., Error Feedback Fixes SignSGD,
ICML 2019; Aji & Heafield, Sparse Communication for Distributed Gradient Descent, EMNLP 2017 (top-k).

By tensor "layer.weight": "none" sends it as it is. Compressed, it goes as

- fp16: "layer.weight#half"
- int8: "layer.weight#int8" and "#scale", one scale per output channel (a vector, such as a bias, has one in all)
- topk: "layer.weight#value" and "#index", positions in the flattened tensor in the smallest unsigned integer that fits

BatchNorm's statistics go as values in half precision, never as changes: a variance rebuilt from a rounded change can
fall below zero. Integers go whole. Both are a hundredth of the weights.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from engine.aggregation_config import CommunicationConfig
from engine.errors import UpdateError
from engine.federation.named_tensors import is_learned
from engine.federation.updates import Update
from engine.training.networks import Tensors

HALF_MAX = float(torch.finfo(torch.float16).max)
INDEX_TYPES = ((torch.uint8, 2**8), (torch.uint16, 2**16), (torch.int32, 2**31), (torch.int64, 2**63))
PARTS = {"fp16": ("half",), "int8": ("int8", "scale"), "topk": ("value", "index")}


def encode(tensors: Tensors, sent: Tensors, residual: Tensors, config: CommunicationConfig) -> tuple[Tensors, Tensors]:
    """(what travels, the residual for the next round) of a hospital's tensors; `sent` is the round's message."""
    if config.compression == "none":
        return tensors, {}
    payload: Tensors = {}
    left_over: Tensors = {}
    for name, tensor in tensors.items():
        if is_learned(name, tensor):
            change = tensor - sent[name]
            if name in residual:
                change += residual[name]
            parts = _PACK[config.compression](change, config)
            left_over[name] = change - _UNPACK[config.compression](parts, change)
            payload |= {f"{name}#{part}": value for part, value in parts.items()}
        elif tensor.is_floating_point() and float(tensor.abs().max()) < HALF_MAX:
            payload[f"{name}#half"] = tensor.half()
        else:
            payload[name] = tensor.clone()
    return payload, left_over


def decode(update: Update, sent: Tensors, config: CommunicationConfig) -> Update:
    """The update with whole tensors again. Raises UpdateError, naming hospital and tensor, for what cannot be read."""
    if config.compression == "none":
        return update
    left = dict(update.tensors)
    tensors = {}
    for name, like in sent.items():
        try:
            if is_learned(name, like):
                parts = {part: left.pop(f"{name}#{part}") for part in PARTS[config.compression]}
                tensors[name] = like + _UNPACK[config.compression](parts, like)
            elif like.is_floating_point() and f"{name}#half" in left:
                tensors[name] = left.pop(f"{name}#half").to(like.dtype).reshape(like.shape)
            else:
                tensors[name] = left.pop(name)
        except KeyError as error:
            raise UpdateError(f"update of {update.hospital}: tensor {error.args[0]} is missing") from None
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise UpdateError(
                f"update of {update.hospital}: tensor {name} is no {config.compression} tensor ({reason})"
            ) from None
    if left:
        raise UpdateError(f"update of {update.hospital}: tensor {min(left)} is unknown")
    return replace(update, tensors=tensors)


def _pack_half(change: Tensor, config: CommunicationConfig) -> Tensors:
    return {"half": change.half()}


def _unpack_half(parts: Tensors, like: Tensor) -> Tensor:
    return parts["half"].to(like.dtype).reshape(like.shape)


def _pack_int8(change: Tensor, config: CommunicationConfig) -> Tensors:
    rows = change.reshape(len(change) if change.dim() > 1 else 1, -1)
    scale = rows.abs().amax(dim=1) / 127
    steps = rows / torch.where(scale > 0, scale, 1).unsqueeze(1)
    return {"int8": steps.round().clamp(-127, 127).to(torch.int8), "scale": scale}


def _unpack_int8(parts: Tensors, like: Tensor) -> Tensor:
    if parts["scale"].shape != parts["int8"].shape[:1]:  # broadcasting would make something huge of it
        raise ValueError(f"{len(parts['scale'])} scales for {len(parts['int8'])} channels")
    return (parts["int8"].to(like.dtype) * parts["scale"].to(like.dtype).unsqueeze(1)).reshape(like.shape)


def _pack_topk(change: Tensor, config: CommunicationConfig) -> Tensors:
    flat = change.flatten()
    count = max(1, math.ceil(config.share * len(flat)))
    index = flat.abs().topk(count, sorted=False).indices.sort().values
    index_type = next(kind for kind, limit in INDEX_TYPES if len(flat) <= limit)
    return {"value": flat[index], "index": index.to(index_type)}


def _unpack_topk(parts: Tensors, like: Tensor) -> Tensor:
    index = parts["index"].long()
    if len(index) and int(index.min()) < 0:
        raise ValueError("an index is negative")
    flat = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
    return flat.scatter_(0, index, parts["value"].to(like.dtype)).reshape(like.shape)


_PACK = {"fp16": _pack_half, "int8": _pack_int8, "topk": _pack_topk}
_UNPACK = {"fp16": _unpack_half, "int8": _unpack_int8, "topk": _unpack_topk}
