"""CentripetalSGD against the paper's formula, its law, and keras.optimizers.SGD."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from marked import first_is_fast, slow
from nets import NETS, example_inputs, plain, randomise, residual

import keras_nisp as kn
from keras_nisp.centripetal.cluster_mean import ClusterMean
from keras_nisp.centripetal.merging import level
from keras_nisp.plans.forecast import deviation_curve, largest_stable_pull


def every_kind():
    """Kernels of all kinds, biases, scales and offsets, in one network."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(6, 3, padding="same", name="transposed")(x)
    x = layers.Conv2D(12, 3, groups=3, name="grouped")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(10, activation="tanh", name="dense")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def small_residual():
    """Layers that an addition couples, with BatchNormalization, in little time a step."""
    inputs = keras.Input((6,))
    x = layers.Dense(8, name="stem")(inputs)
    y = layers.ReLU()(layers.BatchNormalization()(layers.Dense(6, name="inner")(x)))
    x = layers.Add()([x, layers.Dense(8, name="outer")(y)])
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.ReLU()(x)))


NETS_TO_TRAIN = first_is_fast(small_residual, residual)


def fit(model, optimizer, steps, seed=0, callbacks=(), **compile_arguments):
    """Trains on random data, one batch per step."""
    rng = np.random.default_rng(seed)
    x = example_inputs(model, 8, seed)
    y = rng.normal(size=(8, *model.output_shape[1:])).astype("float32")
    arguments = {"loss": "mse", "jit_compile": False, **compile_arguments}
    model.compile(optimizer, **arguments)
    model.fit(
        tf.data.Dataset.from_tensors((x, y)).repeat(steps),
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return model


def gradients(model, seed=0):
    rng = np.random.default_rng(seed)
    x = example_inputs(model, 8, seed)
    y = rng.normal(size=(8, *model.output_shape[1:])).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    found = tape.gradient(loss, [v.value for v in model.trainable_variables])
    return [np.asarray(g, np.float64) for g in found]


def matrices(labels, decay, strength):
    """Gamma and Lambda of the paper, entry by entry."""
    count = len(labels)
    gamma, lambda_ = np.zeros((count, count)), np.zeros((count, count))
    for m in range(count):
        size = sum(label == labels[m] for label in labels)
        for n in range(count):
            if labels[m] == labels[n]:
                gamma[m, n] = 1 / size
                lambda_[m, n] = decay + (1 - 1 / size) * strength if m == n else -strength / size
    return gamma, lambda_


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_a_step_is_the_matrix_form(preset, momentum, nesterov):
    model = randomise(every_kind())
    plan = kn.plan_merging(model, ratio=0.5)
    rate, decay, strength = 0.05, 0.01, 0.3
    before = [np.asarray(v, np.float64) for v in model.trainable_variables]
    found = gradients(model)
    optimizer = kn.CentripetalSGD(
        rate, momentum, nesterov, decay, plan=plan, strength=strength, preset=preset
    )
    optimizer.build(model.trainable_variables)
    optimizer.apply([tf.constant(g, tf.float32) for g in found])
    kinds = set()
    for variable, w, g, row in zip(
        model.trainable_variables, before, found, plan.variables, strict=True
    ):
        if not row.clusters:
            step = g * rate * (1 + momentum if nesterov else 1)
            expected = w * (1 - rate * decay) - step
        else:
            ((axis, labels),) = row.clusters.items()
            vector = preset == "reference" and not row.is_kernel
            gamma, lambda_ = matrices(
                labels, 0.0 if vector else decay, strength * (0.1 if vector else 1)
            )
            rows = [np.moveaxis(a, axis, 0).reshape(len(labels), -1) for a in (w, g)]
            step = gamma @ rows[1] + lambda_ @ rows[0]
            step *= rate * (1 + momentum if nesterov else 1)
            shape = np.moveaxis(w, axis, 0).shape
            expected = np.moveaxis((rows[0] - step).reshape(shape), 0, axis)
            kinds.add(variable.path)
        np.testing.assert_allclose(variable, expected, atol=1e-6)
    assert len(kinds) == len(plan.variables) - 2 == 15  # all but the classifier


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("strength", [0.02, "auto"])
def test_the_deviation_follows_the_law(momentum, nesterov, strength):
    """Over 500 steps with a schedule, to 1e-3, in float64 (float32 rounds to 1e-7)."""
    keras.config.set_dtype_policy("float64")
    try:
        model = keras.Sequential(
            [keras.Input((5,)), layers.Dense(8, activation="relu"), layers.Dense(3)]
        )
        plan = kn.plan_merging(model, ratio=0.5)
        schedule = keras.optimizers.schedules.CosineDecay(0.05, 600)
        optimizer = kn.CentripetalSGD(
            schedule, momentum, nesterov, 1e-3, plan=plan, strength=strength, steps=500
        )
        first = kn.deviation(model, plan)
        predicted = optimizer.forecast(500)
        fit(model, optimizer, 500)
        last = kn.deviation(model, plan)
    finally:
        keras.config.set_dtype_policy("float32")
    for before, after in zip(first.variables, last.variables, strict=True):
        curve = predicted.kernels if before.is_kernel else predicted.vectors
        if before.squares:
            assert np.sqrt(after.squares / before.squares) == pytest.approx(
                abs(curve[-1]), rel=1e-3
            )
    if strength == "auto":
        assert predicted.reached == pytest.approx(400, rel=0.06)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_clusters_collapse_after_a_share_of_the_steps(share):
    plan = kn.plan_merging(small_residual(), ratio=0.5)
    optimizer = kn.CentripetalSGD(0.05, 0.9, True, plan=plan, steps=2000, collapse=share)
    assert optimizer.forecast().reached == pytest.approx(share * 2000, rel=0.06)
    again = kn.CentripetalSGD.from_config(optimizer.get_config())
    assert again.forecast().reached == optimizer.forecast().reached


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.9, True), slow(0.0, True), slow(0.9, False)]
)
def test_without_clusters_it_is_sgd_bit_for_bit(momentum, nesterov):
    model = randomise(every_kind())
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    plan = kn.plan_merging(model, ratio=0.5)
    alone = [tuple((i,) for i in range(row.channels)) for row in plan.creators]
    plan = as_if_unmerged(plan, alone)
    settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.01}
    fit(model, kn.CentripetalSGD(0.05, **settings, plan=plan, strength=0.1), 5)
    fit(twin, keras.optimizers.SGD(0.05, **settings), 5)
    for ours, theirs in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def as_if_unmerged(plan, clusters):
    """The plan with clusters of size one."""
    import dataclasses

    creators = tuple(
        dataclasses.replace(row, removed=(), clusters=c)
        for row, c in zip(plan.creators, clusters, strict=True)
    )
    variables = tuple(dataclasses.replace(row, clusters={}) for row in plan.variables)
    return dataclasses.replace(plan, creators=creators, variables=variables)


def test_both_forms_of_the_mean_agree(rng):
    for shape, axis in [((7, 300), 1), ((300,), 0), ((2, 3, 300, 4), 2), ((3, 3, 5, 300), 3)]:
        labels = rng.integers(0, 90, 300)
        tensor = tf.constant(rng.normal(size=shape), tf.float32)
        matrix = ClusterMean({axis: labels}, by_matrix=True)(tensor)
        segments = ClusterMean({axis: labels})(tensor)
        np.testing.assert_allclose(matrix, segments, atol=1e-6)
        for position in (0, 17):
            same = np.flatnonzero(labels == labels[position])
            want = np.asarray(tensor).take(same, axis).mean(axis)
            np.testing.assert_allclose(np.asarray(segments).take(position, axis), want, atol=1e-6)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_the_stated_bound_is_the_bound(momentum, nesterov):
    bound = largest_stable_pull(momentum, nesterov)
    below, above = (
        np.abs(deviation_curve(np.full(3000, bound * factor), momentum, nesterov)[-1])
        for factor in (0.99, 1.01)
    )
    assert below < 1e-3
    assert above > 1e3


@pytest.mark.parametrize(
    "settings",
    [
        {"clipnorm": 0.5},
        {"global_clipnorm": 0.5},
        {"clipvalue": 0.01},
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_momentum": 0.9},
        {"loss_scale_factor": 128.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("net", NETS_TO_TRAIN)
def test_settings_of_sgd(settings, net):
    model = randomise(net())
    plan = kn.plan_merging(model, ratio=0.5)
    optimizer = kn.CentripetalSGD(0.02, 0.9, plan=plan, steps=400, **settings)
    steps = 400 * settings.get("gradient_accumulation_steps", 1)
    fit(model, optimizer, steps, steps_per_execution=50)
    assert kn.deviation(model, plan).relative < 1e-5


@pytest.mark.training
@pytest.mark.parametrize("how", ["jit_compile", "run_eagerly", "steps_per_execution"])
@pytest.mark.parametrize("net", NETS_TO_TRAIN)
def test_ways_to_compile(how, net):
    model = randomise(net())
    plan = kn.plan_merging(model, ratio=0.5)
    arguments = {how: 5 if how == "steps_per_execution" else True}
    steps = 60 if how == "run_eagerly" else 200
    optimizer = kn.CentripetalSGD(0.02, 0.5, plan=plan, steps=steps)
    first = kn.deviation(model, plan).relative
    fit(model, optimizer, steps, **arguments)
    assert kn.deviation(model, plan).relative < 2e-5 * first + 1e-6


def test_wide_layers_under_jit():
    """Sums of rows, which layers wider than the matrix form take, compile too."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(600), layers.Dense(2)])
    plan = kn.plan_merging(model, ratio=0.5, clustering="even")
    fit(model, kn.CentripetalSGD(0.01, plan=plan, steps=50), 60, jit_compile=True)
    assert kn.deviation(model, plan).relative < 1e-5


@pytest.mark.training
def test_mixed_precision_with_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = randomise(residual())
    finally:
        keras.config.set_dtype_policy("float32")
    plan = kn.plan_merging(model, ratio=0.5)
    optimizer = kn.CentripetalSGD(0.02, 0.9, plan=plan, steps=300)
    monitor = kn.CentripetalMonitor(plan)
    fit(model, keras.optimizers.LossScaleOptimizer(optimizer), 300, callbacks=[monitor])
    assert kn.deviation(model, plan).relative < 1e-5
    small = kn.rebuild(model, plan, verbose=0, optimizer_state=True)
    assert type(small.optimizer.inner_optimizer) is keras.optimizers.SGD


@pytest.mark.parametrize(
    "make",
    [
        lambda plan: kn.CentripetalSGD(0.01, 0.9, plan=plan, steps=200),
        lambda plan: kn.CentripetalSGD(0.01, plan=plan, steps=200, gradient_accumulation_steps=2),
        lambda plan: kn.Centripetal(keras.optimizers.Adam(1e-3), plan, steps=200),
    ],
    ids=["momentum", "accumulation", "adam"],
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_clusters_collapse_where_no_loss_reaches_them(make):
    """A branch that feeds an output without a loss shares the channels of one that does."""
    inputs = keras.Input((4,))
    main = layers.Dense(8, name="main")(inputs)
    side = layers.Add()([main, layers.Dense(8, name="aside")(main)])
    model = randomise(keras.Model(inputs, [layers.Dense(3)(main), layers.Dense(2)(side)]))
    plan = kn.plan_merging(model, ratio=0.5)
    model.compile(make(plan), ["mse", None], jit_compile=False)
    x = np.random.default_rng(0).normal(size=(64, 4))
    model.fit(x, x[:, :3], 16, 100, verbose=0)
    assert kn.deviation(model, plan).relative < 1e-5
    kn.rebuild(model, plan, verbose=0)  # which refuses what would not be free of loss


@pytest.mark.parametrize("settings", [{}, {"ema_overwrite_frequency": 7}])
@pytest.mark.parametrize("wrapped", [False, True])
def test_averaged_weights_are_collapsed_too(settings, wrapped):
    """Averages over training that began apart: those of a model that was merged from the start."""
    settings = {"use_ema": True, "ema_momentum": 0.99, **settings}
    dense = [layers.Dense(8), layers.BatchNormalization(), layers.ReLU(), layers.Dense(3)]
    model = randomise(keras.Sequential([keras.Input((4,)), *dense]))
    plan = kn.plan_merging(model, ratio=0.5)
    if wrapped:
        inner = keras.optimizers.Adam(0.001, **settings)
        optimizer = kn.Centripetal(inner, plan, strength=300.0)
    else:
        optimizer = kn.CentripetalSGD(0.01, 0.9, plan=plan, strength=3.0, **settings)
    fit(model, optimizer, 200)
    assert kn.deviation(model, plan).relative < 1e-5
    level(model, plan, only_statistics=True)
    kn.rebuild(model, plan, verbose=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(1e-3),
        slow(lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.1)),
        lambda: keras.optimizers.RMSprop(1e-3, momentum=0.5),
        slow(lambda: keras.optimizers.Lion(1e-4)),
        lambda: keras.optimizers.Muon(1e-3),
        lambda: keras.optimizers.SGD(0.01, 0.9, clipnorm=1.0),
        lambda: keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2),
    ],
    ids=["adam", "adamw", "rmsprop", "lion", "muon", "sgd", "accumulation"],
)
@pytest.mark.parametrize("net", NETS_TO_TRAIN)
def test_other_optimizers(make, net):
    if make().name == "muon" and keras.__version__.startswith("3.12."):
        pytest.skip("Muon of Keras 3.12 trains nothing on TensorFlow")
    model = randomise(net())
    plan = kn.plan_merging(model, ratio=0.5)
    first = kn.deviation(model, plan).relative
    fit(model, kn.Centripetal(make(), plan, steps=300), 300, steps_per_execution=50)
    assert kn.deviation(model, plan).relative < 3e-5 * first + 1e-6
    small = kn.rebuild(model, plan, verbose=0, force=True, optimizer_state=True)
    assert type(small.optimizer) is type(make())
    assert int(small.optimizer._iterations) == 300


@pytest.mark.parametrize("net", NETS_TO_TRAIN)
def test_adam_needs_the_wrapper(net):
    """What the wrapper is for: Adam on the mean gradient follows the law, step by step."""
    model = randomise(net())
    plan = kn.plan_merging(model, ratio=0.5)
    first = kn.deviation(model, plan)
    fit(model, kn.Centripetal(keras.optimizers.Adam(0.01), plan, strength=2.0), 100)
    last = kn.deviation(model, plan)
    for before, after in zip(first.variables, last.variables, strict=True):
        if before.squares:
            assert np.sqrt(after.squares / before.squares) == pytest.approx(0.98**100, rel=1e-3)


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_merging_collapsed_clusters_changes_nothing(net):
    """Members are set to their mean by hand, and the plain models compared."""
    model = randomise(net())
    if net.__name__ == "layer_norm":
        plan = kn.plan_merging(model, ratios={"b": 0.5})
    else:
        plan = kn.plan_merging(model, ratio=0.5)
    level(model, plan)
    small = kn.rebuild(model, plan, verbose=0)
    x = example_inputs(model)
    for a, b in zip(*map(keras.tree.flatten, (model(x), small(x))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())
    assert small.count_params() == plan.after.parameters


# Wrapped optimizers that scale, exclude and accumulate ------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1, loss_scale_factor=1000.0),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
    ],
    ids=["factor", "optimizer"],
)
def test_a_wrapped_optimizer_scales_its_loss(make):
    moved = []
    for scaled in (False, True):
        keras.utils.set_random_seed(0)  # of dropout
        model = randomise(plain())
        plan = kn.plan_merging(model, ratio=0.5)
        before = model.weights[-1].numpy()  # of the last layer, which has no clusters
        inner = make() if scaled else keras.optimizers.SGD(0.1)
        fit(model, kn.Centripetal(inner, plan, steps=100), 1)
        moved.append(model.weights[-1].numpy() - before)
    np.testing.assert_allclose(moved[1], moved[0], rtol=1e-4)
    assert np.abs(moved[0]).max() > 0


def test_a_wrapped_optimizer_decays_what_it_is_told():
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5)
    optimizer = kn.Centripetal(keras.optimizers.AdamW(0.1, weight_decay=0.5), plan, steps=100)
    optimizer.exclude_from_weight_decay(var_list=[model.weights[-1]])
    optimizer.build(model.trainable_variables)
    before = [w.numpy() for w in model.trainable_variables]
    optimizer.apply([tf.zeros_like(w) for w in model.trainable_variables])
    np.testing.assert_array_equal(model.trainable_variables[-1], before[-1])
    assert np.abs(model.trainable_variables[-2].numpy() - before[-2]).max() > 0


def test_a_schedule_counts_batches_of_which_several_make_a_pull():
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 40, 0.5)
    settings = {"strength": 4.0, "gradient_accumulation_steps": 4}
    monitor = kn.CentripetalMonitor(plan)
    optimizer = kn.CentripetalSGD(schedule, plan=plan, **settings)
    with pytest.warns(UserWarning, match="do NOT collapse"):  # before it trains in vain
        fit(model, optimizer, 160, callbacks=[monitor])
    last = monitor.history[-1]
    assert last["deviation"].relative == pytest.approx(last["predicted"], rel=0.01)


def test_frozen_after_the_collapse():
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5)
    level(model, plan)
    small = kn.rebuild(model, plan, verbose=0)
    model.trainable = False
    frozen = kn.rebuild(model, plan, verbose=0)
    for one, other in zip(small.weights, frozen.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_frozen_in_the_place_of_others():
    """`a` is as large as `b`: without a look at names the clusters of one would go to the other."""
    hidden = [layers.Dense(8, name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((8,)), *hidden, layers.Dense(3)])
    model.get_layer("a").trainable = False
    plan = kn.plan_merging(model, ratio=0.5)
    model.get_layer("a").trainable, model.get_layer("b").trainable = True, False
    with pytest.raises(kn.PlanMismatchError, match="b/kernel' is trained"):
        fit(model, kn.CentripetalSGD(0.1, plan=plan), 4, callbacks=[kn.CentripetalMonitor(plan)])


@pytest.mark.parametrize("strength", ["auto", 5.0])
def test_a_wrapped_optimizer_with_loss_scaling_is_foreseen(strength):
    model = randomise(plain())
    plan = kn.plan_merging(model, ratio=0.5)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.5))
    optimizer, monitor = kn.Centripetal(scaled, plan, strength), kn.CentripetalMonitor(plan)
    fit(model, optimizer, 100, callbacks=[monitor])
    assert monitor.forecast.collapses
    assert monitor.history[-1]["deviation"].relative < 1e-5
    small = kn.rebuild(model, plan, optimizer_state=True, verbose=0)
    assert type(small.optimizer) is keras.optimizers.LossScaleOptimizer
    assert int(small.optimizer.inner_optimizer.iterations) == 100
    slots = [np.abs(v).max() for v in small.optimizer.variables if "momentum" in v.path]
    assert slots
    assert all(slots)


class OwnFtrl(keras.optimizers.Ftrl):
    pass


@pytest.mark.parametrize(
    "make",
    [
        keras.optimizers.Ftrl,
        OwnFtrl,
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Ftrl()),
    ],
)
def test_optimizers_that_undo_the_pull_are_refused(make):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(3)])
    plan = kn.plan_merging(model, ratio=0.5)
    with pytest.raises(ValueError, match=r"changes weights from where they are.*Ftrl"):
        kn.Centripetal(make(), plan, steps=100)
