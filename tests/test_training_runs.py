"""What a training run meets while NISPPruner is at work."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from marked import first_is_fast, slow

import keras_nisp as kn

pytestmark = pytest.mark.training
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(count=48):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 6)).astype("float32"), rng.integers(0, 3, count)


def net(cls=keras.Model):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16, activation="relu", name="a")(inputs)
    x = keras.layers.Dense(12, activation="relu", name="b")(keras.layers.LayerNormalization()(x))
    return cls(inputs, keras.layers.Dense(3, name="head")(x))


def compiled(model=None, optimizer=None, **kwargs):
    model = model or net()
    optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, LOSS, **{"run_eagerly": True, "jit_compile": False, **kwargs})
    return model


def by_magnitude(**kwargs):
    settings = {"ratio": 0.5, "importance": kn.Magnitude(), "verbose": 0}
    return kn.NISPPruner(**{**settings, **kwargs})


def fit(model, *callbacks, **kwargs):
    x, y = data()
    settings = {"batch_size": 8, "epochs": 4, "shuffle": False, "verbose": 0}
    return model.fit(x, y, callbacks=list(callbacks), **{**settings, **kwargs})


def widths(pruner):
    return [row.kept for row in pruner.plan.creators[:2]]


@pytest.mark.parametrize("steps", first_is_fast(3, 4, 8))
def test_accumulated_gradients_end_at_the_target(steps):
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=steps)
    pruner = by_magnitude()
    model = compiled(optimizer=optimizer)
    fit(model, pruner)
    assert widths(pruner) == [8, 6]
    removed = list(pruner.plan.creators[1].removed)
    assert (model.get_layer("head").kernel.numpy()[removed] == 0).all()


@pytest.mark.parametrize("kwargs", [{"initial_epoch": 8, "epochs": 10}, {"epochs": 1}])
def test_default_schedule_lies_over_what_is_left(kwargs):
    pruner = by_magnitude()
    fit(compiled(), pruner, **kwargs)
    assert widths(pruner) == [8, 6]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_per_execution_that_do_not_divide_the_epoch(jit_compile):
    """6 batches are two executions of 4: the second has two."""
    model = compiled(steps_per_execution=4, run_eagerly=False, jit_compile=jit_compile)
    pruner = by_magnitude()
    losses = fit(model, pruner, validation_data=data()).history["val_loss"]
    assert pruner._state.step == 24
    assert widths(pruner) == [8, 6]
    x, y = data()
    assert pruner.pruned_model.evaluate(x, y, 8, verbose=0) == pytest.approx(losses[-1], rel=1e-4)


def test_loss_scaling_and_learning_rates():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(run_eagerly=False, auto_scale_loss=True)
    finally:
        keras.config.set_dtype_policy(policy)
    pruner = by_magnitude()
    plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=10)
    losses = fit(model, plateau, pruner, validation_data=data()).history["val_loss"]
    assert widths(pruner) == [8, 6]
    x, y = data()
    assert pruner.pruned_model.evaluate(x, y, 8, verbose=0) == pytest.approx(losses[-1], rel=2e-2)


# Weights that others put in at the end ------------------------------------------------


class Scores(keras.callbacks.Callback):
    """Logs a metric that is best in a given epoch."""

    def __init__(self, best):
        super().__init__()
        self.best = best

    def on_epoch_end(self, epoch, logs=None):
        logs["metric"] = float(epoch != self.best)


@pytest.mark.parametrize(
    ("best", "pruner_first"), [(0, True), (2, False), slow(0, False), slow(2, True)]
)
def test_best_weights_are_restored(best, pruner_first):
    """The default schedule ends in epoch 1: epoch 2 is masked as the last, epoch 0 is not."""
    model, pruner = compiled(), by_magnitude()
    stop = keras.callbacks.EarlyStopping(
        "metric", mode="min", patience=9, restore_best_weights=True
    )
    callbacks = [Scores(best), *([pruner, stop] if pruner_first else [stop, pruner])]
    if best == 0 and not pruner_first:
        with pytest.warns(UserWarning, match=r"start_from_epoch=1\)"):
            fit(model, *callbacks)
    else:
        fit(model, *callbacks)
    if best == 0 and pruner_first:
        with pytest.warns(UserWarning, match=r"start_from_epoch=1\)"):
            small = pruner.pruned_model
    else:
        small = pruner.pruned_model
    for row in pruner.plan.creators[:2]:
        bias = model.get_layer(row.layer).bias.numpy()
        kept = np.delete(bias, list(row.removed))
        np.testing.assert_array_equal(small.get_layer(row.layer).bias.numpy(), kept)


@pytest.mark.parametrize("callbacks", [[], [keras.callbacks.SwapEMAWeights()]])
def test_averaged_weights(callbacks):
    optimizer = keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
    model, pruner = compiled(optimizer=optimizer), by_magnitude()
    fit(model, pruner, *callbacks, validation_data=data())
    removed = list(pruner.plan.creators[1].removed)
    assert (model.get_layer("head").kernel.numpy()[removed] == 0).all()
    np.testing.assert_array_equal(
        np.delete(model.get_layer("head").kernel.numpy(), removed, 0),
        pruner.pruned_model.get_layer("head").kernel.numpy(),
    )


# Loops of the user's own ----------------------------------------------------------------


@pytest.mark.parametrize("compile_model", [False, True])
def test_loop_by_hand(compile_model):
    """An optimizer that the model does not know, in a compiled step."""
    model, optimizer = net(), keras.optimizers.Adam(0.01)
    if compile_model:
        compiled(model)
    pruner = by_magnitude(schedule=kn.PolynomialSchedule(0.5, 0, 9, frequency=3))
    x, y = data()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    pruner.set_model(model)
    pruner.on_train_begin()
    for epoch in range(2):
        pruner.on_epoch_begin(epoch)
        for i in range(6):
            step(x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8])
            pruner.on_train_batch_end(i)
        pruner.on_epoch_end(epoch)
    masked = model(x).numpy()
    pruner.on_train_end()
    assert widths(pruner) == [8, 6]
    np.testing.assert_allclose(pruner.pruned_model(x), masked, atol=1e-5)


def test_loop_by_hand_needs_a_schedule():
    pruner = by_magnitude()
    pruner.set_model(net())
    with pytest.raises(ValueError, match="Pass `schedule="):
        pruner.on_train_begin()


def test_loop_by_hand_says_what_it_left_out():
    pruner = by_magnitude(schedule=kn.PolynomialSchedule(0.5, 0, 9, frequency=3))
    pruner.set_model(net())
    for call in (lambda: pruner.on_train_batch_end(0), pruner.on_train_end):
        with pytest.raises(ValueError, match=r"call `set_model\(model\)` and `on_train_begin"):
            call()


class TwoOptimizers(keras.Model):
    """A step of its own: one optimizer for kernels, a plain assignment for all else."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        for variable, gradient in zip(
            self.trainable_variables, tape.gradient(loss, self.trainable_variables), strict=True
        ):
            variable.assign_sub(0.05 * gradient)
        return {"loss": loss}


def test_steps_that_know_no_constraints():
    """The compiled optimizer is idle; weights are assigned."""
    model, pruner = compiled(net(TwoOptimizers), run_eagerly=False), by_magnitude()
    losses = fit(model, pruner, validation_data=data()).history["val_loss"]
    assert int(model.optimizer.iterations) == 0
    assert widths(pruner) == [8, 6]
    x, y = data()
    assert pruner.pruned_model.evaluate(x, y, 8, verbose=0) == pytest.approx(losses[-1], rel=1e-4)


# What is asked for too early ------------------------------------------------------------


def test_results_before_the_end(tmp_path):
    pruner = by_magnitude()
    for name in ("pruned_model", "plan"):
        with pytest.raises(ValueError, match="after training"):
            getattr(pruner, name)
    impossible = by_magnitude(min_channels=100, flops_reduction=0.5, ratio=None)
    with pytest.raises(kn.BudgetError):
        fit(compiled(), impossible)
    with pytest.raises(ValueError, match="after training"):
        _ = impossible.pruned_model
    exports = {"tflite": kn.export_tflite, "onnx": kn.export_onnx, "saved": kn.export_serving}
    for suffix, export in exports.items():
        with pytest.raises(TypeError, match=r"keras\.Model\. Received: None"):
            export(None, tmp_path / f"model.{suffix}")


def test_one_pruner_for_a_model():
    with pytest.raises(ValueError, match="Another one"):
        fit(compiled(), by_magnitude(), by_magnitude())


def test_diverged_training_is_said():
    model = compiled(optimizer=keras.optimizers.SGD(1e30))
    with pytest.raises(ValueError, match=r"diverged by step \d+: 'a' has weights"):
        fit(model, by_magnitude())


def test_warnings_come_once_in_a_fit():
    """Channels are scored at ten steps and warn at each."""

    def scores(channel_map):
        warnings.warn("scored on little", UserWarning, stacklevel=2)
        return kn.Magnitude()(channel_map)

    with pytest.warns(UserWarning, match="scored on little") as caught:
        fit(compiled(), by_magnitude(importance=scores))
    assert len(caught) == 1


@pytest.mark.parametrize("kind", ["predicted", "table"])
def test_damages_choose_widths_while_a_model_trains(kind):
    """A branch whose readers are almost zero goes; by default all groups lose the same share."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    branches = [keras.layers.Dense(16, "relu", name=name)(inputs) for name in ("used", "unused")]
    outputs = keras.layers.Dense(3, name="head")(keras.layers.Concatenate()(branches))
    model = keras.Model(inputs, outputs)
    kernel, bias = (value.copy() for value in model.get_layer("head").get_weights())
    kernel[16:] *= 1e-4
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    kept = {}
    table = None
    for allocation in ("auto", kind):
        model.get_layer("head").set_weights([kernel, bias])
        if allocation == "table":
            table = kn.sensitivity(model, kn.Magnitude(), calibration=x)
        model.compile(keras.optimizers.SGD(1e-6), "mse")
        limits = {"flops_reduction": 0.35, "allocation": table or allocation}
        pruner = kn.NISPPruner(x, verbose=0, **limits)
        model.fit(x, np.zeros((64, 3)), epochs=4, verbose=0, callbacks=[pruner])
        assert pruner.plan.flops_reduction >= 0.35
        kept[allocation] = {creator.layer: creator.kept for creator in pruner.plan.creators}
        pruner.release()
    assert kept["auto"]["used"] < 16
    assert kept[kind]["used"] == 16
