"""Regularizers and constraints of users: channels stay where they take no fewer. Initializers."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from nets import randomise

import keras_nisp as kn


@keras.saving.register_keras_serializable("penalties")
class Orthogonal(keras.regularizers.Regularizer):
    """Of outputs that are square matrices, as in PointNet."""

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.size, self.size))
        return ops.sum(ops.square(ops.matmul(x, ops.transpose(x, (0, 2, 1))) - ops.eye(self.size)))

    def get_config(self):
        return {"size": self.size}


@keras.saving.register_keras_serializable("penalties")
class Near(keras.regularizers.Regularizer):
    """Draws a kernel to another one."""

    def __init__(self, values):
        self.values = values

    def __call__(self, x):
        return 0.01 * ops.sum(ops.square(x - np.array(self.values, "float32")))

    def get_config(self):
        return {"values": self.values}


@keras.saving.register_keras_serializable("penalties")
class Small(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 0.01 * ops.sum(ops.abs(x))

    def get_config(self):
        return {}


@keras.saving.register_keras_serializable("penalties")
class Fixed(keras.constraints.Constraint):
    """Some entries of a kernel stay zero."""

    def __init__(self, mask):
        self.mask = mask

    def __call__(self, w):
        return w * np.array(self.mask, "float32")

    def get_config(self):
        return {"mask": self.mask}


ONES = np.ones((8, 16)).tolist()


@pytest.mark.parametrize(
    ("settings", "reason", "kept"),
    [
        ({"activity_regularizer": Orthogonal(4)}, "Orthogonal", (4, 16)),
        ({"kernel_regularizer": Near(ONES)}, "Near", (8, 16)),
        ({"kernel_constraint": Fixed(ONES)}, "Fixed", (8, 16)),
        ({"kernel_constraint": Fixed(np.ones((1, 16)).tolist())}, "Fixed", (4, 16)),
        ({"kernel_constraint": Fixed(np.ones((8, 1)).tolist())}, None, (8, 8)),
        ({"kernel_regularizer": Small(), "activity_regularizer": Small()}, None, (4, 8)),
        ({"kernel_regularizer": "l1", "kernel_constraint": "max_norm"}, None, (4, 8)),
    ],
)
def test_channels_stay_where_a_penalty_takes_no_fewer(settings, reason, kept):
    inputs = keras.Input((5,))
    x = layers.Dense(8, activation="relu", name="before")(inputs)
    x = layers.Dense(16, name="layer", **settings)(x)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(x))))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    widths = {row.layer: row.kept for row in plan.creators}
    assert (widths["before"], widths["layer"]) == kept
    if reason:
        assert f"are as many as {reason} of 'layer' takes" in plan.explain("layer")
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan).ok
    small.compile("sgd", "mse")
    small.fit(np.ones((4, 5)), np.zeros((4, 2)), verbose=0)


@pytest.mark.parametrize(
    "penalty", [Near(np.ones((5, 2)).tolist()), Fixed(np.ones((5, 2)).tolist())]
)
def test_one_channel_of_two_is_not_taken_for_both(penalty):
    """An array for two channels broadcasts with one."""
    role = "regularizer" if isinstance(penalty, Near) else "constraint"
    inputs = keras.Input((5,))
    x = layers.Dense(2, name="layer", **{f"kernel_{role}": penalty})(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(x))))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert {row.layer: row.kept for row in plan.creators}["layer"] == 2


TABLE = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")


@pytest.mark.parametrize("known", [keras.initializers.Constant(TABLE), lambda shape, dtype: TABLE])
def test_initializers_of_known_values_do_not_go_with_smaller_weights(known, tmp_path):
    words = keras.Input((4,), dtype="int32")
    x = layers.Embedding(20, 8, embeddings_initializer=known)(words)
    half = keras.initializers.Constant(0.5)
    x = layers.Dense(6, activation="relu", name="hidden", bias_initializer=half)(x)
    model = keras.Model(words, layers.Dense(3)(layers.Flatten()(x)))
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.layers[1].output_dim == 4
    assert small.get_layer("hidden").bias_initializer.value == 0.5
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    x = np.arange(8).reshape(2, 4)
    np.testing.assert_allclose(loaded(x), small(x), rtol=1e-6)
