"""What outputs hold: by what they come out of, and by the loss of the model."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_nisp as kn
from keras_nisp.keras_graph.keras_models import output_names
from keras_nisp.keras_graph.keras_training import loss_of
from keras_nisp.keras_graph.output_kinds import OutputKind, is_regressor, kind_of

SOFTMAX, VALUES = OutputKind("softmax"), OutputKind("values")


def dense(activation=None, name=None):
    return layers.Dense(4, activation=activation, name=name)


ENDINGS = {
    "activation": (lambda: [dense("softmax")], SOFTMAX),
    "sigmoid": (lambda: [dense("sigmoid")], OutputKind("binary")),
    "layer as activation": (lambda: [layers.Dense(4, activation=layers.Softmax())], SOFTMAX),
    "operation": (lambda: [dense(), ops.softmax], SOFTMAX),
    "other axis": (lambda: [dense(), layers.Softmax(axis=1)], OutputKind("softmax", -2)),
    "other axis, operation": (
        lambda: [dense(), lambda x: ops.softmax(x, axis=1)],
        OutputKind("softmax", -2),
    ),
    "two axes": (lambda: [dense(), layers.Softmax(axis=[1, 2])], VALUES),
    "by time": (lambda: [layers.TimeDistributed(dense("softmax"))], SOFTMAX),
    "model by time": (
        lambda: [layers.TimeDistributed(keras.Sequential([keras.Input((8,)), dense("softmax")]))],
        SOFTMAX,
    ),
    "in single precision": (
        lambda: [dense("softmax"), layers.Activation("linear", dtype="float32")],
        SOFTMAX,
    ),
    "cast": (lambda: [dense("softmax"), lambda x: ops.cast(x, "float64")], SOFTMAX),
    "identity": (lambda: [dense("softmax"), layers.Identity()], SOFTMAX),
    "reshaped": (lambda: [dense("softmax"), layers.Reshape((2, 3, 4))], SOFTMAX),
    "mixed up": (lambda: [dense("softmax"), layers.Reshape((4, 6))], VALUES),
    "gates": (lambda: [layers.LSTM(4, activation="sigmoid")], VALUES),
    "nothing": (lambda: [dense()], VALUES),
    "dense behind": (lambda: [dense("softmax"), dense()], VALUES),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_what_an_output_comes_out_of(case):
    parts, kind = ENDINGS[case]
    inputs = x = keras.Input((6, 8))
    for part in parts():
        x = part(x)
    assert kind_of(keras.Model(inputs, x)) == kind
    assert kind_of(keras.Sequential([keras.Input((6, 8)), keras.Model(inputs, x)])) == kind


def two_heads(names, structure):
    inputs = keras.Input((5,))
    h = layers.Dense(6, activation="relu")(inputs)
    return keras.Model(inputs, structure(*[dense(name=name)(h) for name in names]))


CLASSES, BOX = keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"
LOSSES = {
    "keys": (lambda a, b: {"cls": a, "box": b}, {"cls": CLASSES, "box": BOX}),
    "nested": (lambda a, b: {"o": {"y": a, "x": b}}, {"o": {"y": CLASSES, "x": BOX}}),
    "list of a dict": (lambda a, b: {"a": a, "b": b}, [CLASSES, BOX]),
    "list": (lambda a, b: [a, b], [CLASSES, BOX]),
    "names": (lambda a, b: [a, b], {"box": CLASSES, "cls": BOX}),
    "one for both": (lambda a, b: {"cls": a, "box": b}, CLASSES),
}


@pytest.mark.parametrize("case", LOSSES)
def test_losses_are_found_as_keras_finds_them(case):
    """By keys of the outputs, whatever layers are called."""
    structure, losses = LOSSES[case]
    model = two_heads(("box", "cls"), structure)  # the other way round
    model.compile("sgd", losses)
    index = output_names(model).index("box")
    assert loss_of(model, index) is CLASSES
    assert loss_of(model, 1 - index) is (CLASSES if losses is CLASSES else BOX)
    assert kind_of(model, index) == OutputKind("logits")
    labels = [np.zeros(3), np.zeros(3)]
    if losses is not CLASSES:
        assert kind_of(model, 1 - index) == VALUES
        labels[1 - index] = np.zeros((3, 4))
    # Keras would refuse labels of the other loss.
    model.train_on_batch(np.ones((3, 5)), keras.tree.pack_sequence_as(model.output, labels))


@pytest.mark.parametrize("losses", [[BOX], {"head": BOX}, BOX])
def test_the_loss_of_a_single_output(losses):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, dense(name="head")(inputs))
    model.compile("sgd", losses)
    assert loss_of(model, 0) == BOX
    assert is_regressor(model)
    model.train_on_batch(np.ones((3, 5)), np.ones((3, 4)))


def test_classes_along_another_axis_are_compared_along_it(rng):
    """The same function, channels first: the same damages and the same widths."""
    inputs = keras.Input((6, 6, 3))
    h = layers.Conv2D(16, 3, activation="relu", name="a")(inputs)
    logits = layers.Conv2D(4, 1, name="b")(layers.Conv2D(12, 3, activation="relu", name="c")(h))
    last = keras.Model(inputs, layers.Softmax()(logits))
    first = keras.Model(inputs, layers.Softmax(axis=1)(layers.Permute((3, 1, 2))(logits)))
    x = rng.normal(size=(64, 6, 6, 3)).astype("float32")
    tables = [kn.sensitivity(m, kn.Magnitude(), calibration=x, ratios=[0.5]) for m in (last, first)]
    np.testing.assert_allclose(tables[0].damages, tables[1].damages, rtol=1e-4)
    assert tables[0].damages[0][0] > 1e-4


@pytest.mark.parametrize("loss", ["mse", "mae", keras.losses.Huber(), "cosine_similarity"])
def test_regressors(loss):
    model = keras.Sequential([keras.Input((5,)), dense()])
    assert not is_regressor(model)
    model.compile("sgd", loss)
    assert is_regressor(model)
    model.compile("sgd", CLASSES)
    assert not is_regressor(model)
