"""Shared by all tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_nisp as kn

# What goes wrong with the nightly of Keras for a reason in Keras. Tests are named in the Makefile.
NIGHTLY_WARNINGS = [
    # RNN, Bidirectional and TimeDistributed compute the mask that they pass on, but have
    # `supports_masking = False` since 3.16.0.dev.
    "ignore:.*does not support masking and will therefore destroy the mask:UserWarning",
]


def pytest_configure(config):
    for line in NIGHTLY_WARNINGS * (".dev" in keras.__version__):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    names = {name: getattr(kn, name) for name in kn.__all__}
    doctest_namespace.update(names, keras=keras, np=np, tf=tf)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
