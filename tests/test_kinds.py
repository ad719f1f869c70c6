"""Layers of users that are known by what they compute, with no rule for their class."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from nets import randomise

import keras_nisp as kn
from keras_nisp.rules import rule_for
from keras_nisp.testing import check_rule


@keras.saving.register_keras_serializable("kinds")
class RootMeanSquare(layers.Layer):
    """As in Gemma: a scale that is 1 more than its variable, statistics in float32."""

    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="zeros")

    def call(self, x):
        x = ops.cast(x, "float32")
        power = ops.mean(ops.square(x), axis=-1, keepdims=True)
        x = x * ops.reciprocal(ops.sqrt(power + self.epsilon)) * (1 + self.scale)
        return ops.cast(x, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("kinds")
class MeanAndVariance(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")
        self.shift = self.add_weight(name="shift", shape=(shape[-1],))

    def call(self, x):
        mean, variance = ops.moments(x, [-1], keepdims=True)
        return (x - mean) / ops.sqrt(variance + 1e-3) * self.scale + self.shift


@keras.saving.register_keras_serializable("kinds")
class ByWidth(layers.Layer):
    """A scale that is computed from the number of channels."""

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * ops.softplus(self.scale) / x.shape[-1] ** 0.5


@keras.saving.register_keras_serializable("kinds")
class Table(layers.Layer):
    """What is added by position."""

    def __init__(self, length, **kwargs):
        super().__init__(**kwargs)
        self.length = length

    def build(self, shape):
        self.table = self.add_weight(name="table", shape=(self.length, shape[-1]))

    def call(self, x):
        return ops.broadcast_to(self.table[: ops.shape(x)[-2]], ops.shape(x))

    def get_config(self):
        return {**super().get_config(), "length": self.length}


@keras.saving.register_keras_serializable("kinds")
class Affine(layers.Layer):
    """Its width is in its config."""

    def __init__(self, dim, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(self.dim,), initializer="ones")
        self.shift = self.add_weight(name="shift", shape=(self.dim,))

    def call(self, x):
        return x * self.scale + self.shift

    def get_config(self):
        return {**super().get_config(), "dim": self.dim}


class Mixing(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * ops.sum(x * self.scale, -1, keepdims=True)


class Shifting(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return ops.roll(x, 1, axis=-1) * self.scale


class ShiftedNorm(RootMeanSquare):
    def call(self, x):
        return super().call(ops.roll(x, 1, axis=-1))


class OneWidth(Affine):
    def build(self, shape):
        super().build((None, self.dim))
        if shape[-1] != 16:
            raise ValueError("only 16 will do")


class ResponseNorm(layers.Layer):
    """As in ConvNeXt V2: on images each channel by what all have; on sequences they are alone."""

    def build(self, shape):
        self.gamma = self.add_weight(name="gamma", shape=(shape[-1],), initializer="ones")
        self.beta = self.add_weight(name="beta", shape=(shape[-1],))

    def call(self, x):
        size = ops.sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True) + 1e-6)
        share = size / (ops.mean(size, axis=-1, keepdims=True) + 1e-6)
        return self.gamma * x * share + self.beta + x


class LongSequences(Affine):
    """Mixes channels where there are more than three positions."""

    def call(self, x):
        x = super().call(x)
        return x if x.shape[1] <= 3 else x / (1 + ops.mean(ops.abs(x), -1, keepdims=True))


class OfImages(Affine):
    def call(self, x):
        return x * self.scale[None, None, None] + self.shift


def network():
    inputs = keras.Input((7, 6))
    x = layers.Dense(16, name="stream")(inputs)
    x = x + Table(9)(x)
    x = x + layers.Dense(16)(Affine(16)(layers.Dense(16)(RootMeanSquare()(x))))
    return randomise(keras.Model(inputs, layers.Dense(3)(MeanAndVariance()(x))))


def test_norms_tables_and_affine_layers_are_recognised(rng, tmp_path):
    model, data = network(), rng.normal(size=(32, 7, 6)).astype("float32")
    plan = kn.plan_pruning(model, kn.NISP(data), ratio=0.5)  # a warning would be an error
    assert [row.kept for row in plan.creators] == [8, 8, 8, 3]
    assert all(score > 0 for group in plan.groups for score in group.scores)
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, data, tolerance=1e-5).ok
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded(data), small(data))


@pytest.mark.parametrize("layer", [Mixing, Shifting, ShiftedNorm, ByWidth, lambda: OneWidth(16)])
def test_what_is_no_such_layer_stays_without_a_rule(layer):
    layer = layer()
    layer(np.ones((1, 3, 16), "float32"))
    assert rule_for(layer, (None,)).does == "fixes"


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
@pytest.mark.parametrize(
    ("layer", "shape"), [(ResponseNorm, (7, 7, 16)), (lambda: LongSequences(16), (7, 16))]
)
def test_layers_are_tried_on_what_they_are_called_on(layer, shape):
    inputs = keras.Input((*shape[:-1], 4))
    x = layer()(layers.Dense(16, activation="relu", name="made")(inputs))
    x = layers.Flatten()(x)
    model = randomise(keras.Model(inputs, [layers.Dense(2)(x), layers.Dense(2)(x)]))
    assert not kn.trace(model).free.any()


def test_layers_of_images_are_recognised():
    inputs = keras.Input((None, None, 3))
    x = OfImages(8)(layers.Conv2D(8, 3, name="made")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(x))))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert plan.creators[0].kept == 4
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (RootMeanSquare, kn.ChannelNorm),
        (MeanAndVariance, kn.ChannelNorm),
        (lambda: Table(5), kn.ChannelWise),
        (lambda: Affine(8), kn.ChannelWise),
    ],
)
def test_a_kind_is_a_rule_that_holds(layer, kind, monkeypatch):
    from keras_nisp.channels import registry

    layer = layer()
    monkeypatch.setitem(registry._RULES, type(layer), kind())  # as `register_rule` does
    check_rule(layer, (5, 8))


def test_as_functional_has_nothing_to_say_of_layers_that_are_recognised(capsys):
    model = network()
    assert kn.as_functional(model) is model
    said = capsys.readouterr()
    assert not said.out + said.err


@keras.saving.register_keras_serializable("kinds")
class DropPath(layers.Layer):
    """Leaves whole samples out while training, by a seed of its own."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x, training=False):
        if not training:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return x * ops.floor(1 - self.rate + keras.random.uniform(shape, seed=self.seeds))

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable("kinds")
class Noise(DropPath):
    """Its noise has as many channels as there were when it was made: not for fewer."""

    def build(self, shape):
        self.shape = shape[-1]

    def call(self, x, training=False):
        return x + keras.random.normal((self.shape,), seed=self.seeds) if training else x


class Clipped(DropPath):
    def call(self, x, training=False):
        return ops.clip(x, -50, 50)


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
@pytest.mark.parametrize(("kind", "width"), [(DropPath, 4), (Noise, 8), (Clipped, 8)])
def test_what_does_nothing_in_inference_passes_channels(kind, width):
    inputs = keras.Input((6, 3))
    x = y = layers.Dense(8, name="dense")(inputs)
    y = kind(0.5)(layers.Dense(8)(layers.Dense(6)(y)))
    outputs = layers.Dense(2)(layers.Flatten()(x + y))
    model = randomise(keras.Model(inputs, outputs))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert {row.layer: row.kept for row in plan.creators}["dense"] == width
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan).ok
    small.compile("sgd", "mse")
    small.fit(np.zeros((4, 6, 3)), np.zeros((4, 2)), verbose=0)


@keras.saving.register_keras_serializable("kinds")
class Shifted(layers.Layer):
    """Treats each channel alone unless it is told to move them."""

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],))

    def call(self, x, shift=0):
        return ops.roll(x, shift, axis=-1) * self.scale


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
@pytest.mark.parametrize(("settings", "width"), [({}, 4), ({"shift": 0}, 4), ({"shift": 1}, 8)])
def test_a_kind_is_that_of_the_calls(settings, width):
    inputs = keras.Input((6,))
    x = Shifted()(layers.Dense(8, name="dense")(inputs), **settings)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(x))))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert {row.layer: row.kept for row in plan.creators}["dense"] == width
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


def test_training_is_given_to_layers_that_do_not_name_it():
    inputs = keras.Input((5,))
    norm = RootMeanSquare(name="norm")
    x = norm(layers.Dense(8, name="before")(inputs), training=False)
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert small.get_layer("norm").scale.shape == (4,)
    assert kn.verify(small, model, plan).ok
