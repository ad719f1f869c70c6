"""Shared by all tests."""

import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import os
import resource
import sys
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN's own allocator never gives back what one large network took.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers, and what they start, share the cores
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import pytest

# Keras is imported where it is used: the process that hands tests to workers need not wait for it.

# What goes wrong with the nightly of Keras for a reason in Keras. Tests are named in the Makefile.
NIGHTLY_WARNINGS = [
    # RNN, Bidirectional and TimeDistributed compute the mask that they pass on, but have
    # `supports_masking = False` since 3.16.0.dev.
    "ignore:.*does not support masking and will therefore destroy the mask:UserWarning",
]


# Tests that `make test` leaves out, by their marker, and what runs them.
LEFT_TO = {
    "slow": "make test-slow",
    "bridges": "make test-bridges",
    "training": "make test-training",
    "tutorials": "make test-tutorials",
}
left_out = Counter()
peaks = {}


def pytest_configure(config):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("keras-nightly")
        for line in NIGHTLY_WARNINGS:
            config.addinivalue_line("filterwarnings", line)


def pytest_collection_finish():
    gc.freeze()  # what was imported stays; to look through it at each collection takes long


def pytest_deselected(items):
    for item in items:
        left_out.update([name for name in LEFT_TO if item.get_closest_marker(name)][:1])


def pytest_sessionfinish(session):
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput.update(left_out=dict(left_out), peak=peak)
    elif session.config.getoption("dist", "no") == "no":
        peaks["this process"] = peak


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What a worker of pytest-xdist found; each of them collects, and leaves out, all tests."""
    output = getattr(node, "workeroutput", {})
    if "peak" in output:
        left_out.update(Counter(output["left_out"]) - left_out)
        peaks[node.gateway.id] = output["peak"]


def pytest_terminal_summary(terminalreporter):
    for name, count in left_out.items():
        terminalreporter.write_line(f"{count} tests marked `{name}` are left to `{LEFT_TO[name]}`")
    memory = ", ".join(f"{name} {peak:.1f} GB" for name, peak in sorted(peaks.items()))
    terminalreporter.write_line(f"peak memory: {memory}")


@pytest.fixture(autouse=True, scope="module")
def memory_given_back(request):
    """Graphs and models of one file do not pile up in the next."""
    import keras

    yield
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    keras.backend.clear_session()
    gc.freeze()  # functions that TensorFlow has compiled, which it keeps
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # which gives the system what is free


@pytest.fixture(autouse=True)
def seeded():
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="session")
def optimizers_are_built():
    """Before the first step: TensorFlow traces a step that makes variables twice."""
    import keras

    make = keras.Model.make_train_function

    @functools.wraps(make)  # it is taken for the method of Keras
    def build_and_make(model, force=False):
        if model.built and not model.run_eagerly and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        return make(model, force)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "make_train_function", build_and_make)
        yield


@pytest.fixture
def unbuilt_optimizers(optimizers_are_built, monkeypatch):
    """Keras builds them in the first step, as it does for users."""
    import keras

    monkeypatch.delattr(keras.Model, "make_train_function")


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_nisp as kn

    names = {name: getattr(kn, name) for name in kn.__all__}
    doctest_namespace.update(names, keras=keras, np=np, tf=tf)


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)
