"""Pruning during training: masked and pruned model agree, whatever compiles the step."""

import contextlib
import io
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from marked import training
from nets import example_inputs, plain, randomise, residual

import keras_nisp as kn
from keras_nisp.pruning.schedules import ScheduleReader


def labelled(model, count=96, seed=1):
    rng = np.random.default_rng(seed)
    return example_inputs(model, count), rng.integers(0, model.output_shape[-1], count)


def compiled(model, **kwargs):
    kwargs = {"optimizer": keras.optimizers.SGD(0.01, momentum=0.9), **kwargs}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, **{"jit_compile": False, **kwargs})
    return model


def agree(model, small, x, tolerance=1e-5):
    masked = np.asarray(model(x, training=False))
    np.testing.assert_allclose(
        small(x, training=False), masked, atol=tolerance * np.abs(masked).max()
    )


@pytest.mark.parametrize(
    ("net", "kwargs"),
    [
        (plain, {}),
        (residual, {}),
        training(residual, {"steps_per_execution": 3}),
        training(residual, {"jit_compile": True}),
        training(residual, {"run_eagerly": True}),
        training(residual, {"optimizer": keras.optimizers.Adam}),
        training(
            residual,
            {"optimizer": lambda: keras.optimizers.SGD(0.01, use_ema=True, weight_decay=0.01)},
        ),
        training(
            residual,
            {"optimizer": lambda: keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) or ", ".join(value) or "default",
)
def test_masked_and_pruned_model_agree(net, kwargs):
    if "optimizer" in kwargs:
        kwargs = {**kwargs, "optimizer": kwargs["optimizer"]()}
    model = compiled(randomise(net()), **kwargs)
    x, y = labelled(model)
    pruner = kn.NISPPruner(x, flops_reduction=0.5, verbose=0)
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[pruner])
    assert pruner.plan.flops_reduction >= 0.5
    assert pruner.pruned_model.count_params() < model.count_params()
    agree(model, pruner.pruned_model, x)


def test_mixed_precision_with_loss_scaling():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(randomise(residual()))
    finally:
        keras.config.set_dtype_policy(policy)
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    x, y = labelled(model)
    pruner = kn.NISPPruner(x, ratio=0.5, verbose=0)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruner])
    agree(model, pruner.pruned_model, x, tolerance=2e-2)


@pytest.mark.usefixtures("unbuilt_optimizers")
def test_masked_and_pruned_model_agree_as_users_train():
    test_masked_and_pruned_model_agree(plain, {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that was trained once, for tests that look at what came of it."""
    keras.utils.set_random_seed(0)
    done = SimpleNamespace(model=compiled(randomise(plain())), said=io.StringIO())
    done.x, done.y = labelled(done.model)
    done.before = done.model.get_layer("b").kernel.numpy().copy()
    done.csv = tmp_path_factory.mktemp("logs") / "log.csv"
    done.pruner = kn.NISPPruner(done.x, ratio=0.5)
    callbacks = [done.pruner, keras.callbacks.CSVLogger(done.csv)]
    with contextlib.redirect_stdout(done.said):
        done.logs = done.model.fit(done.x, done.y, 8, 4, verbose=0, callbacks=callbacks).history
    return done


def test_weights_train_and_masked_ones_stay_zero(trained):
    after = trained.model.get_layer("b").kernel.numpy()
    removed = list(trained.pruner.plan.creators[0].removed)
    kept = [i for i in range(8) if i not in removed]
    assert (after[:, :, removed] == 0).all()
    assert (after[:, :, kept] != trained.before[:, :, kept]).all()


@pytest.mark.training
def test_compiled_before_the_callback_came():
    """A train function of an earlier fit ignores constraints that are set later."""
    model = compiled(randomise(plain()))
    x, y = labelled(model)
    model.fit(x, y, batch_size=8, verbose=0)
    pruner = kn.NISPPruner(x, ratio=0.5, verbose=0)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruner])
    agree(model, pruner.pruned_model, x)


def test_model_is_left_usable():
    """No constraint and no mask is left: what was masked trains again."""
    norm = keras.constraints.MaxNorm(0.7)
    model = plain()
    model.get_layer("b").kernel.constraint = norm
    compiled(randomise(model))
    x, y = labelled(model)
    pruner = kn.NISPPruner(x, ratio=0.5, verbose=0)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruner])
    kernel = model.get_layer("b").kernel
    assert kernel.constraint is norm
    assert np.linalg.norm(kernel.numpy(), axis=0).max() <= 0.7 + 1e-5  # held during pruning too
    assert all(w.constraint is None for w in model.weights if w is not kernel)
    removed = list(pruner.plan.creators[2].removed)
    head = model.get_layer("head").kernel
    assert (head.numpy()[removed] == 0).all()
    model.fit(x, y, batch_size=8, verbose=0)
    assert (head.numpy()[removed] != 0).any()


@pytest.mark.training
def test_interrupted_training():
    model = compiled(randomise(plain()))
    x, y = labelled(model)
    schedule = kn.PolynomialSchedule(0.5, 0, 8, frequency=2)
    pruner = kn.NISPPruner(x, ratio=0.5, schedule=schedule, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, 8, 2, verbose=0, callbacks=[pruner, Stop(10)])
    small = pruner.finish()
    assert all(w.constraint is None for w in model.weights)
    agree(model, small, x)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, 8, 2, verbose=0, callbacks=[kn.NISPPruner(x, ratio=0.5), Stop(1)])
    model.fit(x, y, 8, 2, verbose=0, callbacks=[kn.NISPPruner(x, ratio=0.5, verbose=0)])
    assert all(w.constraint is None for w in model.weights)


class Stop(keras.callbacks.Callback):
    """Ctrl-C after a number of batches."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.batches:
            raise KeyboardInterrupt


def test_finish_needs_a_start():
    with pytest.raises(ValueError, match="Call `fit` first"):
        kn.NISPPruner([1], ratio=0.5).finish()


def test_pruned_model_trains_on(trained):
    small = trained.pruner.pruned_model
    assert int(small.optimizer.iterations) == int(trained.model.optimizer.iterations)
    history = small.fit(trained.x, trained.y, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    again = kn.rebuild(trained.model, trained.pruner.plan)
    assert again.count_params() == small.count_params()


def test_logs_show_progress(trained):
    assert trained.logs["channels_removed"][-1] == pytest.approx(0.5, abs=0.05)
    assert trained.logs["flops_left"] == sorted(trained.logs["flops_left"], reverse=True)
    assert "flops_left" in trained.csv.read_text()


def test_verbose(trained):
    assert "pruned to ratio=0.500" in trained.said.getvalue()


def test_other_importance():
    model = compiled(randomise(plain()))
    x, y = labelled(model)
    pruner = kn.NISPPruner(importance=kn.Magnitude(), params_reduction=0.4, verbose=0)
    model.fit(x, y, 8, 2, verbose=0, callbacks=[pruner])
    assert pruner.plan.importance == "Magnitude"
    assert pruner.plan.params_reduction >= 0.4
    agree(model, pruner.pruned_model, x)


def test_default_schedule_needs_known_steps():
    import tensorflow as tf

    model = compiled(randomise(plain()))
    x, y = labelled(model)
    unknown = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).filter(lambda *_: True)
    with pytest.raises(ValueError, match="schedule"):
        model.fit(unknown, shuffle=False, verbose=0, callbacks=[kn.NISPPruner(x, ratio=0.5)])
    schedule = kn.PolynomialSchedule(0.5, 0, 10, frequency=5)
    pruner = kn.NISPPruner(x, ratio=0.5, schedule=schedule, verbose=0)
    model.fit(unknown.repeat(), shuffle=False, steps_per_epoch=12, verbose=0, callbacks=[pruner])
    assert pruner.plan.creators[0].kept == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratio": 0.5}, ValueError, r"as in `NISP\(calibration\)`, or to"),
        ({"calibration": [1], "importance": kn.Random(), "ratio": 0.5}, ValueError, "both"),
        ({"calibration": [1]}, ValueError, "exactly one"),
        ({"calibration": [1], "ratio": 1.0}, ValueError, r"\[0, 1\)"),
        ({"calibration": [1], "ratio": 0.5, "schedule": 3}, TypeError, "schedule"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        kn.NISPPruner(**arguments)


def test_calibration_by_a_generator():
    """It can be read only once, but channels are scored at every pruning step."""
    model = compiled(randomise(plain()))
    x, y = labelled(model)
    pruner = kn.NISPPruner((x[i : i + 8] for i in range(0, 96, 8)), ratio=0.5, verbose=0)
    model.fit(x, y, 8, 2, verbose=0, callbacks=[pruner])
    assert pruner.plan.creators[0].kept == 4


def test_mistakes_are_said_before_training():
    model = compiled(randomise(plain()))
    x, y = labelled(model)
    before = [w.numpy().copy() for w in model.weights]
    for pruner, error in (
        (kn.NISPPruner(x, flops_reduction=0.999), kn.BudgetError),
        (kn.NISPPruner(x * np.nan, ratio=0.5), ValueError),
        (kn.NISPPruner(x[:, :5], ratio=0.5), ValueError),
        (kn.NISPPruner(x, ratio=0.5, exclude="nothing"), ValueError),
    ):
        with pytest.raises(error):
            model.fit(x, y, verbose=0, callbacks=[pruner])
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(w.constraint is None for w in model.weights)


# Schedules ------------------------------------------------------------------------


def amounts(schedule, limit=0.99, steps=200, stride=1):
    """(step, amount) of each pruning."""
    reader, reached, found = ScheduleReader(schedule, limit), 0.0, []
    for step in range(0, steps, stride):
        amount = reader.due(step, reached)
        if amount is not None:
            reached = amount
            found.append((step, amount))
    return found


def test_polynomial_schedule_by_hand():
    schedule = kn.PolynomialSchedule(0.8, 10, 110, initial=0.2, power=3, frequency=50)
    assert schedule(0) == (False, pytest.approx(0.2))
    assert schedule(10) == (True, pytest.approx(0.2))
    assert schedule(60)[0]
    assert schedule(60)[1] == pytest.approx(0.8 - 0.6 * 0.5**3)
    assert schedule(110) == (True, pytest.approx(0.8))
    assert schedule(111) == (False, pytest.approx(0.8))
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert restored.get_config() == schedule.get_config()


@pytest.mark.bridges
def test_tfmot_schedules():
    """They are called, not imported by us; their last pruning comes before the last value."""
    tfmot = kn.import_tfmot()
    pruning = tfmot.sparsity.keras
    found = amounts(pruning.PolynomialDecay(0.0, 0.5, 0, 105, frequency=10))
    assert found[-1][1] == pytest.approx(0.5)
    assert found[-1][0] <= 107
    # ConstantSparsity gives its target before its begin too; only the flag says when.
    assert amounts(pruning.ConstantSparsity(0.4, 50, frequency=10)) == [(50, pytest.approx(0.4))]


def test_plain_callables_and_skipped_steps():
    assert amounts(lambda step: 0.3 if step >= 20 else 0.0) == [(20, 0.3)]
    every_third = amounts(kn.PolynomialSchedule(0.5, 0, 100, frequency=10), stride=3)
    assert every_third[-1] == (102, 0.5)
    assert amounts(kn.PolynomialSchedule(0.5, 0, 100), limit=0.3)[-1][1] == 0.3


def test_schedule_that_stops_short_warns():
    model = compiled(randomise(plain()))
    x, y = labelled(model)
    pruner = kn.NISPPruner(x, ratio=0.5, schedule=lambda step: 0.2, verbose=0)
    with pytest.warns(UserWarning, match=r"target 0\.5 was not reached"):
        model.fit(x, y, 8, verbose=0, callbacks=[pruner])
    assert pruner.pruned_model.layers[0].filters == 6


@pytest.mark.parametrize(
    "arguments", [(1.0, 0, 10), (0.5, 10, 10), (0.5, -1, 10), (0.5, 0, 10, 0.0, 3, 0)]
)
def test_bad_schedules(arguments):
    with pytest.raises(ValueError, match="Expected"):
        kn.PolynomialSchedule(*arguments)
    with pytest.raises(ValueError, match="amounts in"):
        amounts(lambda step: 1.5)


# After training ------------------------------------------------------------------------


def test_a_checkpoint_loaded_after_training_does_not_change_the_plan(tmp_path):
    """What `ModelCheckpoint` and `load_weights` do: the best epoch may be a less pruned one."""
    model = compiled(randomise(plain()))
    x, y = labelled(model)
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratio=0.5, verbose=0)
    early = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    model.fit(x, y, epochs=4, verbose=0, callbacks=[early, pruner])
    wanted = [creator.kept for creator in pruner.plan.creators]
    model.load_weights(tmp_path / "1.weights.h5")
    with pytest.warns(UserWarning, match="not those that pruning left"):
        small = pruner.pruned_model
    assert [creator.kept for creator in pruner.plan.creators] == wanted
    assert [len(c.units) for c in kn.trace(small).creators] == wanted
    assert kn.verify(small, model, pruner.plan).ok


@pytest.mark.parametrize("loads", [False, True])
def test_another_optimizer_does_not_turn_steps_back(loads, tmp_path):
    model = compiled(randomise(plain()))
    model.save_weights(tmp_path / "before.weights.h5")  # it holds no state of a pruner
    x, y = labelled(model)
    schedule = kn.PolynomialSchedule(final=0.5, begin_step=0, end_step=15)
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratio=0.5, schedule=schedule, verbose=0)
    with pytest.warns(UserWarning, match="was not reached"):
        model.fit(x, y, batch_size=32, epochs=3, verbose=0, callbacks=[pruner])
    compiled(model)
    if loads:
        model.load_weights(tmp_path / "before.weights.h5")
    model.fit(x, y, batch_size=32, epochs=3, verbose=0, callbacks=[pruner])
    assert pruner._state.step == 18
    assert pruner._state.reached == 0.5


def test_another_model_brings_its_own_steps():
    schedule = kn.PolynomialSchedule(final=0.5, begin_step=0, end_step=8)
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratio=0.5, schedule=schedule, verbose=0)
    for before in (0, 6):
        model = compiled(randomise(plain()))
        x, y = labelled(model)
        model.fit(x, y, batch_size=32, epochs=before // 3, verbose=0)
        model.fit(x, y, batch_size=32, epochs=3, verbose=0, callbacks=[pruner])
        assert pruner._state.step == before + 9


def test_a_distiller_is_not_what_is_pruned():
    model = randomise(plain())
    teacher = randomise(plain())
    distiller = keras.distillation.Distiller(
        teacher, model, keras.distillation.LogitsDistillation()
    )
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruner = kn.NISPPruner(importance=kn.Magnitude(), ratio=0.5, verbose=0)
    with pytest.raises(TypeError, match=f"pass its `student`, '{model.name}'"):
        distiller.fit(*labelled(model), verbose=0, callbacks=[pruner])
