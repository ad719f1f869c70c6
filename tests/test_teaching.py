"""The smaller model learns from the original, without labels."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from marked import first_is_fast, slow
from nets import example_inputs, grouped, nested, plain, randomise, residual, shared

import keras_nisp as kn
from keras_nisp.damage.distance import Distance


def classifier(ending="softmax"):
    """A small network with BatchNormalization, trained to tell five patterns under noise."""
    model = untrained(ending)
    model.set_weights(trained_weights(ending))
    return model


@functools.cache
def trained_weights(ending):
    with dtype_policy("float32"):
        model = randomise(untrained(ending))
    images, classes = patterns(512, 0)
    loss = "mse" if ending is None else "binary_crossentropy"
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    model.fit(images, np.eye(5)[classes], epochs=6, verbose=0)
    return model.get_weights()


def untrained(ending):
    x = inputs = keras.Input((10, 10, 3))
    for i, (filters, strides) in enumerate([(8, 1), (12, 2), (12, 1)]):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", name=f"conv{i}")(x)
        x = layers.BatchNormalization(momentum=0.8, name=f"bn{i}")(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.1)(x)
    return keras.Model(inputs, layers.Dense(5, activation=ending, name="head")(x))


@contextlib.contextmanager
def dtype_policy(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def patterns(count, seed):
    """Images, and which of five patterns each of them shows."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(5, size=count)
    shown = np.random.default_rng(99).normal(size=(5, 10, 10, 3))
    images = shown[classes] + rng.normal(0, 1.5, size=(count, 10, 10, 3))
    return images.astype("float32"), classes


def distance(model, small, x):
    """The mean distance of the outputs."""
    answers = [keras.tree.flatten(net(x, training=False)) for net in (model, small)]
    measure = Distance(kn.trace(model))
    measure.fit(answers[0])
    return float(tf.reduce_mean(measure(*answers)))


def repaired(model, x, teach_steps=0, plan=None, **kwargs):
    plan = plan or kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    return kn.recalibrate(small, x, model, plan, teach_steps=teach_steps, **kwargs)


def values(model):
    return [np.asarray(weight) for weight in model.weights]


def same(model, before):
    return [np.array_equal(*both) for both in zip(values(model), before, strict=True)]


# What it is good for ----------------------------------------------------------------


@pytest.mark.parametrize("ending", ["softmax", slow("sigmoid"), None])
def test_other_data_are_answered_better(ending):
    """Classes, labels that are each there or not, and numbers."""
    model = classifier(ending)
    x, other = patterns(300, 1)[0], patterns(400, 2)[0]
    before, after = (
        distance(model, repaired(model, x, teach_steps=steps), other) for steps in (0, 100)
    )
    assert after < 0.9 * before


def test_prune_teaches():
    model = classifier()
    x = example_inputs(model, 128)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    got = kn.prune(
        model, kn.Magnitude(), ratio=0.5, calibration=x, teach_steps=5, verify=False, verbose=0
    )
    assert all(same(got, values(repaired(model, x, 5, plan))))


def test_several_outputs():
    x = inputs = keras.Input((12,))
    x = layers.Dense(32, activation="relu", name="a")(x)
    x = layers.Dense(32, activation="relu", name="b")(x)
    ends = [
        layers.Dense(4, activation="softmax", name="classes")(x),
        layers.Dense(3, name="numbers")(x),
    ]
    model = randomise(keras.Model(inputs, ends))
    model.get_layer("numbers").kernel.assign(1e3 * model.get_layer("numbers").kernel)
    x, other = example_inputs(model, 400), example_inputs(model, 400, seed=7)
    small, taught = (repaired(model, x, steps) for steps in (0, 200))
    for index in range(2):
        one, its = (keras.Model(net.input, net.outputs[index]) for net in (model, small))
        better = keras.Model(taught.input, taught.outputs[index])
        assert distance(one, better, other) < distance(one, its, other)


@pytest.mark.parametrize("net", [plain, residual, nested, shared, grouped])
def test_all_kinds_of_networks(net):
    model = randomise(net())
    x = example_inputs(model, 64)
    small = repaired(model, x, teach_steps=3)
    assert all(np.isfinite(value).all() for value in values(small))


# What stays as it is ------------------------------------------------------------------


def test_only_trainable_weights_move():
    model = classifier()
    x = example_inputs(model, 100)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "categorical_crossentropy")
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.recalibrate(kn.rebuild(model, plan), x, model, plan)
    small.get_layer("conv1").trainable = False
    optimizer, original = small.optimizer, values(model)
    before, slots = values(small), [np.asarray(v) for v in optimizer.variables]
    kn.recalibrate(small, x, model, plan, compensate=None)
    statistics = values(small)
    small.set_weights(before)
    kn.recalibrate(small, x, model, plan, compensate=None, teach_steps=4)
    frozen = {id(w) for w in small.non_trainable_weights}
    assert len(frozen) == 2 * 3 + 2
    for weight, renewed in zip(small.weights, statistics, strict=True):
        if id(weight) in frozen:
            np.testing.assert_allclose(weight, renewed, rtol=1e-4, atol=1e-6)
        else:
            assert not np.array_equal(weight, renewed)
    assert small.optimizer is optimizer
    assert all(same(model, original))
    for slot, value in zip(optimizer.variables, slots, strict=True):
        np.testing.assert_array_equal(slot, value)
    assert not small.get_layer("conv1").trainable
    assert not small.losses


def test_the_seed_decides():
    model = classifier()
    x = patterns(200, 1)[0]
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    first, again, other = (repaired(model, x, 3, plan, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(values(first), values(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not all(same(first, values(other)))


def test_states_start_from_zero(rng):
    """What a stateful layer keeps from batch to batch is that of its user."""
    inputs = keras.Input((5, 3), batch_size=8)
    x = layers.Dense(8, activation="relu", name="a")(inputs)
    lstm = layers.LSTM(4, stateful=True, name="lstm")
    model = randomise(keras.Model(inputs, layers.Dense(2)(lstm(x))))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratios={"a": 0.5})
    small, x = kn.rebuild(model, plan), rng.normal(size=(64, 5, 3)).astype("float32")
    small(x[:8])
    states = [np.asarray(state) for state in small.get_layer("lstm").states]
    kn.recalibrate(small, x, model, plan, teach_steps=3)
    for state, before in zip(small.get_layer("lstm").states, states, strict=True):
        np.testing.assert_array_equal(state, before)
        assert np.abs(before).max() > 0


# Again and again ------------------------------------------------------------------------


def test_a_repair_can_be_repeated():
    model = classifier()
    x = patterns(100, 1)[0]
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = repaired(model, x, 10, plan)
    for _ in range(2):  # it is not taken for trained
        kn.recalibrate(small, x, model, plan, teach_steps=10)
    assert distance(model, small, x) < distance(model, repaired(model, x, 0, plan), x)


def test_what_was_trained_stays(rng):
    model = classifier()
    x = example_inputs(model, 64)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = repaired(model, x, 3, plan)
    small.compile("sgd", "mse", jit_compile=False)
    small.fit(x, rng.uniform(size=(64, 5)), verbose=0)
    trained = values(small)
    with pytest.raises(ValueError, match=r"or `plan` is not the one.* Or it was trained since"):
        kn.recalibrate(small, x, model, plan, teach_steps=3)
    assert all(same(small, trained))


# What goes wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "outputs"), [(1e5, 1.0), (1.0, 1e-8)])
def test_weights_that_were_better_are_kept(inputs, outputs, rng):
    """On other scales than 1, steps are too large: a regressor was destroyed, in silence."""
    model = keras.Sequential(
        [keras.Input((8,)), *(layers.Dense(16, activation="tanh") for _ in range(2))]
    )
    model.add(layers.Dense(2))
    randomise(model)
    first, last = model.layers[0], model.layers[-1]
    first.kernel.assign(first.kernel / inputs)
    last.set_weights([outputs * weight for weight in last.get_weights()])
    x = (inputs * rng.normal(size=(256, 8))).astype("float32")
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.25)
    refitted = repaired(model, x, 0, plan)
    with pytest.warns(UserWarning, match="did not bring 'sequential.*' closer to the original"):
        taught = repaired(model, x, 30, plan)
    assert all(same(taught, values(refitted)))


@pytest.mark.parametrize(
    "strategy",
    [tf.distribute.OneDeviceStrategy, lambda device: tf.distribute.MirroredStrategy([device])],
)
def test_teaching_under_a_strategy(strategy):
    """It makes the same model; there was a raw error of TensorFlow."""
    x = patterns(100, 1)[0]
    plain_model = classifier()
    with strategy("CPU:0").scope():
        model = untrained("softmax")
        model.set_weights(plain_model.get_weights())
    plan = kn.plan_pruning(plain_model, kn.Magnitude(), ratio=0.5)
    expected, small = (repaired(network, x, 10, plan) for network in (plain_model, model))
    for value, wanted in zip(values(small), values(expected), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-21, 1e21])
def test_outputs_whose_squares_overflow(scale, rng):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "tanh"), layers.Dense(2)])
    last = model.layers[-1]
    last.kernel.assign(scale * last.kernel)
    x = rng.normal(size=(256, 8)).astype("float32")
    answers = [[model(x)], [1.5 * model(x)]]
    measure = Distance(kn.trace(model))
    measure.fit([np.asarray(answers[0][0])])
    spread = np.var(np.asarray(answers[0][0], np.float64), 0).mean()
    expected = (np.asarray(answers[0][0], np.float64) ** 2).mean() / 8 / spread
    assert float(tf.reduce_mean(measure(*answers))) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("steps", [-1, 1.5, "200", True, None])
def test_bad_numbers_of_steps(steps):
    model = randomise(plain())
    small, no_data = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0), iter(())
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    with pytest.raises(ValueError, match="`teach_steps` to be a whole number"):
        kn.recalibrate(small, no_data, model, plan, teach_steps=steps)
    with pytest.raises(ValueError, match="`teach_steps` to be a whole number"):
        kn.prune(model, ratio=0.5, calibration=no_data, teach_steps=steps)


def test_what_it_takes():
    model = randomise(plain())
    with pytest.raises(ValueError, match="`original` and `plan` for teach_steps=5"):
        kn.recalibrate(model, iter(()), teach_steps=5)
    with pytest.raises(ValueError, match="`calibration` data for teach_steps=5"):
        kn.prune(model, kn.Magnitude(), ratio=0.5, teach_steps=5)


def test_nothing_to_teach():
    model = classifier()
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    small.trainable = False
    before = values(small)
    with pytest.raises(ValueError, match="trainable weights"):
        kn.recalibrate(small, example_inputs(model, 64), model, plan, teach_steps=5)
    assert all(same(small, before))


def test_few_samples():
    model = classifier()
    with pytest.warns(UserWarning, match="Teaching on 10 samples"):
        small = repaired(model, example_inputs(model, 10), teach_steps=2)
    assert all(np.isfinite(value).all() for value in values(small))


def test_what_is_not_finite_changes_nothing():
    model = classifier(None)
    x = example_inputs(model, 64)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = repaired(model, x, 0, plan)
    small.get_layer("head").bias.assign([np.nan] * 5)
    before = values(small)
    with pytest.raises(ValueError, match=r"step 0 of teaching.*NaN.*Nothing was changed"):
        kn.recalibrate(small, x, model, plan, compensate=None, teach_steps=5)
    for value, old in zip(values(small), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("policy", first_is_fast("mixed_float16", "float64", "mixed_bfloat16"))
def test_precisions(policy):
    with dtype_policy(policy):
        model = classifier()
    x = patterns(200, 1)[0]
    before, after = (repaired(model, x, steps) for steps in (0, 60))
    assert distance(model, after, x) < distance(model, before, x)


def test_inputs_are_augmented():
    """The original answers for what the smaller model is given."""
    model, seen = classifier("softmax"), []
    x = patterns(70, 1)[0]

    def augment(batch):
        seen.append(np.asarray(batch))
        return batch + 0.01

    repaired(model, x, teach_steps=20, augment=augment)
    assert len(seen) == 21  # before all work it is tried
    flip = keras.layers.RandomFlip("horizontal", seed=0)
    small = repaired(model, x, teach_steps=20, augment=flip)
    assert all(np.isfinite(value).all() for value in values(small))
    with pytest.raises(ValueError, match="`augment` to keep the shapes"):
        repaired(model, x, teach_steps=1, augment=lambda batch: batch[:, 1:])


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("flip", "`augment` to be a function"),
        ([keras.layers.RandomFlip()], "`augment` to be a function"),
        (keras.layers.RandomFlip, "`augment` to be a function"),
        (lambda batch: None, r"`augment` to keep the shapes .*\['NoneType'\]"),
        (lambda batch: "x", r"`augment` to keep the shapes .*\['str'\]"),
        (lambda batch: (batch, batch), "`augment` to keep the shapes"),
        (lambda batch: batch * np.nan, "`augment` to make finite inputs"),
    ],
)
def test_what_is_no_augmentation_is_named_before_any_work(augment, message):
    """Not after a plan and a refit: here these would fail."""
    model = classifier()
    x = example_inputs(model, 70)

    def scores(channel_map):
        raise AssertionError("work was begun")

    how = {"calibration": x, "teach_steps": 2, "verbose": 0, "ratio": 0.5}
    with pytest.raises((TypeError, ValueError), match=message):
        kn.prune(model, scores, augment=augment, **how)
    with pytest.raises(ValueError, match="`augment` with `teach_steps`"):
        kn.prune(model, scores, augment=lambda batch: batch, **how | {"teach_steps": 0})
