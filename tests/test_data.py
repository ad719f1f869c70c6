"""Calibration data of every kind give the same samples; bad ones a clear error."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from nets import nested

import keras_nisp as kn
from keras_nisp.data.collecting import collect
from keras_nisp.data.samples import Samples

MODEL = keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(2), keras.layers.Dense(2)])
X = np.random.default_rng(0).normal(size=(20, 4, 3)).astype("float32")
Y = np.arange(20)


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        index %= 4
        return X[5 * index : 5 * index + 5], Y[5 * index : 5 * index + 5]


class Endless(Sequence):
    num_batches = None


KINDS = {
    "array": lambda: X,
    "tensor": lambda: tf.constant(X),
    "tuple": lambda: (X, Y),
    "list": lambda: [X],
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(X).batch(6),
    "dataset of pairs": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(6),
    "dataset of triples": lambda: tf.data.Dataset.from_tensor_slices((X, Y, Y)).batch(6),
    "unbatched": lambda: tf.data.Dataset.from_tensor_slices((X, Y)),
    "PyDataset": Sequence,
    "generator": lambda: (X[i : i + 3] for i in range(0, 20, 3)),
    "generator of pairs": lambda: ((X[i : i + 3], Y[i : i + 3]) for i in range(0, 20, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    samples = collect(KINDS[kind](), MODEL)
    np.testing.assert_array_equal(samples.inputs[0], X)
    if kind in ("tuple", "dataset of pairs", "unbatched", "PyDataset", "generator of pairs"):
        np.testing.assert_array_equal(samples.labels, Y)
    assert sum(len(inputs[0]) for inputs, _ in samples.batches(7)) == 20


def test_limit():
    assert len(collect(X, MODEL, limit=7)) == 7
    assert len(collect(KINDS["dataset"](), MODEL, limit=7)) == 7
    endless = tf.data.Dataset.from_tensors((X, Y)).repeat()
    assert len(collect(endless, MODEL, limit=30)) == 30
    np.testing.assert_array_equal(collect(Endless(), MODEL, limit=30).labels, np.arange(30) % 20)
    first, second = collect((X, Y), MODEL, limit=7), collect((X, Y), MODEL, limit=7)
    np.testing.assert_array_equal(first.inputs[0], second.inputs[0])
    np.testing.assert_array_equal(first.inputs[0], X[first.labels])  # labels go along


def test_samples_are_taken_as_they_are_up_to_the_limit():
    samples = collect((X, Y), MODEL)
    few = collect(samples, MODEL, limit=3, labels=True)
    np.testing.assert_array_equal(few.inputs[0], X[:3])
    np.testing.assert_array_equal(few.labels, Y[:3])
    assert collect(samples, MODEL, limit=20) is samples
    with pytest.raises(TypeError, match="with labels"):
        collect(collect(X, MODEL), MODEL, labels=True)


def test_several_inputs():
    model = nested()
    left, right = np.zeros((5, 8, 8, 3)), np.ones((5, 6, 6, 1))
    for data in ({"left": left, "right": right}, [left, right]):
        samples = collect(data, model)
        assert [array.shape for array in samples.inputs] == [left.shape, right.shape]


CASTS = [
    ("float32", np.array([1, 2])),
    ("float32", np.array([1 / 3, 2])),
    ("float32", tf.constant([1.0, 2.0], "bfloat16")),
    ("int32", np.array([3.0, 4.0])),
    ("uint8", np.array([0.0, 255.0])),
    ("bool", np.array([0.0, 1.0])),
    ("complex64", np.array([1.0, 2j])),
]
OTHERS = [
    ("uint8", np.array([0.0, 0.5]), ValueError, "such as 0.5: scale"),
    ("uint8", np.array([-1, 3]), ValueError, "such as -1"),
    ("uint8", np.array([3, 256]), ValueError, "such as 256"),
    ("int32", np.array([0.7, 1]), ValueError, "such as 0.7"),
    ("int32", np.array([2**40, 1]), ValueError, "such as 1099511627776"),
    ("int32", np.array([np.nan, 1]), ValueError, "NaN or infinity"),
    ("float32", np.array([1e300, 1]), ValueError, r"such as 1e\+300"),
    ("float32", np.array([1.0, 2j]), TypeError, "complex128"),
]


def taking(dtype):
    values = keras.Input((), dtype=dtype, name="values")
    return keras.Model(values, keras.ops.real(values))


@pytest.mark.parametrize(("dtype", "x"), CASTS)
def test_values_are_cast(dtype, x):
    array = collect(x, taking(dtype)).inputs[0]
    assert array.dtype == dtype
    np.testing.assert_allclose(array, np.asarray(x).astype(dtype))


@pytest.mark.parametrize(("dtype", "x", "error", "message"), OTHERS)
def test_values_that_an_input_cannot_hold(dtype, x, error, message):
    with pytest.raises(error, match=f"for input 'values'.*{message}"):
        collect(x, taking(dtype))


WORDS = np.array(["a b", "b c d", "c", "d a"] * 20)
TEXTS = {
    "objects": WORDS.astype(object),
    "tensor": tf.constant(WORDS),
    "dataset": tf.data.Dataset.from_tensor_slices(WORDS).batch(8),
    "dataset by name": tf.data.Dataset.from_tensor_slices({"words": WORDS}).batch(8),
}


@pytest.fixture(scope="module")
def reader():
    words = keras.Input((), dtype="string", name="words")
    x = layers.TextVectorization(output_sequence_length=4, vocabulary=list("abcd"))(words)
    x = layers.GlobalAveragePooling1D()(layers.Embedding(6, 8)(x))
    return keras.Model(words, layers.Dense(3)(layers.Dense(8, "relu")(x)))


@pytest.mark.parametrize("kind", TEXTS)
def test_words(kind, reader):
    samples = collect(TEXTS[kind], reader)
    assert [tf.compat.as_str(word) for word in samples.inputs[0]] == WORDS.tolist()
    pruned = kn.prune(reader, kn.NISP(), ratio=0.5, calibration=TEXTS[kind], verbose=0)
    assert pruned(tf.constant(WORDS[:2])).shape == (2, 3)


@pytest.mark.parametrize("importance", [kn.LRP, kn.OptimalBrainSurgeon, kn.LayerByLayer])
def test_importances_of_words(importance, reader):
    plan = kn.plan_pruning(reader, importance(WORDS), ratio=0.5)
    assert [row.kept for row in plan.creators] == [4, 4, 3]


@pytest.mark.parametrize("x", [np.arange(80), np.array(["a", 3] * 40, object)])
def test_numbers_instead_of_words(x, reader):
    with pytest.raises(TypeError, match=r"Expected strings for input 'words'. Received .* dtype"):
        collect(x, reader)


NAN = X.copy()
NAN[3, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (X[:0], ValueError, "Received none"),
        (tf.data.Dataset.from_tensor_slices(X[:0]), ValueError, "data are empty"),
        (iter([]), ValueError, "data are empty"),
        (X[:, :2], ValueError, r"\(samples, 4, 3\)"),
        (X[0], ValueError, "shape"),
        (NAN, ValueError, "NaN or infinity in 1 of 20 samples, the first at index 3"),
        (np.full((2, 4, 3), "a"), TypeError, "dtype"),
        ([X, X], ValueError, "1 model inputs"),
        (None, ValueError, "Received none: give them"),
        ("data", TypeError, "str"),
        (3, TypeError, "int"),
        (iter([X[:2], X[:2, :3]]), ValueError, r"\(samples, 4, 3\).*Received: shape \(2, 3, 3\)"),
        (tf.data.Dataset.range(9), ValueError, r"Received: shape \(\)"),
        (enumerate([X]), ValueError, r"Received: shape \(\)"),
        (itertools.repeat(X[:0]), ValueError, "empty batches"),
        (itertools.repeat(None), ValueError, "Received: None"),
    ],
)
def test_bad_data(data, error, message):
    before = [w.numpy().copy() for w in MODEL.weights]
    with pytest.raises(error, match=message):
        kn.prune(MODEL, kn.NISP(data), ratio=0.5)
    for old, new in zip(before, MODEL.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_batches_of_several_sizes():
    model = keras.Sequential([keras.Input((None, 3)), layers.Dense(2)])
    with pytest.raises(ValueError, match="one shape"):
        collect(iter([X[:2], X[:2, :3]]), model)


def test_missing_key():
    with pytest.raises(ValueError, match=r"\['left', 'right'\]"):
        collect({"left": np.zeros((5, 8, 8, 3))}, nested())
    with pytest.raises(ValueError, match="one length"):
        collect([np.zeros((5, 8, 8, 3)), np.zeros((4, 6, 6, 1))], nested())


def beyond_the_table():
    ids = keras.Input((3,), dtype="int32")
    x = layers.Embedding(10, 4, name="words")(ids)
    x = layers.Dense(6, name="hidden")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(ids, layers.Dense(2)(x)), np.array([[1, 2, 3], [0, 12, 4]])


def beyond_the_vocabulary():
    inputs = keras.Input((1,), dtype="int64")
    x = layers.IntegerLookup(vocabulary=[3, 4], num_oov_indices=0, name="words")(inputs)
    x = layers.Flatten()(layers.Embedding(2, 4)(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Dense(6)(x))), np.array([[3], [12]])


@pytest.mark.parametrize("make", [beyond_the_table, beyond_the_vocabulary])
def test_values_that_a_layer_cannot_take_are_said_with_its_name(make):
    model, x = make()
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small, before = kn.rebuild(model, plan), [w.numpy() for w in model.weights]
    uses = [
        lambda: kn.plan_pruning(model, kn.NISP(x), ratio=0.5),
        lambda: kn.plan_pruning(model, kn.Taylor((x, np.zeros(2)), "mse"), ratio=0.5),
        lambda: kn.recalibrate(small, x, model, plan),
        lambda: kn.sensitivity(model, kn.Magnitude(), (x, np.zeros(2)), calibration=x),
        lambda: kn.prune(model, kn.Magnitude(), ratio=0.5, calibration=x, verbose=0),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"as in training\. Received others: ") as caught:
            use()
        assert "Op:" not in str(caught.value)
        if make is beyond_the_table:
            assert "12 is not in [0, 10)." in str(caught.value)
    assert "layer 'words'" in str(caught.value)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


# Data that say little ----------------------------------------------------------------

USES = {
    "plan_pruning": lambda model, x: kn.plan_pruning(
        model, kn.Magnitude(), flops_reduction=0.3, calibration=x
    ),
    "prune": lambda model, x: kn.prune(model, kn.Magnitude(), ratio=0.3, calibration=x, verbose=0),
    "recalibrate": lambda model, x: kn.recalibrate(keras.models.clone_model(model), x),
    "sensitivity": lambda model, x: kn.sensitivity(
        model, kn.Magnitude(), calibration=x, ratios=[0.5]
    ),
}


@pytest.fixture(scope="module")
def classifier():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))


@pytest.mark.parametrize("use", USES)
def test_few_samples_and_samples_of_one_label(use, classifier, rng):
    x, before = rng.normal(size=(70, 6)).astype("float32"), classifier.get_weights()
    labels = np.arange(70) % 3
    with pytest.warns(UserWarning, match="at least 64, better a few hundred. Received: 5"):
        USES[use](classifier, x[:5])
    for same in (np.zeros(70, int), np.ones((70, 1)), np.eye(3)[np.ones(70, int)]):
        with pytest.warns(UserWarning, match="all 70 .* the same label.* shuffle a dataset"):
            USES[use](classifier, (x, same))
    for y in (labels, np.eye(3)[labels], labels / 3):
        USES[use](classifier, (x, y))  # labels are not looked at
        USES[use](classifier, tf.data.Dataset.from_tensor_slices((x, y)).batch(16))
    for old, new in zip(before, classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("importance", [kn.NISP, kn.LayerByLayer])
def test_a_single_sample(importance, classifier, rng):
    x = rng.normal(size=(1, 6)).astype("float32")
    with pytest.raises(ValueError, match=r"several calibration samples for .* Received: 1"):
        kn.plan_pruning(classifier, importance(x), ratio=0.5)


def test_a_list_of_inputs_and_labels(classifier, rng):
    x = rng.normal(size=(40, 6)).astype("float32")
    with pytest.raises(ValueError, match=r"Labels are told from inputs in a tuple: `\(x, y\)`"):
        kn.recalibrate(classifier, [x, np.zeros((40, 3))])


def test_large_samples_come_in_smaller_batches():
    def sizes(*shape):
        samples = Samples([np.zeros((100, *shape), "float32")])
        return [len(inputs[0]) for inputs, _ in samples.batches()]

    assert sizes(32, 32, 3) == [64, 36]
    assert sizes(224, 224, 3) == [13] * 7 + [9]
    assert sizes(1024, 1024, 1) == [8] * 12 + [4]
