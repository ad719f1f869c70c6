"""BatchNorm statistics are those of the data."""

import keras
import numpy as np
import pytest
from keras import layers
from nets import channels_first, example_inputs, nested, plain, randomise

import keras_nisp as kn


def test_statistics_are_those_of_the_data(rng):
    model = randomise(
        keras.Sequential(
            [
                keras.Input((5, 5, 2)),
                layers.Conv2D(4, 3, name="conv"),
                layers.BatchNormalization(name="bn"),
                layers.ReLU(),
            ]
        )
    )
    x = rng.normal(1, 2, size=(700, 5, 5, 2)).astype("float32")
    assert kn.recalibrate(model, x) is model
    responses = np.asarray(model.get_layer("conv")(x))
    bn = model.get_layer("bn")
    np.testing.assert_allclose(bn.moving_mean, responses.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bn.moving_variance, responses.var((0, 1, 2)), rtol=1e-3)


def test_later_layers_see_corrected_ones(rng):
    """The second BatchNorm's statistics are those behind the recalibrated first one."""
    inputs = keras.Input((6,))
    first, second = layers.BatchNormalization(), layers.BatchNormalization()
    middle = layers.Dense(4)
    model = randomise(keras.Model(inputs, second(middle(first(inputs)))))
    x = rng.normal(3, 2, size=(512, 6)).astype("float32")
    kn.recalibrate(model, x, batch_size=512)
    np.testing.assert_allclose(first.moving_mean, x.mean(0), rtol=1e-4)
    between = np.asarray(middle(first(x)))
    np.testing.assert_allclose(second.moving_mean, between.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.asarray(model(x)).mean(0), second.beta, atol=1e-2)


@pytest.mark.parametrize("net", [plain, channels_first, nested], ids=lambda net: net.__name__)
def test_only_statistics_change(net):
    model = randomise(net())
    before = {w.path: w.numpy().copy() for w in model.weights}
    kn.recalibrate(model, example_inputs(model, 64))
    for weight in model.weights:
        moving = "moving" in weight.path
        assert np.array_equal(before[weight.path], weight) != moving


def test_repairs_a_pruned_model():
    """Statistics of a model whose channels were removed at random come right again."""
    model = randomise(plain())
    x = example_inputs(model, 512)
    kn.recalibrate(model, x)
    small = kn.prune(model, kn.Random(), ratio=0.5, verbose=0)
    variance = small.layers[4].moving_variance.numpy().copy()
    kn.recalibrate(small, x)
    assert not np.allclose(variance, small.layers[4].moving_variance, rtol=0.05)


def test_bad_data_change_nothing():
    model = randomise(plain())
    before = [w.numpy().copy() for w in model.weights]
    x = example_inputs(model, 300)
    x[290] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        kn.recalibrate(model, x)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
