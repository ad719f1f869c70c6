"""Kept channels stand in for those that are gone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from nets import (
    NETS,
    branches,
    channels_first,
    example_inputs,
    nested,
    one_dimensional,
    plain,
    randomise,
    residual,
    shared,
    three_dimensional,
    transposed,
)

import keras_nisp as kn
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.data.samples import Samples
from keras_nisp.keras_graph.recording import recorded
from keras_nisp.recovery import call_runner, compensation, refit
from keras_nisp.recovery.batch_statistics import BatchStatistics
from keras_nisp.recovery.pair import Pair, Reader

TINY = 1e-9


def odd_first(channel_map):
    """An importance by which every second channel of each layer goes."""
    scores = np.ones(channel_map.count)
    for creator in channel_map.creators:
        scores[creator.units[1::2]] = 0
    return scores


def redundant(data_format="channels_last", use_bias=True):
    """A network in which every second channel is twice the one before, wherever it is read."""
    last = data_format == "channels_last"
    form = {"data_format": data_format}
    conv = {"padding": "same", "use_bias": use_bias, **form}
    axis = -1 if last else 1

    def block(x, filters, name):
        x = layers.Conv2D(filters, 3, name=name, **conv)(x)
        return layers.BatchNormalization(axis=axis, name=f"{name}_bn")(x)

    # Keras 3.15 adds a bias along the wrong axis in channels_first where an image is as wide as
    # there are filters.
    inputs = keras.Input((9, 9, 2) if last else (2, 9, 9))
    x = layers.ReLU()(block(inputs, 6, "a"))
    y = layers.ReLU()(block(x, 8, "b"))
    x = layers.ReLU()(layers.Add()([block(y, 6, "c"), x]))
    x = layers.MaxPooling2D(2, **form)(x)
    x = layers.Flatten(**form)(x)
    x = layers.Dense(10, activation="relu", use_bias=use_bias, name="d")(x)
    outputs = layers.Dense(3, use_bias=use_bias, name="head")(x)
    model = randomise(keras.Model(inputs, outputs))
    for layer in model.layers:
        if layer.name == "head" or not layer.weights:
            continue
        scale = 2.0 if isinstance(layer, layers.BatchNormalization) or layer.name == "d" else 1.0
        for weight in layer.weights:
            value = weight.numpy()
            value[..., 1::2] = scale * value[..., ::2]
            weight.assign(value)
    return model


def fitted(model, samples=200, seed=1):
    """A model whose BatchNormalization fits the data, and the data."""
    x = example_inputs(model, samples, seed)
    return kn.recalibrate(model, x, batch_size=samples), x


def outputs(model, x):
    return [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]


def error(model, small, x):
    """Mean square error of the outputs over their variance."""
    pairs = zip(outputs(model, x), outputs(small, x), strict=True)
    return np.mean([((a - b) ** 2).mean() / a.var() for a, b in pairs])


def repaired(model, plan, x, compensate="mean", **kwargs):
    small = kn.rebuild(model, plan, force=True, verbose=0)
    return kn.recalibrate(small, x, model, plan, compensate=compensate, **kwargs)


# What can be made up for entirely -----------------------------------------------------


@pytest.mark.parametrize("use_bias", [True, False], ids=["biased", "unbiased"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_redundant_channels_are_made_up_for_without_loss(data_format, use_bias):
    model, x = fitted(redundant(data_format, use_bias))
    plan = kn.plan_pruning(model, odd_first, ratio=0.5)
    assert [row.kept for row in plan.creators] == [3, 4, 3, 5, 3]
    small = repaired(model, plan, x, compensate="linear", ridge=TINY)
    other = example_inputs(model, 50, seed=2)
    scale = np.abs(outputs(model, other)[0]).max()
    np.testing.assert_allclose(small(other), model(other), atol=1e-4 * scale)
    for compensate in ("mean", None):
        assert error(model, repaired(model, plan, x, compensate=compensate), other) > 1e-2


def test_affine_combinations_are_made_up_for_without_loss(rng):
    """Six channels of two features: each is a sum of the others, and a constant."""
    inputs = keras.Input((9, 2))
    x = layers.Dense(6, name="a")(inputs)
    x = layers.Conv1D(5, 3, activation="tanh", name="b")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    x = rng.normal(size=(100, 9, 2)).astype("float32")
    plan = kn.plan_pruning(model, kn.Random(), ratios={"a": 0.5})
    small = repaired(model, plan, x, compensate="linear", ridge=TINY)
    np.testing.assert_allclose(small(x), model(x), atol=1e-4)
    assert error(model, repaired(model, plan, x), x) > 1e-2


@pytest.mark.parametrize("kept", [1, 2])
def test_single_channels(kept):
    """Grey images, with the channels first, and a layer that is left with one or two."""
    form = {"data_format": "channels_first"}
    inputs = keras.Input((1, 9, 9))
    x = layers.Conv2D(4, 1, name="a", **form)(inputs)
    model = randomise(keras.Model(inputs, layers.Conv2D(3, 2, name="b", **form)(x)))
    x = example_inputs(model, 40)
    plan = kn.plan_pruning(model, kn.Random(), widths={"a": kept})
    small = repaired(model, plan, x, compensate="linear", ridge=TINY)
    np.testing.assert_allclose(small(x), model(x), atol=1e-4)


@pytest.mark.parametrize("normalised", [True, False])
def test_where_a_constant_cannot_go_into_a_bias(normalised, rng):
    """BatchNormalization takes it; without, the best map has none."""
    inputs = keras.Input((3,))
    x = layers.Dense(4, name="a")(inputs)
    x = layers.Dense(5, use_bias=False, name="b")(x)
    x = layers.BatchNormalization()(x) if normalised else x
    model = randomise(keras.Model(inputs, x))
    model.get_layer("a").bias.assign([3.0, -2.0, 1.0, 4.0])
    model, x = fitted(model)
    plan = kn.plan_pruning(model, kn.Random(), ratios={"a": 0.25})
    small = repaired(model, plan, x, compensate="linear", ridge=TINY)
    if normalised:
        np.testing.assert_allclose(small(x), model(x), atol=1e-4)
        return
    wide, narrow = (np.asarray(net.get_layer("a")(x), np.float64) for net in (model, small))
    best = np.linalg.lstsq(narrow, wide @ model.get_layer("b").kernel.numpy(), rcond=None)[0]
    np.testing.assert_allclose(small.get_layer("b").kernel, best, atol=1e-3)


@pytest.mark.parametrize("net", [plain, channels_first, transposed, one_dimensional])
def test_targets_are_what_a_convolution_gives(net, monkeypatch):
    """As what it reads, times its kernel: the former costs nothing."""
    model, x = fitted(randomise(net()), 100)
    for plan in (
        kn.plan_pruning(model, kn.Random(), ratio=0.5),
        kn.plan_merging(model, ratio=0.5, clustering="even"),
    ):
        given = repaired(model, plan, x, compensate="linear").get_weights()
        with monkeypatch.context() as patch:
            patch.setattr(Reader, "gives_product", False)
            computed = repaired(model, plan, x, compensate="linear").get_weights()
        for got, want in zip(given, computed, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())


def test_statistics_on_some_positions(rng):
    """Without more than is asked for they are exact; otherwise the same ones in both networks."""
    bn = layers.BatchNormalization()
    bn.build((None, 20, 20, 6))
    known = rule_of(bn).normalisation(bn)
    x = (rng.normal(size=(50, 20, 20, 6)) * [1, 2, 3, 4, 5, 6] + 10).astype("float32")
    whole, some, fewer = (BatchStatistics(bn, known, most) for most in (400, 40, 40))
    for start in (0, 30):
        for statistics, channels in ((whole, 6), (some, 6), (fewer, 3)):
            statistics.add(tf.constant(x[start : start + 30, ..., :channels]))
    mean, variance = x.mean((0, 1, 2), np.float64), x.var((0, 1, 2), np.float64)
    np.testing.assert_allclose(whole.result, (mean, variance), rtol=1e-5)
    np.testing.assert_allclose(some.result, (mean, variance), rtol=0.15)
    np.testing.assert_allclose(fewer.result, np.array(some.result)[:, :3], rtol=1e-6)


# What can be made up for in part ------------------------------------------------------


@pytest.mark.parametrize(
    "net",
    [plain, residual, branches, channels_first, nested, one_dimensional, three_dimensional],
    ids=lambda net: net.__name__,
)
def test_better_than_means_on_other_data(net):
    model, x = fitted(randomise(net()), 400)
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    other = example_inputs(model, 200, seed=2)
    linear = error(model, repaired(model, plan, x, compensate="linear"), other)
    assert linear < error(model, repaired(model, plan, x, compensate="mean"), other)


def test_errors_do_not_add_up():
    """What a layer lost, those behind it know of: the outputs' mean and scale are right."""
    inputs = keras.Input((6,))
    x = inputs
    for name in "abcd":
        x = layers.Dense(16, activation="relu", name=name)(x)
    model, x = fitted(randomise(keras.Model(inputs, layers.Dense(3, name="head")(x))), 500)
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = repaired(model, plan, x, compensate="linear", ridge=TINY)
    residual = outputs(model, x)[0] - outputs(small, x)[0]
    np.testing.assert_allclose(residual.mean(0), 0, atol=1e-4)
    read = np.asarray(keras.Model(small.input, small.get_layer("head").input)(x, training=False))
    covariance = (read - read.mean(0)).T @ residual / len(x)
    np.testing.assert_allclose(covariance, 0, atol=1e-4)  # nothing is left to be explained


def test_merged_channels():
    """Clusters that are not identical: the mean of each stands in for its members."""
    model, x = fitted(randomise(plain()), 400)
    plan = kn.plan_merging(model, ratio=0.5, clustering="even")
    other = example_inputs(model, 200, seed=2)
    linear = error(model, repaired(model, plan, x, compensate="linear"), other)
    assert linear < 0.9 * error(model, repaired(model, plan, x, compensate=None), other)


def test_prune_passes_it_on():
    model, x = fitted(randomise(plain()), 300)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    settings = {"ratio": 0.5, "calibration": x, "verbose": 0}
    for compensate in ("mean", "linear", None):
        small = kn.prune(model, kn.Magnitude(), compensate=compensate, **settings)
        expected = repaired(model, plan, x, compensate=compensate)
        for got, want in zip(small.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(got, want)


def test_linear_is_the_default():
    model, x = fitted(randomise(plain()), 300)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    expected = repaired(model, plan, x, compensate="linear")
    pruned = kn.prune(model, kn.Magnitude(), ratio=0.5, calibration=x, verbose=0)
    for small in (pruned, kn.recalibrate(kn.rebuild(model, plan), x, model, plan)):
        for got, want in zip(small.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(got, want)


# What stays as it is --------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_works_everywhere_and_leaves_the_original(net):
    model = randomise(net())
    before = [w.numpy().copy() for w in model.weights]
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = repaired(model, plan, example_inputs(model, 16), compensate="linear")
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(np.isfinite(w.numpy()).all() for w in small.weights)


def test_nothing_removed_nothing_changed():
    model, x = fitted(randomise(residual()))
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5, exclude="*")
    small = repaired(model, plan, x, compensate="linear")
    for old, new in zip(model.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-4, atol=1e-4)


def test_layers_before_the_first_removal_stay(rng):
    model, x = fitted(randomise(residual()))
    plan = kn.plan_pruning(model, kn.Random(), ratios={"inner1": 0.5})
    small, plainly = repaired(model, plan, x, compensate="linear"), kn.rebuild(model, plan)
    for name in ("stem", "inner0", "outer0", "inner1"):
        for old, new in zip(
            plainly.get_layer(name).weights, small.get_layer(name).weights, strict=True
        ):
            np.testing.assert_allclose(old, new, rtol=1e-4, atol=1e-4)
    change = plainly.get_layer("outer1").kernel - small.get_layer("outer1").kernel
    assert np.abs(change).max() > 1e-2


def test_none_renews_statistics_alone():
    model, x = fitted(randomise(plain()))
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    alone = kn.recalibrate(kn.rebuild(model, plan), x)
    small = repaired(model, plan, x, compensate=None)
    for old, new in zip(alone.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_strong_ridge_leaves_kernels_as_they_are():
    model, x = fitted(randomise(plain()))
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = repaired(model, plan, x, compensate="linear", ridge=1e9)
    for old, new in zip(kn.rebuild(model, plan).weights, small.weights, strict=True):
        if "kernel" in new.path:
            np.testing.assert_allclose(old, new, atol=1e-6)


def test_again_is_the_same():
    """Weights are made of the original's, so that a second time changes nothing."""
    model, x = fitted(randomise(plain()))
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = repaired(model, plan, x, compensate="linear")
    once = small.get_weights()
    kn.recalibrate(small, x, model, plan, compensate="linear")
    for old, new in zip(once, small.get_weights(), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-4, atol=1e-4)


# What gets the mean only ----------------------------------------------------------------


def test_too_many_features_get_the_mean(monkeypatch):
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.Dense(3, name="head")(layers.Flatten()(x))
    model, x = fitted(randomise(keras.Model(inputs, x)))
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    monkeypatch.setattr(refit, "MOST_FEATURES", 4 * 4 * 3 - 1)
    small, means = (repaired(model, plan, x, compensate=word) for word in ("linear", "mean"))
    for old, new in zip(means.get_weights(), small.get_weights(), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-4, atol=1e-5)


def test_shared_layers_are_fitted_on_all_their_calls():
    """On the kept channels as the original makes them: the least squares of both calls at once."""
    model, x = fitted(randomise(shared()))
    plan = kn.plan_pruning(model, kn.Random(), ratios={"a": 0.4})
    small = repaired(model, plan, x, compensate="linear", ridge=TINY)
    twice = model.get_layer("twice")
    nodes = [node.input_tensors[0] for node in twice._inbound_nodes][:2]
    reads = keras.Model(model.input, nodes)(x, training=False)
    kept = [i for i in range(reads[0].shape[-1]) if i not in plan.creators[0].removed]
    window = {"strides": [1] * 4, "rates": [1] * 4, "padding": "VALID"}
    patches = [tf.image.extract_patches(read, [1, 3, 3, 1], **window) for read in reads]
    rows = np.concatenate([np.reshape(patch, (-1, 9, 5)) for patch in patches]).astype("float64")
    wanted = np.tensordot(rows, twice.kernel.numpy().reshape(9, 5, 6), ([1, 2], [0, 1]))
    given = np.hstack([rows[:, :, kept].reshape(len(rows), -1), np.ones((len(rows), 1))])
    best = np.linalg.lstsq(given, wanted, rcond=None)[0]
    got = small.get_layer("twice").kernel.numpy()
    np.testing.assert_allclose(got.reshape(9 * len(kept), 6), best[:-1], atol=1e-3)


def test_a_layer_shared_by_tensors_of_different_ranks(rng):
    """Four channels of two features say all of eight, whichever axis they lie along."""
    inputs = keras.Input((5, 7, 2))
    x = layers.Dense(8, name="a")(inputs)
    head = layers.Dense(3, name="head")
    outputs = [head(x), head(layers.GlobalAveragePooling2D()(x))]
    model = randomise(keras.Model(inputs, outputs))
    x = rng.normal(size=(60, 5, 7, 2)).astype("float32")
    plan = kn.plan_pruning(model, kn.Random(), ratios={"a": 0.5})
    small = repaired(model, plan, x, compensate="linear", ridge=TINY)
    for got, want in zip(small(x), model(x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("compensate", ["mean", "linear"])
def test_mean_behind_a_transposed_convolution(compensate, size, rng):
    """Each output is a sum over a share of the taps."""
    inputs = keras.Input((12, 12, 2))
    x = layers.Conv2D(8, 1, activation="relu", name="a")(inputs)
    x = layers.Conv2DTranspose(3, size, strides=2, name="up")(x)
    model = randomise(keras.Model(inputs, x))
    x = rng.normal(size=(100, 12, 12, 2)).astype("float32")
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = repaired(model, plan, x, compensate=compensate)
    got, want = (outputs(net, x)[0].mean((0, 1, 2)) for net in (small, model))
    np.testing.assert_allclose(got, want, atol=1e-2)


# Memory -------------------------------------------------------------------------------


def test_as_many_samples_as_fit(monkeypatch):
    model, x = fitted(randomise(transposed()), 100)
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    channel_map, samples = kn.trace(model), Samples([x])
    memory = call_runner.memory(channel_map, np.ones(channel_map.count, bool), samples)
    most = max(np.prod(layer.output.shape[1:]) for layer in model.layers)
    assert 4 * most <= memory < 4 * sum(np.prod(layer.output.shape[1:]) for layer in model.layers)
    monkeypatch.setattr(compensation, "MOST_MEMORY", 30 * memory)
    everything = Pair(channel_map, UnitMap.removing(np.zeros(channel_map.count, bool)), model)
    taken = compensation._some(everything, samples)[0].inputs[0]
    spaced = np.linspace(0, 99, 15).round().astype(int)
    np.testing.assert_array_equal(taken, x[spaced])  # from all of them: they may be sorted
    monkeypatch.setattr(compensation, "MOST_MEMORY", 1)
    small = repaired(model, plan, x, compensate="linear")
    assert all(np.isfinite(w.numpy()).all() for w in small.weights)


def test_empty_parts_take_no_memory(rng):
    inputs = keras.Input((6,))
    empty, rest = keras.ops.split(layers.Dense(8, activation="relu")(inputs), [0], axis=-1)
    x = layers.Dense(8, activation="relu")(layers.Concatenate()([empty, rest]))
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    x = rng.normal(size=(32, 6)).astype("float32")
    channel_map, samples = kn.trace(model), Samples([x])
    memory = call_runner.memory(channel_map, np.ones(channel_map.count, bool), samples)
    assert memory == 4 * 8  # the part with all of what is split, which is let go
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, calibration=x, verbose=0)
    assert np.isfinite(small(x)).all()


def test_tensors_are_let_go(rng):
    model = randomise(plain())
    x, steps = example_inputs(model, 5), recorded(model, [1] * len(kn.trace(model).calls))
    carried = call_runner.CallRunner(steps, ["x"], Samples([x]), batch_size=2)
    for _ in steps[:-1]:
        carried.step()
        assert len(carried.values) == 1
    (batches,) = carried.values.values()
    np.testing.assert_allclose(
        np.asarray(model.get_layer("head")(np.concatenate(batches))), model(x), rtol=1e-4, atol=1e-5
    )


# Errors -------------------------------------------------------------------------------


def test_bad_arguments_are_named_before_any_work():
    model = randomise(plain())
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = kn.rebuild(model, plan)
    no_data = iter(())  # would be an error of its own
    wrong = r"`compensate` to be 'auto', 'linear', 'mean' or None.*'lineal'"
    with pytest.raises(ValueError, match=wrong):
        kn.recalibrate(small, no_data, model, plan, compensate="lineal")
    for word in ("linear", "mean"):
        with pytest.raises(ValueError, match=f"`original` and `plan` for compensate='{word}'"):
            kn.recalibrate(small, no_data, compensate=word)
        with pytest.raises(ValueError, match=f"`calibration` data for compensate='{word}'"):
            kn.prune(model, kn.Random(), ratio=0.5, compensate=word)
    with pytest.raises(ValueError, match="`original` and `plan` together"):
        kn.recalibrate(small, no_data, model, compensate="linear")
    for ridge in (0, -1.0, np.nan, np.inf, "1"):
        with pytest.raises((TypeError, ValueError), match="`ridge` to be a number above 0"):
            kn.recalibrate(small, no_data, model, plan, compensate="linear", ridge=ridge)
    for arguments in ((), (model, plan)):  # there is nothing to refit, or only means are corrected
        with pytest.raises(ValueError, match="`ridge` where kernels are refitted"):
            kn.recalibrate(
                small, no_data, *arguments, ridge=0.1, compensate="mean" if arguments else "auto"
            )
    with pytest.raises(ValueError, match=wrong):
        kn.prune(model, kn.Random(), ratio=0.5, compensate="lineal")


def test_the_wrong_models():
    model = randomise(plain())
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small, x = kn.rebuild(model, plan), example_inputs(model, 16)
    with pytest.raises(kn.PlanMismatchError, match="widths are others"):
        kn.recalibrate(model, x, model, plan, compensate="linear")
    with pytest.raises(kn.PlanMismatchError, match="structure"):
        kn.recalibrate(small, x, small, plan, compensate="linear")


def test_groups_that_keep_one_channel_each():
    """In the small model such a convolution passes channels on instead of creating them."""
    x = inputs = keras.Input((6, 3))
    x = layers.Conv1D(8, 1, name="first")(x)
    x = layers.Conv1D(6, 3, groups=2, padding="same")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = kn.plan_pruning(model, kn.Random(0), widths={"first": 2})
    small, data = kn.rebuild(model, plan), example_inputs(model, 64)
    before = np.abs(small(data) - model(data)).mean()
    kn.recalibrate(small, data, model, plan)
    assert np.abs(small(data) - model(data)).mean() < before
