"""Classifiers on frozen features: logistic regression and nearest neighbours. Neither changes the encoder."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engine.results.metrics import confusion, macro_f1

STRENGTHS = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # of the L2 penalty, strongest first: each fit begins where the last ended
NEIGHBOURS = 20
NEIGHBOUR_TEMPERATURE = 0.07
BLOCK = 1024


class LinearProbe(NamedTuple):
    """`weights` (width + 1, classes), the last row added to every image; `l2` is what validation chose."""

    weights: Tensor
    l2: float

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weights[:-1] + self.weights[-1]


def fit_linear(
    features: Tensor, labels: Tensor, validation: Tensor, validation_labels: Tensor, n_classes: int
) -> LinearProbe:
    """Multinomial logistic regression on standardised float64 features (n, width), by L-BFGS.

    It minimises the mean cross entropy + l2 / 2 |weights|^2, the last row free; of STRENGTHS the one of the highest
    macro-F1 on validation images stands, ties to the lower loss there.
    """
    weights = torch.zeros(features.shape[1] + 1, n_classes, dtype=features.dtype, requires_grad=True)
    best, best_score = LinearProbe(weights.detach().clone(), STRENGTHS[0]), (-1.0, 0.0)
    for l2 in STRENGTHS:
        _minimise(weights, features, labels, l2)
        probe = LinearProbe(weights.detach().clone(), l2)
        logits = probe.logits(validation)
        matrix = confusion(validation_labels.numpy(), logits.argmax(1).numpy(), n_classes)
        score = (macro_f1(matrix), -float(functional.cross_entropy(logits, validation_labels)))
        if score > best_score:
            best, best_score = probe, score
    return best


def _minimise(weights: Tensor, features: Tensor, labels: Tensor, l2: float) -> None:
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = features @ weights[:-1] + weights[-1]
        loss = functional.cross_entropy(logits, labels) + l2 / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def nearest_neighbours(features: Tensor, labels: Tensor, queries: Tensor, n_classes: int) -> Tensor:
    """Votes (n, classes) of each query's NEIGHBOURS nearest images by cosine, each weighing exp(cosine / 0.07).

    Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.
    """
    known, asked = (functional.normalize(one, dim=1) for one in (features, queries))
    k = min(NEIGHBOURS, len(known))
    votes = []
    for block in asked.split(BLOCK):
        cosines, places = (block @ known.T).topk(k, dim=1)
        weight = (cosines / NEIGHBOUR_TEMPERATURE).exp()
        votes.append(torch.zeros(len(block), n_classes, dtype=weight.dtype).scatter_add_(1, labels[places], weight))
    return torch.cat(votes)
