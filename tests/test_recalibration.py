"""BatchNorm statistics are those of the data."""

import keras
import numpy as np
import pytest
from keras import layers
from nets import NETS, channels_first, example_inputs, nested, plain, randomise, residual, shared

import keras_nisp as kn
from keras_nisp.channels import tracing


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


# Folding --------------------------------------------------------------------------


def pruned(model, seed=0):
    plan = kn.plan_pruning(model, kn.Random(seed), ratio=0.5)
    return kn.rebuild(model, plan), plan


def constant_features():
    """Channels of the first layer that are constant on any input, next to others."""
    inputs = keras.Input((3,))
    x = layers.Dense(8, activation="relu", name="a")(inputs)
    x = layers.Dense(6, activation="tanh", name="b")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    for name in ("a", "b"):
        layer = model.get_layer(name)
        kernel = layer.kernel.numpy().copy()
        kernel[:, ::2] = 0
        layer.kernel.assign(kernel)
    model.get_layer("a").bias.assign(np.arange(1.0, 9))
    return model


def test_constant_channels_are_folded_without_loss(rng):
    model = constant_features()
    x = rng.normal(size=(100, 3)).astype("float32")

    def constants_first(channel_map):
        scores = np.ones(channel_map.count)
        scores[channel_map.creators[0].units[::2]] = 0
        return scores

    plan = kn.plan_pruning(model, constants_first, ratios={"a": 0.5})
    small = kn.rebuild(model, plan)
    assert not np.allclose(small(x), model(x), atol=1e-2)
    assert kn.recalibrate(small, x, model, plan, compensate="mean") is small
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)
    at_once = kn.prune(model, constants_first, ratios={"a": 0.5}, calibration=x, verbose=0)
    np.testing.assert_allclose(at_once(x), model(x), atol=1e-5)


@pytest.mark.parametrize("flatten", [False, True])
def test_mean_of_the_output_is_kept(flatten, rng):
    """A linear layer behind removed channels has the same mean output as before."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="a")(inputs)
    x = layers.Flatten()(x) if flatten else layers.Conv2D(4, 2, name="b")(x)
    x = layers.Dense(3, name="head")(x) if flatten else x
    model = randomise(keras.Model(inputs, x))
    data = rng.normal(size=(300, 6, 6, 2)).astype("float32")
    plan = kn.plan_pruning(model, kn.Random(), ratios={"a": 0.5})
    small = kn.rebuild(model, plan)
    axes = tuple(range(len(x.shape) - 1))
    expected = np.asarray(model(data)).mean(axes)
    assert not np.allclose(np.asarray(small(data)).mean(axes), expected, atol=1e-2)
    kn.recalibrate(small, data, model, plan, compensate="mean")
    # The convolution reads other positions at its border; the mean is over all of them.
    tolerance = 1e-4 if flatten else 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(small(data)).mean(axes), expected, atol=tolerance)


def test_folding_needs_both_and_the_right_ones():
    model = randomise(plain())
    small, plan = pruned(model)
    x = example_inputs(model, 16)
    with pytest.raises(ValueError, match="`original` and `plan` together"):
        kn.recalibrate(small, x, model)
    with pytest.raises(kn.PlanMismatchError, match="widths are others"):
        kn.recalibrate(model, x, model, plan)
    with pytest.raises(kn.PlanMismatchError, match="structure"):
        kn.recalibrate(small, x, small, plan)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_folding_works_everywhere(net):
    model = randomise(net())
    small, plan = pruned(model)
    before = [w.numpy().copy() for w in model.weights]
    kn.recalibrate(small, example_inputs(model, 16), model, plan, compensate="mean")
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(np.isfinite(w.numpy()).all() for w in small.weights)


# What may be changed ------------------------------------------------------------------


def weights(model):
    return [np.asarray(weight, np.float64) for weight in model.weights]


def same(model, values):
    return all(map(np.array_equal, weights(model), values))


@pytest.mark.parametrize("compensate", ["mean", "linear"])
@pytest.mark.parametrize("net", [plain, shared], ids=lambda net: net.__name__)
def test_twice_is_once(net, compensate):
    model = randomise(net())
    small, plan = pruned(model)
    x = example_inputs(model, 64)
    kn.recalibrate(small, x, model, plan, compensate=compensate)
    once = weights(small)
    kn.recalibrate(small, x, model, plan, compensate=compensate)
    for value, twice in zip(once, weights(small), strict=True):
        np.testing.assert_allclose(twice, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compensate", ["mean", "linear", "auto"])
def test_what_was_trained_stays(compensate, rng):
    model = randomise(plain())
    small, plan = pruned(model)
    x = example_inputs(model, 64)
    kn.recalibrate(small, x, model, plan)
    small.compile("sgd", "mse", jit_compile=False)
    small.fit(x, rng.normal(size=(64, 5)), verbose=0)
    trained = weights(small)
    with pytest.raises(ValueError, match=r"of layer 'a' differs.*`compensate=None`"):
        kn.recalibrate(small, x, model, plan, compensate=compensate)
    assert same(small, trained)
    kn.recalibrate(small, x)  # statistics alone
    kn.recalibrate(small, x, model, plan, compensate=None)
    for weight, value in zip(small.weights, trained, strict=True):
        assert np.array_equal(weight, value) != ("moving" in weight.path)


@pytest.mark.parametrize("compensate", ["mean", "linear", None])
def test_nothing_that_is_not_finite_is_assigned(compensate):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = randomise(plain())
    finally:
        keras.config.set_dtype_policy("float32")
    small, plan = pruned(model)
    before = weights(small)
    x = 6e4 * np.abs(example_inputs(model, 32))  # overflows behind the first kernel
    with pytest.raises(ValueError, match=r"layer '.*NaN or infinite.*Nothing was changed"):
        kn.recalibrate(small, x, model, plan, compensate=compensate)
    assert same(small, before)


@pytest.mark.parametrize("policy", ["float64", "mixed_float16", "mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("compensate", ["mean", "linear"])
def test_precisions(policy, compensate):
    keras.config.set_dtype_policy(policy)
    try:
        model = randomise(plain())
    finally:
        keras.config.set_dtype_policy("float32")
    small, plan = pruned(model)
    kn.recalibrate(small, example_inputs(model, 32), model, plan, compensate=compensate)
    assert all(np.isfinite(value).all() for value in weights(small))


# One trace ------------------------------------------------------------------------------


def test_prune_traces_once(monkeypatch):
    """Plan, rebuild, proof and repair work on the trace that the call began with."""
    traced, begin = [], tracing.Tracer.__init__

    def counted(self, *args, **kwargs):
        traced.append(1)
        begin(self, *args, **kwargs)

    monkeypatch.setattr(tracing.Tracer, "__init__", counted)
    model = randomise(residual())
    x = example_inputs(model, 16)
    kn.prune(model, kn.NISP(x), ratio=0.5, calibration=x, verbose=0)
    assert len(traced) == 1
