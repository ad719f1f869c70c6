"""Random graphs x random plans x the oracle."""

import functools
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import random_chain as chain
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from marked import first_is_fast
from nets import randomise
from random_graphs import build, codes

pytestmark = [
    pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning"),
    pytest.mark.filterwarnings("ignore::keras_nisp.DataRangeWarning"),
    pytest.mark.filterwarnings("ignore:.*destroy the mask"),
    pytest.mark.filterwarnings("ignore:.*softmax over axis"),
]

CHECKS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
ARGUMENTS = {
    "code": codes(),
    "seed": st.integers(0, 9),
    "kind": st.sampled_from(["removal", "merging"]),
    "saved": st.integers(0, 7).map(lambda number: number == 7),
}


@settings(CHECKS, max_examples=10)
@given(**ARGUMENTS)
def test_random_graphs(code, seed, kind, saved):
    check_once(code, seed, kind, saved)


@pytest.mark.slow
@settings(CHECKS, max_examples=500)
@given(**ARGUMENTS)
def test_many_random_graphs(code, seed, kind, saved):
    check_once(code, seed, kind, saved)


def check_once(*example) -> None:
    """`check` by its memory: while it shrinks, Hypothesis comes back to the same code often."""
    failure = _failure(*example)
    if failure is not None:
        error, where = failure
        raise error.with_traceback(where)  # where it was at first, not where it was seen again


@functools.cache
def _failure(*example) -> tuple | None:
    try:
        check(*example)
    except Exception as error:
        return error, error.__traceback__


def check(code, seed, kind, saved=False) -> None:
    """One graph and one plan, through the whole chain; in some cases saving, too."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = randomise(build(code), seed)
    if not np.isfinite(chain.outputs(model)).all():
        return
    plan = chain.make_plan(model, seed, kind)
    if plan is None:
        return
    small = chain.rebuilt(model, plan)
    if kind == "removal":
        chain.repair(model, plan)
    if saved:
        with tempfile.TemporaryDirectory() as folder:
            chain.saved(model, small, Path(folder) / "small.keras")


HEADER = """import keras
from keras import layers, ops
a = keras.Input((4,))
"""
# What random graphs have found: each was wrong once.
FOUND = {
    "parts of a split take different ways": """
p, q = ops.split(layers.Dense(4)(a), 2, axis=-1)
model = keras.Model(a, layers.Dense(3)(layers.Concatenate()([layers.ReLU()(p), q])))""",
    "a part of a split loses all its channels": """
x = layers.Reshape((2, 2, 8))(layers.Dense(32)(a))
pooled = [layers.GlobalMaxPooling2D()(part) for part in ops.split(x, 2, axis=-1)]
model = keras.Model(a, layers.Dense(3)(layers.Concatenate()(pooled)))""",
    "coupled layers hold their channels in different orders": """
p, q = ops.split(layers.Dense(6)(a), 2, axis=-1)
y = ops.concatenate([q, p], axis=-1)
model = keras.Model(a, layers.Dense(3)(y + layers.Dense(6)(y)))""",
    "attention between fixed channels": """
a = keras.Input((5, 3))
model = keras.Model(a, a + layers.MultiHeadAttention(2, 7)(a, a))""",
    "zeros beside channels that are all coupled": """
x = layers.Conv1D(6, 1)(layers.Reshape((2, 2))(a))
y = ops.transpose(ops.reshape(x, (-1, 2, 2, 3)), (0, 1, 3, 2))
z = ops.pad(x, [(0, 0), (0, 0), (1, 2)])
parts = [layers.Flatten()(t) for t in (x + ops.reshape(y, (-1, 2, 6)), z + layers.Conv1D(9, 1)(z))]
model = keras.Model(a, layers.Dense(3)(layers.Concatenate()(parts)))""",
    "a gate on reshaped features": """
x = layers.Reshape((2, 2, 8))(layers.Dense(32)(a))
gate = layers.Conv2D(8, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
model = keras.Model(a, layers.Dense(3)(layers.GlobalMaxPooling2D()(x * gate)))""",
}


@pytest.mark.parametrize("kind", ["removal", "merging"])
@pytest.mark.parametrize("seed", first_is_fast(*range(3)))
@pytest.mark.parametrize("name", FOUND)
def test_what_random_graphs_have_found(name, seed, kind):
    check(HEADER + FOUND[name], seed, kind)
