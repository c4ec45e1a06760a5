"""A probe on images it was not fitted on reads what is there, and nothing where nothing is."""

import pytest
import torch

from difflens.attribution.decodability import mean_recall, out_of_fold, stratified_folds


def test_what_is_there_is_read_and_noise_is_not() -> None:
    labels = torch.arange(240) % 3
    noise = torch.randn(240, 500)
    told = noise.clone()
    told[:, :30] += 3.0 * torch.nn.functional.one_hot(labels, 3).repeat_interleave(10, 1)
    assert mean_recall(out_of_fold(told, labels, 3), labels, 3) > 0.95
    # More features than images fit any training set: only images left out tell noise from signal.
    assert 0.2 < mean_recall(out_of_fold(noise, labels, 3), labels, 3) < 0.47


def test_a_rare_class_is_not_given_up_for_a_frequent_one() -> None:
    labels = (torch.arange(400) % 20 == 0).long()
    features = torch.randn(400, 4)
    features[:, 0] += 2.0 * labels
    read = out_of_fold(features, labels, 2)
    assert (read[labels == 1] == 1).double().mean() > 0.6, "always saying the frequent class would be right in 95 %"


def test_it_is_weighted_ridge_regression_of_class_indicators() -> None:
    """The dual form against the normal equations."""
    labels, features = torch.arange(60) % 2, torch.randn(60, 5, dtype=torch.float64)
    features[:, 1] += labels
    fold = stratified_folds(labels, 2, folds=4, seed=0)
    assert torch.bincount(fold * 2 + labels, minlength=8).tolist() == [8, 8, 8, 8, 7, 7, 7, 7]
    read = out_of_fold(features, labels, 2)
    for left_out in range(4):
        train, test = fold != left_out, fold == left_out
        x, y = features[train], torch.nn.functional.one_hot(labels[train], 2).double() - 0.5
        weight = 1 / (2 * torch.bincount(labels[train]).double()[labels[train]])
        mean = (weight[:, None] * x).sum(0)
        scale = (weight[:, None] * (x - mean) ** 2).sum(0).sqrt()
        x, x_test = (x - mean) / scale, (features[test] - mean) / scale
        penalty = 0.1 * (x**2).sum(1).mean() / len(x)
        normal = x.T @ (weight[:, None] * x) + penalty * torch.eye(5, dtype=torch.float64)
        expected = x_test @ torch.linalg.solve(normal, x.T @ (weight[:, None] * y))
        assert torch.equal(read[test], expected.argmax(1))


def test_too_few_images_of_a_class_are_told() -> None:
    with pytest.raises(ValueError, match=r"needs 4 images, got \[9, 1\]"):
        out_of_fold(torch.randn(10, 2), (torch.arange(10) == 0).long(), 2)
