"""Random samples are such as the model's beginning expects; models bound to a batch size get it."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from marked import first_is_fast
from nets import randomise

import keras_nisp as kn
from keras_nisp.data.calibration import Calibration
from keras_nisp.data.collecting import collect
from keras_nisp.data.random_samples import random_samples
from keras_nisp.data.samples import Samples
from keras_nisp.keras_graph import calling, keras_models

WORDS = ["red", "green", "blue"]


def normalised():
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal([50, -3], [9, 0.1], (500, 2)))
    return layer


def trained_norm():
    layer = layers.BatchNormalization()
    layer.build((None, 2))
    layer.moving_mean.assign([50, -3])
    layer.moving_variance.assign([81, 0.01])
    return layer


def by_hand(x):
    return ops.subtract(ops.divide(ops.cast(x, "float32"), 127.5), 1.0)


def nested(*steps):
    inner = keras.Sequential([keras.Input((2,)), *steps])
    return lambda x: inner(layers.Dropout(0.1)(x))


def embed(x):
    return layers.Embedding(40, 4)(x)


# What a model begins with, its input, and what arrives there: mean and deviation of each feature.
NUMBERS = {
    "plain": (lambda x: layers.Dense(3)(x), "float32", ([0, 0], [1, 1])),
    "pixels": (layers.Rescaling(1 / 255), "float32", ([127.5] * 2, [73.9] * 2)),
    "pixels by hand": (by_hand, "uint8", ([127.5] * 2, [73.9] * 2)),
    "scaled": (layers.Rescaling(0.1, 2), "float32", ([-20, -20], [10, 10])),
    "normalised": (normalised(), "float32", ([50, -3], [9, 0.1])),
    "batch normalised": (trained_norm(), "float32", ([50, -3], [9, 0.1])),
    "nested": (nested(normalised()), "float32", ([50, -3], [9, 0.1])),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers(kind):
    first, dtype, (mean, deviation) = NUMBERS[kind]
    inputs = keras.Input((2,), dtype=dtype)
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(4)(first(inputs))))
    (x,) = random_samples(model, [(2,)], 4000).inputs
    np.testing.assert_allclose(x.mean(0), mean, atol=0.1 * max(deviation))
    np.testing.assert_allclose(x.std(0), deviation, rtol=0.1)


# What looks words and numbers up, the input, and all that may come.
LOOKED_UP = {
    "embedding": (embed, "int32", range(40)),
    "embedding, cast": (lambda x: embed(ops.cast(x, "int32")), "float32", range(40)),
    "one-hot": (lambda x: ops.one_hot(x, 7), "int32", range(7)),
    "categories": (layers.CategoryEncoding(9), "int32", range(9)),
    "integers": (lambda x: embed(layers.IntegerLookup(vocabulary=[100, 7])(x)), "int64", [100, 7]),
    "strings": (lambda x: embed(layers.StringLookup(vocabulary=WORDS)(x)), "string", WORDS),
    "text": (
        lambda x: embed(layers.TextVectorization(vocabulary=WORDS, output_sequence_length=4)(x)),
        "string",
        WORDS,
    ),
}


@pytest.mark.parametrize("kind", LOOKED_UP)
def test_looked_up(kind):
    first, dtype, values = LOOKED_UP[kind]
    inputs = keras.Input((1,), dtype=dtype)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(first(inputs))))
    (x,) = random_samples(model, [(1,)], 500).inputs
    assert set(x.ravel().tolist()) == set(values)


def test_strings_through_the_whole_chain():
    text = np.array(["red green", "blue", "green blue red", "red"] * 4)
    inputs = keras.Input((), dtype="string")
    tokens = layers.TextVectorization(vocabulary=WORDS, output_sequence_length=4)(inputs)
    x = layers.GlobalAveragePooling1D()(layers.Embedding(6, 8, mask_zero=True)(tokens))
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Dense(6, activation="relu")(x))))
    small = kn.prune(model, kn.NISP(text), ratio=0.5, calibration=text, verbose=0)
    assert small.layers[2].output_dim == 4


def bound(batch, first):
    inputs = keras.Input((4, 3), batch_size=batch)
    x = layers.Dense(5, activation="relu")(first(inputs))
    return randomise(keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(x))))


def flattened(x):
    x = layers.Conv1D(6, 2)(x)
    return ops.reshape(x, (x.shape[0], -1))


BOUND = {
    "stream": (1, lambda x: layers.LSTM(6, stateful=True)(x)),
    "reshape": (4, flattened),
    "both directions": (4, lambda x: layers.Bidirectional(layers.GRU(4, stateful=True))(x)),
}
X = np.random.default_rng(0).normal(size=(10, 4, 3)).astype("float32")


@pytest.mark.parametrize("kind", first_is_fast("reshape", "stream", "both directions"))
def test_models_bound_to_a_batch_size(kind):
    """Everything runs at that size, and leaves the states of the model as they were."""
    model = bound(*BOUND[kind])
    states = [
        state
        for layer in keras_models.all_layers(model)
        if getattr(layer, "states", None) and isinstance(layer, keras.layers.RNN)
        for state in keras.tree.flatten(layer.states)
    ]
    for state in states:
        state.assign(np.full(state.shape, 0.7))
    labels = np.zeros((10, 2))
    for importance in (
        *(kn.NISP(X), kn.Taylor((X, labels), "mse"), kn.LayerByLayer(X)),
        *(kn.LRP(X), kn.SynFlow(), kn.OptimalBrainSurgeon(X)),
    ):
        plan = kn.plan_pruning(model, importance, ratio=0.5)
        small = kn.rebuild(model, plan)
        assert kn.verify(small, model, plan).relative < 1e-5
        assert kn.verify(small, model, plan, X).relative < 1e-5
    for compensate in ("linear", "mean"):
        kn.recalibrate(kn.rebuild(model, plan), X, model, plan, compensate=compensate)
    for state in states:
        np.testing.assert_array_equal(state, np.full(state.shape, 0.7, np.float32))


def test_scores_do_not_depend_on_the_batch_size():
    scores = []
    for batch in (4, None):
        keras.utils.set_random_seed(0)
        model = bound(batch, lambda x: layers.Flatten()(layers.Conv1D(6, 2)(x)))
        kinds = kn.NISP, kn.LayerByLayer, kn.LRP, kn.OptimalBrainSurgeon
        scores.append([kind(X[:8])(kn.trace(model)) for kind in kinds])
        assert kn.profile(model).total.flops == 3 * 2 * 3 * 6 + 18 * 5 + 5 * 2
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_states_do_not_leak_from_batch_to_batch():
    model = bound(*BOUND["stream"])
    twice = collect(np.concatenate([X[:1], X[:1]]), model)
    assert [len(inputs[0]) for inputs, _ in twice.batches(64)] == [1, 1]
    seen = []
    for inputs, _ in twice.batches():
        seen.append(np.asarray(calling.answer(model, inputs)))
    np.testing.assert_array_equal(*seen)


def test_samples_fill_batches():
    model = bound(*BOUND["reshape"])
    assert len(collect(X, model)) == 8
    np.testing.assert_array_equal(collect(X[:3], model).inputs[0], X[[0, 1, 2, 0]])
    samples = collect((X, np.arange(10)), model)
    np.testing.assert_array_equal(samples.first(5).labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(samples.at_most(4).labels, [0, 2, 5, 7])


@pytest.mark.parametrize("count", [2, 6, 9, 10, 12])
def test_samples_are_taken_from_the_first_to_the_last(count):
    """Data may be sorted by class: none at the end is left out."""
    labels = Samples([np.zeros((10, 2))], np.arange(10)).at_most(count).labels
    assert len(labels) == min(count, 10)
    assert (labels[0], labels[-1]) == (0, 9)
    steps = np.diff(labels)
    assert steps.max() - steps.min() <= 1


def test_dicts_by_name_whatever_the_order():
    """A generator of dicts is read once; the next model has its inputs the other way round."""

    def model(names):
        a, b = (keras.Input((2,), name=name) for name in names)
        return keras.Model([a, b], layers.Dense(2)(layers.Dense(4)(layers.Concatenate()([a, b]))))

    a, b = np.zeros((6, 2), "float32"), np.ones((6, 2), "float32")
    calibration = Calibration(iter([{"a": a, "b": b}]), 64, 0)
    for names in ("ab", "ba", "ab"):
        arrays = calibration.samples(model(names)).inputs
        assert [array.mean() for array in arrays] == [float(name == "b") for name in names]


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_keys_of_the_structure_and_sparse_data():
    a, b = keras.Input((2,), name="p"), keras.Input((3,), name="q", sparse=True)
    out = layers.Dense(2)(layers.Dense(4)(a)) + layers.Dense(2)(b)
    model = keras.Model({"left": a, "right": b}, {"out": out})
    x, y = X[:, 0, :2], X[:, 1]
    for data in (
        {"left": x, "right": tf.sparse.from_dense(y)},
        {"q": y, "p": x},
        tf.data.Dataset.from_tensor_slices({"left": x, "right": tf.sparse.from_dense(y)}).batch(3),
    ):
        for got, wanted in zip(collect(data, model).inputs, (x, y), strict=True):
            np.testing.assert_array_equal(got, wanted)
    with pytest.raises(TypeError, match="to_tensor"):
        collect({"p": x, "q": tf.RaggedTensor.from_tensor(y)}, model)


class OneBatch(layers.Layer):
    """Experts that count the tokens of a whole batch, whose size is a number in the code."""

    def build(self, shape):
        self.inner = layers.Dense(8, name="inner")
        self.inner.build((None, shape[-1]))

    def call(self, x):
        return ops.reshape(self.inner(ops.reshape(x, (4 * 6, 8))), (-1, 6, 8))


def one_batch(size):
    inputs = keras.Input((6, 3), batch_size=size)
    x = OneBatch(name="special")(layers.Dense(8, name="before")(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(8, name="after")(x)), name="net")


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
def test_layers_for_one_size_of_batches_say_what_to_do(capsys):
    model, advice = one_batch(None), r"one size alone.*`keras.Input\(..., batch_size=n\)`"
    assert kn.as_functional(model) is model
    assert re.search(f"'special' .*{advice}", capsys.readouterr().out)
    with pytest.raises(ValueError, match=f"'special' .*{advice}"):
        kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    fixed = kn.as_functional(one_batch(4), verbose=0)
    assert kn.prune(fixed, kn.Magnitude(), ratio=0.5, verbose=0).get_layer("after").units == 4


class Groups(layers.Layer):
    """Takes four samples together."""

    def call(self, x):
        x = ops.reshape(x, (-1, 4, 8))
        return ops.reshape(x - ops.mean(x, axis=1, keepdims=True), (-1, 8))


def test_advice_on_samples_that_are_taken_together_works():
    def graph(size):
        inputs = keras.Input((3,), batch_size=size)
        x = layers.Dense(8)(layers.Dense(8, name="free")(inputs))
        x = Groups(name="groups")(x)
        return kn.as_functional(keras.Model(inputs, layers.Dense(2)(x)), verbose=0)

    with pytest.raises(ValueError, match=r"batches of one size alone.*batch_size=n"):
        kn.prune(graph(None), kn.Magnitude(), ratio=0.5, verbose=0)
    small = kn.prune(graph(8), kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.get_layer("free").units == 4


class Folded(layers.Layer):
    """Puts nodes beside samples, for a recurrent layer that looks at each of them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.memory = layers.LSTM(3)

    def call(self, x):
        x = ops.transpose(x, (2, 0, 1, 3))
        nodes, batch, steps, width = ops.shape(x)
        x = self.memory(ops.reshape(x, (nodes * batch, steps, width)))
        return ops.transpose(ops.reshape(x, (nodes, batch, 3)), (1, 0, 2))


def test_advice_is_given_once(capsys):
    inputs = keras.Input((6, 5, 2))
    kn.as_functional(keras.Model(inputs, Folded(name="folded")(inputs)))
    assert capsys.readouterr().out.count("one size alone") == 1


class Regrouped(layers.Layer):
    """Takes the frames of samples beside each other, and gives their places so."""

    def call(self, x):
        x = ops.transpose(ops.reshape(x, (-1, 2, 4, 3)), (0, 2, 1, 3))
        return ops.reshape(tf.identity(x), (-1, 2, 3))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, 2, 3), x.dtype)


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
def test_layers_without_a_rule_may_change_how_many_rows_there_are():
    inputs = keras.Input((2, 4, 3))
    x = Regrouped(name="special")(ops.reshape(inputs, (-1, 4, 3)))
    x = ops.transpose(ops.reshape(x, (-1, 4, 2, 3)), (0, 2, 1, 3))
    x = layers.Dense(8, name="after")(ops.reshape(x, (-1, 8, 3)))
    model = keras.Model(inputs, layers.Dense(2)(x))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert small.get_layer("after").units == 4
    assert kn.verify(small, model, plan).ok
    assert kn.profile(model).total.flops == 8 * (3 * 8 + 8 * 2)


MOVED = {
    "takes batches of one size alone": lambda x: ops.reshape(x, (4, 6, 8)),
    "moves channels into the batch axis": lambda x: ops.reshape(x, (-1, 6, 2)),
}


@pytest.mark.parametrize("reason", MOVED)
def test_movements_say_what_is_wrong_with_them(reason):
    inputs = keras.Input((6, 3))
    x = MOVED[reason](layers.Dense(8, name="free")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(4)(x)))
    assert f"which {reason}" in kn.plan_pruning(model, kn.Magnitude(), ratio=0.5).explain("free")
