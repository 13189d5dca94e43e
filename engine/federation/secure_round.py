"""One round with secure aggregation: updates as masked fixed-point numbers, and the coordinator that opens their sum.

The vector of a hospital holds n_images * (its tensor - sent tensor) of every floating-point tensor of the message, in
the message's order, and n_images last. So the opened sum gives FedAvg's mean and says of no hospital what it sent.
Integer tensors (BatchNorm's counter of batches) travel beside it as they are, and the largest stands, as in FedAvg.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from engine.config import Federation
from engine.errors import RunError, UpdateError
from engine.federation.report import RoundReport
from engine.federation.secure_aggregation import (
    KEY_BYTES,
    SHARE_BYTES,
    TAG_BYTES,
    Advertise,
    Participant,
    PublicKeys,
    Request,
    ShareKeys,
    Shares,
    Unmask,
    Unmasking,
    Vector,
    message_bytes,
    remove_masks,
)
from engine.federation.training_log import log
from engine.federation.transports import Transport
from engine.federation.updates import HospitalFailure, Update, check_update
from engine.results.rounds import ALL, RoundLine
from engine.secure_aggregation_config import SecureAggregationConfig
from engine.training.networks import Tensors

MASKED = "masked"  # the name of a masked update's vector
FRACTION_BITS = 24
STEP = 2.0**-FRACTION_BITS
R = TypeVar("R", PublicKeys, Shares, Unmasking)


def mask_update(update: Update, sent: Tensors, participant: Participant, peers: Sequence[str]) -> Update:
    """The update as it travels: `MASKED`, int64 (numbers + 1,), and integer tensors as they are.

    The hospital checks here what nobody can check later. Raises UpdateError, naming hospital and tensor, for what no
    average may take, and for a number so large that the sum over all `peers` might wrap around.
    """
    check_update(update, like=sent)
    limit = 2.0**63 / len(peers)
    vector = np.empty(_length(sent) + 1, np.uint64)
    start = 0
    for name, like in _averaged(sent):
        change = (update.tensors[name].double() - like.double()).mul_(update.n_images).cpu().flatten()
        largest = float(change.abs().max())
        if not largest < limit * STEP:
            raise UpdateError(
                f"update of {update.hospital}: tensor {name}: {largest:.3g}, its largest change times n_images, is "
                f"above {limit * STEP:.3g}, the most that secure aggregation can add up"
            )
        vector[start : start + change.numel()] = change.div_(STEP).round_().long().numpy().view(np.uint64)
        start += change.numel()
    vector[start] = update.n_images
    participant.mask(vector, peers)
    beside = {name: tensor for name, tensor in update.tensors.items() if not tensor.is_floating_point()}
    return replace(update, tensors={MASKED: torch.from_numpy(vector.view(np.int64)), **beside})


def masked_like(sent: Tensors) -> Tensors:
    """Names, shapes and types of the masked answer to a message; holds no numbers."""
    masked = torch.empty(_length(sent) + 1, dtype=torch.int64, device="meta")
    return {MASKED: masked, **{name: tensor for name, tensor in sent.items() if not tensor.is_floating_point()}}


def key_bytes(n_hospitals: int) -> tuple[int, int]:
    """(down, up) of one hospital beside its vector, in a round of so many in which all answer."""
    keys, sealed = 2 * KEY_BYTES, 2 * SHARE_BYTES + TAG_BYTES
    return n_hospitals * (keys + sealed), keys + n_hospitals * (sealed + SHARE_BYTES)


class SecureRound:
    """The coordinator's side of one round: keys and shares before the training, the opened sum after it."""

    def __init__(self, config: SecureAggregationConfig, transport: Transport, hospitals: Sequence[str]) -> None:
        self._transport = transport
        self._hospitals = hospitals
        self._threshold = config.minimum(len(hospitals))
        self._keys: dict[str, PublicKeys] = {}
        self._shares: dict[str, Shares] = {}
        self._failures: dict[str, str] = {}  # beside the training
        self._down: Counter[str] = Counter()
        self._up: Counter[str] = Counter()

    def train(self, sent: Tensors, round_number: int) -> Iterator[Update | HospitalFailure]:
        """Masked updates, and who failed before or in training. Raises RunError where too few share their keys."""
        self._keys = self._ask(dict.fromkeys(self._hospitals, Advertise()), PublicKeys)
        self._require(self._keys, "sent keys", self._failures)
        request = ShareKeys(self._keys, self._threshold)
        self._shares = self._ask(dict.fromkeys(self._keys, request), Shares)
        self._require(self._shares, "shared their keys", self._failures)
        yield from itertools.starmap(HospitalFailure, self._failures.items())
        yield from self._transport.train(sent, round_number, list(self._shares))

    def opened(self, updates: Iterator[Update], sent: Tensors, report: RoundReport) -> Iterator[Update]:
        """Of the masked updates one: their mean, as if one hospital held all images.

        Raises RunError where too few hospitals answer to open a sum, or the sum is none that a model may take.
        """
        total = np.zeros(_length(sent) + 1, np.uint64)
        tensors: Tensors = {}
        survivors = []
        for update in updates:
            survivors.append(update.hospital)
            total += update.tensors[MASKED].cpu().numpy().view(np.uint64)
            for name, tensor in update.tensors.items():
                if name != MASKED:
                    tensors[name] = torch.maximum(tensors[name], tensor) if name in tensors else tensor.clone()
        self._require(survivors, "returned a usable update", report.failures)
        self._unmask(total, survivors)
        for hospital in survivors:
            report.add_bytes(hospital, down=self._down[hospital], up=self._up[hospital])
        n_images = sum(report.fits[hospital].n_images for hospital in survivors)
        if int(total[-1]) != n_images:  # random where a mask is left in it
            raise RunError("secure aggregation: what was opened is not the sum of the hospitals' updates; train anew")
        mean = torch.from_numpy(total[:-1].view(np.int64)).double().mul_(STEP).div_(n_images)
        start = 0
        for name, like in _averaged(sent):
            change = mean[start : start + like.numel()].reshape(like.shape)
            value = like.double().cpu() + change
            if name.endswith("running_var"):  # rounding may carry a variance of nothing just below it
                value[(value < 0) & (value > -STEP)] = 0
            tensors[name] = value.to(like.dtype).to(like.device)
            start += like.numel()
        opened = Update(f"the {len(survivors)} hospitals together", tensors, n_images, (), 0.0)
        try:
            check_update(opened, like=sent)
        except UpdateError as error:
            raise RunError(f"{error}; secure aggregation cannot say whose it was") from None
        yield opened

    def _unmask(self, total: Vector, survivors: Sequence[str]) -> None:
        dropped = [hospital for hospital in self._shares if hospital not in survivors]
        requests = {
            one: Unmask(
                tuple(survivors), {sender: shares.sealed.get(one, b"") for sender, shares in self._shares.items()}
            )
            for one in survivors
        }
        self._failures = {}
        answers = self._ask(requests, Unmasking)
        for hospital, reason in self._failures.items():  # its update counts all the same
            log.warning("secure aggregation: %s did not help to open the sum: %s", hospital, reason)
        remove_masks(total, self._keys, survivors, dropped, answers, self._threshold)

    def _ask(self, requests: Mapping[str, Request], kind: type[R]) -> dict[str, R]:
        replies: dict[str, R] = {}
        for hospital, reply in self._transport.exchange(requests).items():
            if isinstance(reply, kind):
                replies[hospital] = reply
                self._down[hospital] += message_bytes(requests[hospital])
                self._up[hospital] += message_bytes(reply)
            else:
                what = reply.reason if isinstance(reply, HospitalFailure) else f"answered {type(reply).__name__}"
                self._failures[hospital] = what
        return replies

    def _require(self, hospitals: Collection[str], did: str, failures: Mapping[str, str]) -> None:
        if len(hospitals) < self._threshold:
            reasons = "; ".join(f"{hospital}: {reason}" for hospital, reason in failures.items())
            raise RunError(
                f"secure aggregation: {len(hospitals)} of at least {self._threshold} hospitals {did}, "
                f"and no sum of fewer is opened ({reasons})"
            )


def describe_secure_aggregation(
    federation: Federation,
    secure: SecureAggregationConfig,
    asked: Mapping[int, Sequence[str]],
    lines: Sequence[RoundLine],
    *,
    in_one_process: bool,
) -> dict[str, Any]:
    """`secure_aggregation.json`. `asked` has the hospitals of each round, `lines` are the run's."""
    rounds = []
    for number, hospitals in asked.items():
        answered = {
            line.hospital
            for line in lines
            if line.model == "global" and line.round == number and line.hospital != ALL and line.fit
        }
        rounds.append(
            {
                "round": number,
                "needed": secure.minimum(len(hospitals)),
                "participants": list(hospitals),
                "survivors": [hospital for hospital in hospitals if hospital in answered],
            }
        )
    return {
        "schema_version": 1,
        "protocol": "Bonawitz et al., CCS 2017, against an honest-but-curious coordinator",
        "threshold": secure.threshold,
        "fixed_point": {"bits": 64, "fraction_bits": FRACTION_BITS},
        "simulated": in_one_process,
        "note": "coordinator and hospitals shared one process and its memory: the masks were real and hid nothing from "
        "who ran it"
        if in_one_process
        else "coordinator and hospitals were processes of their own",
        "rounds": rounds,
    }


def _averaged(sent: Tensors) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor) for name, tensor in sent.items() if tensor.is_floating_point()]


def _length(sent: Tensors) -> int:
    return sum(tensor.numel() for _, tensor in _averaged(sent))
