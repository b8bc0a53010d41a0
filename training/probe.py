"""How well frozen features tell classes apart: nearest neighbours, and a linear classifier.

Both are deterministic: same features, same accuracy.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

QUERIES_AT_ONCE = 1024
"""Whose similarities to all training features exist at once."""
NUM_ITERATIONS = 200
"""Of LBFGS, at most; it ends before where the loss does not fall any more."""


def nearest_neighbours(
    features: Tensor, known: Tensor, classes: Tensor, *, num_neighbours: int, temperature: float
) -> Tensor:
    """Classes (B) of features (B, D), by those (N, D) whose classes (N) are known.

    The likest by cosine vote, each with exp(cosine / temperature) (Wu et al. 2018).
    """
    known, features = F.normalize(known.float()), F.normalize(features.float())
    num_neighbours = min(num_neighbours, len(known))
    num_classes = int(classes.max()) + 1
    found = []
    for queries in torch.split(features, QUERIES_AT_ONCE):
        likeness, rows = (queries @ known.T).topk(num_neighbours, dim=1)  # 2 x (b, k)
        votes = queries.new_zeros(len(queries), num_classes)
        votes.scatter_add_(1, classes[rows], ((likeness - 1) / temperature).exp())
        found.append(votes.argmax(dim=1))
    return torch.cat(found)


def linear_classifier(
    features: Tensor, known: Tensor, classes: Tensor, *, weight_decay: float
) -> Tensor:
    """Classes (B) of features (B, D), by softmax regression on those (N, D) of known classes (N).

    Features are standardised by mean and deviation of the known ones. The mean cross-entropy plus
    `weight_decay` / 2 times the squared weights, not the biases, is minimised in fp64 by LBFGS from
    zeros, which has one minimum.
    """
    known, features = known.double(), features.double()
    deviation, mean = torch.std_mean(known, dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    weights, biases = _fit((known - mean) / deviation, classes, weight_decay=weight_decay)
    logits = (features - mean) / deviation @ weights + biases
    return logits.argmax(dim=1)


def _fit(known: Tensor, classes: Tensor, *, weight_decay: float) -> tuple[Tensor, Tensor]:
    """Weights (D, classes) and biases (classes)."""
    num_classes = int(classes.max()) + 1
    weights = known.new_zeros(known.shape[1], num_classes, requires_grad=True)
    biases = known.new_zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights, biases],
        max_iter=NUM_ITERATIONS,
        tolerance_grad=1e-6,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(known @ weights + biases, classes)
        value = value + weight_decay / 2 * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach(), biases.detach()
