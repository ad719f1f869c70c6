"""Sizes come from data where there are any; what costs leave out is said; data in another range
than in training are noticed, right data are not."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from nets import randomise

import keras_nisp as kn
from keras_nisp.data.collecting import collect
from keras_nisp.data.value_range import check_range


def sequences(length=None, cropping=100):
    return randomise(
        keras.Sequential(
            [
                keras.Input((length, 3), name="signal"),
                layers.Conv1D(8, 3, padding="same", name="conv"),
                layers.Cropping1D(cropping),
                layers.BatchNormalization(),
                layers.GlobalAveragePooling1D(),
                layers.Dense(6, name="hidden"),
                layers.Dense(2, name="head"),
            ]
        )
    )


X = np.random.default_rng(0).normal(size=(8, 300, 3)).astype("float32")
FLOPS = 300 * 3 * 3 * 8 + 8 * 6 + 6 * 2


@pytest.mark.parametrize(
    "importance",
    [
        lambda: kn.NISP(X),
        lambda: kn.NISP(x for x in [X]),
        lambda: kn.LayerByLayer(X),
        lambda: kn.LRP(X),
        lambda: kn.OptimalBrainSurgeon(X),
        lambda: kn.Taylor((X, np.zeros((8, 2))), "mse"),
    ],
)
def test_sizes_come_from_the_data_of_the_importance(importance):
    model = sequences()
    plan = kn.plan_pruning(model, importance(), ratio=0.5)
    assert plan.before.flops == FLOPS
    assert plan.notes == ()
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


def test_sizes_come_from_calibration_data(capsys):
    model = sequences()
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, calibration=(x for x in [X]))
    assert "assumed" not in capsys.readouterr().out
    kn.recalibrate(small, X)
    kn.sensitivity(model, kn.NISP(X), (X, np.zeros(8)), ratios=[0.5])
    merged = kn.plan_merging(model, ratio=0.5, clustering="activations", calibration=iter([X]))
    assert merged.before.flops == FLOPS
    model.compile("sgd", "mse", jit_compile=False)
    pruner = kn.NISPPruner(X, ratio=0.5, verbose=0)
    model.fit(X, np.zeros((8, 2)), verbose=0, callbacks=[pruner])
    assert pruner.plan.before.flops == FLOPS


def test_assumed_sizes_are_said_and_errors_name_the_argument():
    model = sequences()
    for act in (
        lambda **shape: kn.profile(model, **shape),
        lambda **shape: kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, **shape),
        lambda **shape: kn.plan_merging(model, ratio=0.5, **shape),
        lambda **shape: kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0, **shape),
    ):
        with pytest.raises(ValueError, match=r"assumed \(128, 3\) for input 'signal'.*input_shape"):
            act()
        act(input_shape=(300, 3))
    model.compile("sgd", "mse", jit_compile=False)
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratio=0.5, input_shape=(300, 3), verbose=0)
    model.fit(X, np.zeros((8, 2)), verbose=0, callbacks=[pruner])
    assert pruner.plan.input_shapes == ((300, 3),)
    short = sequences(cropping=1)
    plan = kn.plan_pruning(short, kn.Magnitude(), ratio=0.5)
    for text in (plan.summary(), str(plan), str(kn.profile(short))):
        assert "assumed: (128, 3) for input 'signal'" in text
    assert kn.Plan.from_dict(plan.to_dict()) == plan
    image = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3), layers.ReLU()])
    assert kn.trace(image).input_shapes == [(224, 224, 3)]


class Products(layers.Layer):
    def build(self, input_shape):
        self.first = self.add_weight(shape=(input_shape[-1], 64), name="first")
        self.second = self.add_weight(shape=(64, input_shape[-1]), name="second")

    def call(self, x):
        return x @ self.first @ self.second


@pytest.mark.filterwarnings("ignore::keras_nisp.UnknownLayerWarning")
def test_what_is_not_counted_is_said(capsys):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8),
            Products(name="mine"),
            layers.Dense(6),
            layers.Dense(2),
        ]
    )
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    kn.prune(model, kn.Magnitude(), ratio=0.5)
    printed = capsys.readouterr().out
    note = "'mine' (Products). They hold 1,024 of 1,132 parameters."
    for text in (plan.summary(), str(plan), str(kn.profile(model)), printed):
        assert note in text
    known = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.ReLU(), layers.Dense(2)])
    assert kn.profile(known).notes == ()


def trained(*first, shape=(8, 8, 3), norm=True):
    model = keras.Sequential(
        [
            keras.Input(shape),
            *first,
            layers.Conv2D(6, 3),
            *([layers.BatchNormalization()] if norm else []),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
            layers.Dense(2),
        ]
    )
    return model


UNIT = np.random.default_rng(0).uniform(size=(48, 8, 8, 3)).astype("float32")


def fitted(model, x):
    return kn.recalibrate(model, collect(x, model))


def test_data_in_another_range_are_noticed():
    model = fitted(trained(), UNIT)
    wrong = 255 * UNIT
    for act in (
        lambda: kn.plan_pruning(model, kn.NISP(wrong), ratio=0.5),
        lambda: kn.plan_pruning(model, kn.Taylor((wrong, np.zeros((48, 2))), "mse"), ratio=0.5),
        lambda: kn.prune(model, kn.NISP(wrong), ratio=0.5, calibration=wrong, verbose=0),
        lambda: kn.recalibrate(fitted(trained(), UNIT), wrong),
        lambda: kn.sensitivity(model, kn.Magnitude(), calibration=wrong, ratios=[0.5]),
        lambda: kn.plan_merging(model, ratio=0.5, calibration=wrong),
    ):
        with pytest.warns(
            kn.DataRangeWarning, match=r"25\d times as large.*divided by 25\d"
        ) as seen:
            act()
        (one,) = (warning for warning in seen if warning.category is kn.DataRangeWarning)
        assert one.filename == __file__


def partly_trained(steps):
    model = trained()
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(255 * UNIT, np.zeros((48, 2)), epochs=steps, batch_size=48, verbose=0)
    return model


RIGHT = {
    "rescaled": lambda: (fitted(trained(layers.Rescaling(1 / 255)), 255 * UNIT), 255 * UNIT),
    "raw": lambda: (fitted(trained(), 255 * UNIT), 255 * UNIT),
    "other samples": lambda: (fitted(trained(), UNIT), 0.5 * UNIT),
    "fresh": lambda: (trained(), 255 * UNIT),
    "one step": lambda: (partly_trained(1), 255 * UNIT),
    "ten steps": lambda: (partly_trained(10), 255 * UNIT),
    "rescaled, no norm": lambda: (trained(layers.Rescaling(1 / 255), norm=False), 255 * UNIT),
    "unit, no norm": lambda: (trained(norm=False), UNIT),
    "tokens": lambda: (
        keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                layers.Embedding(200, 3),
                layers.Flatten(),
                layers.Dense(2),
            ]
        ),
        np.arange(120, 160).reshape(10, 4),
    ),
    "table": lambda: (
        keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(2)]),
        200 * UNIT[:, 0, 0],
    ),
    "an image beside a table": lambda: (image_and_table(), [UNIT, 200 + 0 * UNIT[:, 0, 0]]),
}


def image_and_table():
    inputs = [keras.Input(UNIT.shape[1:]), keras.Input((3,))]
    image = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs[0]))
    return keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([image, inputs[1]])))


@pytest.mark.parametrize("kind", RIGHT)
def test_right_data_are_not(kind):
    model, x = RIGHT[kind]()
    assert check_range(model, collect(x, model)) is None


def test_pixels_without_a_norm():
    model = trained(norm=False)
    with pytest.warns(kn.DataRangeWarning, match="look like pixels"):
        kn.plan_pruning(model, kn.NISP(255 * UNIT), ratio=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
