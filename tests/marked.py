"""Parameters of a test that other targets than `make test` run."""

import pytest


def slow(*values, **kwargs):
    """One set of them."""
    return pytest.param(*values, marks=pytest.mark.slow, **kwargs)


def training(*values, **kwargs):
    """One set of them that `make test-training` runs."""
    return pytest.param(*values, marks=pytest.mark.training, **kwargs)


def first_is_fast(*values):
    """All of these, each for one argument: `make test` takes the first."""
    return [values[0], *map(slow, values[1:])]
