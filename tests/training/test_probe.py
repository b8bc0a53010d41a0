"""Nearest neighbours and the linear probe against slow loops and closed forms."""

import math

import pytest
import torch

from training.probe import _fit, linear_classifier, nearest_neighbours


def clusters(*, number, distance, seed, num_classes=5, width=12):
    """Features around a corner for each class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(num_classes, (number,), generator=generator)
    corners = distance * torch.eye(width)[:num_classes]
    return corners[classes] + torch.randn(number, width, generator=generator), classes


def test_separable_classes_are_told_apart_and_noise_is_not():
    for distance, low, high in ((12.0, 1.0, 1.0), (0.0, 0.1, 0.3)):
        known, classes = clusters(number=1500, distance=distance, seed=0)
        features, expected = clusters(number=1000, distance=distance, seed=1)
        near = nearest_neighbours(features, known, classes, num_neighbours=20, temperature=0.07)
        linear = linear_classifier(features, known, classes, weight_decay=1e-3)
        for found in (near, linear):
            assert low <= (found == expected).double().mean() <= high


@pytest.mark.parametrize("num_neighbours", [1, 3, 500])
def test_neighbours_vote_as_the_formula_says(num_neighbours):
    known, classes = clusters(number=60, distance=2.0, seed=0)
    features, _ = clusters(number=25, distance=2.0, seed=1)
    found = nearest_neighbours(
        features, known, classes, num_neighbours=num_neighbours, temperature=0.2
    )
    for row, feature in enumerate(features.double()):
        cosines = [
            float(feature @ other / (feature.norm() * other.norm())) for other in known.double()
        ]
        nearest = sorted(range(60), key=lambda n: -cosines[n])[:num_neighbours]
        votes = [0.0] * 5
        for n in nearest:
            votes[int(classes[n])] += math.exp(cosines[n] / 0.2)
        assert found[row] == votes.index(max(votes))


def test_many_queries_are_answered_in_parts(monkeypatch):
    known, classes = clusters(number=60, distance=2.0, seed=0)
    features, _ = clusters(number=25, distance=2.0, seed=1)
    whole = nearest_neighbours(features, known, classes, num_neighbours=5, temperature=0.1)
    monkeypatch.setattr("training.probe.QUERIES_AT_ONCE", 4)
    parts = nearest_neighbours(features, known, classes, num_neighbours=5, temperature=0.1)
    assert torch.equal(parts, whole)


def test_the_fit_is_the_minimum():
    """The gradient vanishes there, by its closed form: X^T (p - y) / N + decay W."""
    known, classes = clusters(number=400, distance=1.0, seed=0)
    known = known.double()
    weights, biases = _fit(known, classes, weight_decay=0.01)
    errors = (known @ weights + biases).softmax(1) - torch.eye(5, dtype=torch.float64)[classes]
    assert (known.T @ errors / 400 + 0.01 * weights).abs().max() < 1e-5
    assert (errors.mean(0)).abs().max() < 1e-5


def test_two_points_have_a_closed_form():
    """x = +-1: the weights are +-w with decay w = 1 - sigmoid(2 w)."""
    points = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    weights, biases = _fit(points, torch.tensor([0, 1]), weight_decay=0.1)
    w = weights[0, 0].item()
    assert weights[0].tolist() == pytest.approx([w, -w], abs=1e-6)
    assert biases.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert 0.1 * w == pytest.approx(1 / (1 + math.exp(2 * w)), abs=1e-6)


def test_scale_and_place_of_features_do_not_matter_to_the_linear_probe():
    known, classes = clusters(number=300, distance=1.5, seed=0)
    features, _ = clusters(number=100, distance=1.5, seed=1)
    scale, shift = torch.rand(12) * 10 + 0.1, torch.randn(12) * 10
    plain = linear_classifier(features, known, classes, weight_decay=1e-2)
    moved = linear_classifier(
        features * scale + shift, known * scale + shift, classes, weight_decay=1e-2
    )
    assert (plain == moved).double().mean() > 0.98  # fp32 rounds the moved ones


def test_a_feature_that_never_changes_is_no_division_by_zero():
    known, classes = clusters(number=100, distance=6.0, seed=0)
    known[:, 3] = 7.0
    assert (linear_classifier(known, known, classes, weight_decay=1e-3) == classes).all()
