"""Data of another rank are read as Keras reads them; labels go along with samples, or are left."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_nisp as kn
from keras_nisp.data.collecting import collect

COUNT = 65  # the last of the batches holds a single one
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(COUNT, 8)).astype("float32"), np.arange(COUNT) % 3
COLUMNS = {"age": X[:, 0], "height": X[:, 1]}


def classifier(*shapes, names="a"):
    inputs = [keras.Input(shape, name=name) for shape, name in zip(shapes, names, strict=True)]
    flat = [layers.Reshape((-1,))(x) for x in inputs]
    x = layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(8, activation="relu")(x)))


def identity(shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layers.Activation("linear")(inputs))


def forms(x, y=Y):
    """The same data as arrays, in batches and one by one."""
    data = tf.data.Dataset.from_tensor_slices((x, y))
    return (x, y), data.batch(32), data, data.batch(32).as_numpy_iterator()


# Ranks --------------------------------------------------------------------------------

RANKS = [
    ((8, 8, 1), (8, 8)),
    ((8, 8, 1), (8, 8, 1)),
    ((8, 8, 1), (8, 8, 1, 1)),
    ((None, None, 1), (8, 8, 1)),
    ((8,), (8, 1)),
    ((1,), ()),
    ((), ()),
]


@pytest.mark.parametrize(("declared", "given"), RANKS, ids=str)
def test_ranks_are_adjusted_as_keras_does(declared, given):
    model = identity(declared)
    x = RNG.normal(size=(COUNT, *given)).astype("float32")
    for data in forms(x):
        samples = collect(data, model, labels=True)
        np.testing.assert_array_equal(samples.inputs[0], model.predict(x, verbose=0))
        np.testing.assert_array_equal(samples.labels, Y)


def test_batches_and_samples_of_open_sizes():
    model = identity((None, None, 1))
    for data in (X.reshape(COUNT, 4, 2, 1), X.reshape(COUNT, 4, 2)):
        batches = tf.data.Dataset.from_tensor_slices(data).batch(32)
        assert collect(batches, model).inputs[0].shape == (COUNT, 4, 2, 1)
    samples = tf.data.Dataset.from_tensor_slices(X.reshape(COUNT, 4, 2, 1))
    assert collect(samples, model).inputs[0].shape == (COUNT, 4, 2, 1)


def test_scalars():
    assert collect(tf.data.Dataset.range(COUNT), classifier(())).inputs[0].shape == (COUNT,)
    with pytest.raises(ValueError, match=r"\(samples, 8, 8, 1\).*Received: shape \(32, 7, 7\)"):
        collect(forms(np.zeros((COUNT, 7, 7)))[1], classifier((8, 8, 1)))


@pytest.mark.parametrize("form", range(4))
def test_columns_of_a_table(form):
    model = classifier((1,), (1,), names=COLUMNS)
    samples = collect(forms(COLUMNS)[form], model, labels=True)
    for array, column in zip(samples.inputs, COLUMNS.values(), strict=True):
        np.testing.assert_array_equal(array, column[:, None])
    np.testing.assert_array_equal(samples.labels, Y)
    kn.prune(model, kn.NISP(), ratio=0.5, calibration=forms(COLUMNS)[form], verbose=0)


def test_feature_space():
    kinds = {"age": "float_normalized", "job": "string_categorical"}
    space = keras.utils.FeatureSpace(kinds, output_mode="concat")
    raw = {"age": X[:, 0], "job": np.array(["a", "b", "c", "d", "e"] * 13)}
    data = tf.data.Dataset.from_tensor_slices((raw, Y)).batch(16)
    space.adapt(data.map(lambda x, y: x))
    hidden = layers.Dense(8, activation="relu")(space.get_encoded_features())
    model = keras.Model(dict(space.get_inputs()), layers.Dense(3)(hidden))
    pruned = kn.prune(model, kn.NISP(), ratio=0.5, calibration=data, verbose=0)
    assert pruned.count_params() < model.count_params()
    assert pruned.predict(data, verbose=0).shape == (COUNT, 3)


# Labels -------------------------------------------------------------------------------

RAGGED = tf.ragged.constant([[1] * (1 + i % 3) for i in range(COUNT)])


def padded_per_batch():
    return ((X[i : i + 13], {"boxes": np.zeros((13, 1 + i, 4))}) for i in range(0, COUNT, 13))


def of_two_structures():
    return ((X[i : i + 13], Y[i : i + 13] if i else [Y[:13]]) for i in range(0, COUNT, 13))


def of_one_table():
    return ((X[i : i + 13], np.zeros((20, 5))) for i in range(0, COUNT, 13))


UNJOINED = {
    "padded per batch": (padded_per_batch, r"{'boxes': \(13, 1, 4\)}, then {'boxes': \(13, 14, "),
    "two structures": (of_two_structures, r"\[\(13,\)\], then \(13,\)"),
    "boxes of all images": (of_one_table, r"\(20, 5\)"),
    "lists": (lambda: ((X[:13], [0] * 13) for _ in range(5)), "make arrays of lists"),
    "ragged": (lambda: (X, RAGGED), r"\(65, None\)"),
    "ragged batches": (lambda: forms(X, RAGGED)[1], r"\(32, None\)"),
    "ragged, unbatched": (lambda: forms(X, RAGGED)[2], r"\(1,\), then \(2,\)"),
}


@pytest.mark.parametrize("kind", UNJOINED)
def test_labels_that_cannot_be_joined(kind):
    make, message = UNJOINED[kind]
    model = classifier((8,))
    samples = collect(make(), model)
    assert samples.inputs[0].shape == (COUNT, 8)
    assert samples.labels is None
    with pytest.raises(ValueError, match=f"labels of one structure.*{message}"):
        collect(make(), model, labels=True)


def test_labels_that_nobody_needs():
    model = classifier((8,))
    plan = kn.plan_pruning(model, kn.NISP(), ratio=0.5, calibration=padded_per_batch())
    small = kn.rebuild(model, plan)
    kn.recalibrate(small, padded_per_batch(), model, plan)
    with pytest.raises(ValueError, match="labels of one structure"):
        kn.plan_pruning(model, kn.Taylor(padded_per_batch(), "mse"), ratio=0.5)


def test_sparse_labels():
    one_hot = np.eye(3)[Y]
    samples = collect((X, tf.sparse.from_dense(one_hot)), classifier((8,)), labels=True)
    np.testing.assert_array_equal(samples.labels, one_hot)


@pytest.mark.parametrize("count", [5, COUNT - 1, 3000])
def test_numbers_of_labels(count):
    model, y = classifier((8,)), np.zeros(count)
    message = rf"a label for each of the {COUNT} samples. Received labels of shape .*\({count},\)"
    for labels in (y, {"first": Y, "second": y}):
        for importance in (kn.NISP, lambda data: kn.Taylor(data, "mse")):
            with pytest.raises(ValueError, match=message):
                kn.plan_pruning(model, importance((X, labels)), ratio=0.5)
    with pytest.raises(ValueError, match="a label for each of the 3000 samples"):
        collect((np.zeros((3000, 8)), np.zeros(1000)), model)


def test_lists_of_numbers():
    model = classifier((8,))
    with pytest.raises(TypeError, match=r"Received: \(ndarray, list\).*by `np.asarray`"):
        collect((X, Y.tolist()), model)
    for data in (X.tolist(), iter(X.tolist())):
        with pytest.raises(ValueError, match=r"A list of numbers counts as many inputs"):
            collect(data, model)
    assert collect([(x, 1) for x in X], model, labels=True).labels.shape == (COUNT,)
