"""The examples in the docstrings of the metrics run as they are printed."""

import doctest
from importlib import import_module

import pytest

MODULES = ("fairness", "frechet", "clip", "leakage", "pixels")


@pytest.mark.parametrize("name", MODULES)
def test_every_metric_has_an_example_that_runs(name: str) -> None:
    module = import_module(f"difflens.metrics.{name}")
    found = doctest.testmod(module)
    metrics = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    assert found.failed == 0 < found.attempted
    assert all(">>>" in (each.__doc__ or "") for each in metrics if hasattr(each, "update"))
