"""How well a linear probe tells classes apart, on images that it was not fitted on: ridge regression in closed form."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

RIDGE = 0.1
"""The penalty, as a share of the mean squared length of an image's standardised features."""

FOLDS = 4
"""Parts of the images that are left out in turn."""


def out_of_fold(
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, "images"],
    classes: int,
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> Int[Tensor, "images"]:
    """The class that a linear probe fitted on the other folds reads in each image.

    Classes weigh alike, however many images show them (weighted ridge regression onto class indicators, solved in its dual
    form, since there are fewer images than features).

    Args:
        features: of images that all show a class.
        labels: their classes, each shown by at least `folds` images.
        classes: how many there are.
        folds: parts that are left out in turn; every class is spread over all of them.
        seed: of the split.

    Raises:
        ValueError: a class has fewer images than there are folds.
    """
    counts = torch.bincount(labels, minlength=classes)
    if int(counts.min()) < folds:
        raise ValueError(f"each class needs {folds} images, got {counts.tolist()}.")
    fold = stratified_folds(labels, classes, folds=folds, seed=seed)
    found = torch.empty_like(labels)
    for left_out in range(folds):
        train, test = fold != left_out, fold == left_out
        scores = _fit_and_read(features[train].double(), labels[train], features[test].double(), classes)
        found[test] = scores.argmax(1)
    return found


def stratified_folds(labels: Int[Tensor, "images"], classes: int, *, folds: int, seed: int) -> Int[Tensor, "images"]:
    """A fold for each image, so that every class is spread over all of them alike."""
    generator = torch.Generator().manual_seed(seed)
    fold = torch.empty_like(labels)
    for index in range(classes):
        rows = (labels == index).nonzero()[:, 0]
        fold[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % folds
    return fold


def mean_recall(read: Int[Tensor, "images"], labels: Int[Tensor, "images"], classes: int) -> Float[Tensor, ""]:
    """The mean over the classes of the share of a class's images that are read as it; 1/C by chance."""
    hits = [(read[labels == index] == index).double().mean() for index in range(classes)]
    return torch.stack(hits).mean()


def _fit_and_read(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    counts = torch.bincount(labels, minlength=classes).double()
    # What every class contributes sums to one, so that a rare class is not given up for a frequent one.
    weight = 1 / (classes * counts[labels])
    mean = (weight[:, None] * train).sum(0)
    scale = (weight[:, None] * (train - mean).square()).sum(0).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    x, x_test = (train - mean) / scale, (test - mean) / scale
    indicators = torch.nn.functional.one_hot(labels, classes).double() - 1 / classes
    penalty = RIDGE * x.square().sum(1).mean() / len(x)
    kernel = x @ x.T + torch.diag(penalty / weight)
    return x_test @ (x.T @ torch.linalg.solve(kernel, indicators))
