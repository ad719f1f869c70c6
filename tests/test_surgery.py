"""What a rebuilt model keeps: names, structure, compile configuration, optimizer state."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from fresh_process import in_fresh_process
from keras import layers
from marked import slow, training
from nets import NETS, example_inputs, nested, plain, random_plan, randomise, residual

import keras_nisp as kn


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_names_and_structure(net):
    model = randomise(net())
    small = kn.rebuild(model, random_plan(model))
    assert type(small) is type(model)
    assert small.name == model.name
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    assert [w.path for w in small.weights] == [w.path for w in model.weights]
    outputs = small(example_inputs(small))
    keras.tree.assert_same_structure(outputs, model(example_inputs(model)))
    assert [t.shape for t in small.inputs] == [t.shape for t in model.inputs]
    assert [t.name for t in small.inputs] == [t.name for t in model.inputs]


def test_model_is_not_changed():
    model = randomise(plain())
    config, weights = model.get_config(), [w.numpy().copy() for w in model.weights]
    kn.prune(model, kn.NISP(example_inputs(model)), ratio=0.5, verbose=0)
    assert model.get_config() == config
    for old, new in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_says_so_in_one_line(capsys):
    kn.prune(randomise(plain()), kn.Magnitude(), ratio=0.5)
    (line,) = capsys.readouterr().out.splitlines()
    assert "verified: outputs differ by" in line
    kn.prune(randomise(plain()), kn.Magnitude(), ratio=0.5, verify=False)
    assert "verified" not in capsys.readouterr().out


PREDICT = """
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
outputs = model(dict(np.load(sys.argv[2])))
np.savez(sys.argv[3], **{k: np.asarray(v) for k, v in outputs.items()})
"""


def test_result_is_plain_keras(tmp_path):
    """Loads and predicts in a fresh process in which keras_nisp cannot be imported."""
    model = randomise(nested())
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    inputs = example_inputs(small)
    small.save(tmp_path / "small.keras")
    np.savez(tmp_path / "inputs.npz", **inputs)
    files = (tmp_path / name for name in ("small.keras", "inputs.npz", "outputs.npz"))
    in_fresh_process(PREDICT, *files)
    received = np.load(tmp_path / "outputs.npz")
    for key, expected in small(inputs).items():
        np.testing.assert_allclose(received[key], expected, rtol=1e-5, atol=1e-6)


def custom_loss(y, p):
    return keras.ops.mean((y - p) ** 2, -1)


@pytest.mark.parametrize("loss", ["mse", custom_loss, lambda y, p: custom_loss(y, p)])
def test_compile_configuration(loss):
    model = randomise(residual())
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 100), beta_1=0.8),
        loss,
        metrics=["mae", keras.metrics.MeanSquaredError(name="error")],
        steps_per_execution=2,
        jit_compile=False,
    )
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    assert small.optimizer is not model.optimizer
    assert small.optimizer.get_config() == model.optimizer.get_config()
    assert small.loss is model.loss
    assert small.steps_per_execution == 2
    assert not small.jit_compile
    x, y = example_inputs(small, 8), np.zeros((8, 4))
    logs = small.fit(x, y, verbose=0).history
    assert set(logs) == {"loss", "mae", "error"}


def test_learning_rate_that_a_callback_set_is_kept():
    model = randomise(residual())
    model.compile("sgd", "mse", jit_compile=False)
    model.optimizer.learning_rate = 0.123
    small = kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0)
    assert float(small.optimizer.learning_rate) == pytest.approx(0.123)


def test_model_that_is_not_compiled():
    assert not kn.prune(randomise(plain()), kn.Magnitude(), ratio=0.5, verbose=0).compiled


@pytest.mark.parametrize(
    "optimizer",
    [
        slow(lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)),
        slow(lambda: keras.optimizers.Adam(0.01)),
        lambda: keras.optimizers.AdamW(0.01, use_ema=True),
        lambda: keras.optimizers.Nadam(0.01),
        training(
            lambda: keras.optimizers.RMSprop(0.01, momentum=0.5, gradient_accumulation_steps=2)
        ),
        training(lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))),
    ],
)
def test_optimizer_state_goes_along(optimizer):
    """Training the rebuilt model equals training the original with dead channels.

    Where the kernels that read a channel are zero, and stay so, the channel changes
    nothing; if slots are carried over, both models take the same steps.
    """
    model = randomise(plain())
    model.compile(optimizer(), "mse", run_eagerly=True)
    x = example_inputs(model, 16)
    y = np.random.default_rng(1).normal(size=(16, 5)).astype("float32")
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.4)
    masks = _hold_reads_at_zero(model, plan)
    fit = {"epochs": 3, "batch_size": 8, "shuffle": False, "verbose": 0}
    keras.utils.set_random_seed(1)
    model.get_layer(index=7).rate = 0.0  # dropout draws other numbers at another width
    model.fit(x, y, **fit)
    masks.apply()  # averaged weights were put in place of the masked ones
    small = kn.rebuild(model, plan, optimizer_state=True)
    fresh = kn.rebuild(model, plan)
    assert int(small.optimizer.iterations) == int(model.optimizer.iterations) > 0
    histories = [m.fit(x, y, **fit).history["loss"] for m in (model, small, fresh)]
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-4)
    assert not np.allclose(histories[2], histories[0], rtol=1e-4)


def _hold_reads_at_zero(model, plan):
    from keras_nisp.pruning.pruner_masks import Masks

    channel_map = kn.trace(model)
    masks = Masks(channel_map)
    masks.update(plan.removed_units(channel_map))
    return masks


def test_mixed_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = randomise(residual())
    finally:
        keras.config.set_dtype_policy(policy)
    small = kn.prune(model, kn.NISP(example_inputs(model, 16)), ratio=0.5, verbose=0)
    assert small.get_layer("stem").compute_dtype == "bfloat16"
    assert small.get_layer("stem").kernel.dtype == "float32"


def test_frozen_layers_stay_frozen():
    model = randomise(nested())
    model.get_layer("part").trainable = False
    model.get_layer("a").trainable = False
    small = kn.rebuild(model, random_plan(model))
    assert not small.get_layer("part").trainable
    assert [w.trainable for w in small.weights] == [w.trainable for w in model.weights]


class WithStep(keras.Model):
    """A functional model with a train step of its own."""

    def train_step(self, data):
        logs = super().train_step(data)
        return {**logs, "extra": keras.ops.convert_to_tensor(1.0)}


def test_subclass_of_a_functional_model_keeps_its_class():
    inputs = keras.Input((4,))
    outputs = layers.Dense(2)(layers.Dense(6)(inputs))
    model = WithStep(inputs, outputs)
    model.compile("sgd", "mse", jit_compile=False)
    small = kn.prune(model, kn.Random(), ratio=0.5, verbose=0)
    assert type(small) is WithStep
    logs = small.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0).history
    assert logs["extra"] == [1.0]


def test_layer_that_cannot_be_copied():
    class NoConfig(layers.Layer):
        def __init__(self, size):
            super().__init__(name="no_config")
            self.size = size

        def call(self, x):
            return x

    inputs = keras.Input((4,))
    x = NoConfig(object())(layers.Dense(6)(layers.Dense(4)(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(x))
    with (
        pytest.warns(kn.UnknownLayerWarning),
        pytest.raises(TypeError, match=r"(?s)'no_config'.*get_config"),
    ):
        kn.prune(model, kn.Random(), ratio=0.5)


def test_warnings_about_compiling_point_at_the_line_of_the_user():
    """However deep the call that finds it out: in `rebuild`, and in `prune`."""

    class Picky(keras.optimizers.SGD):
        def get_config(self):
            raise RuntimeError("no config")

    model = randomise(plain())
    model.compile(Picky(), "mse")
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    calls = (
        lambda: kn.rebuild(model, plan),
        lambda: kn.prune(model, kn.Magnitude(), ratio=0.5, verbose=0),
    )
    for call in calls:
        with pytest.warns(UserWarning, match="could not be copied") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_rebuild_copies_no_kernel_whole():
    side = 6144
    model = keras.Sequential(
        [keras.Input((side,)), keras.layers.Dense(side), keras.layers.Dense(1)]
    )
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)

    def memory(field):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split(f"{field}:")[1].split()[0])

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    kn.rebuild(model, plan)
    assert memory("VmHWM") - before < 1.75 * 4 * side**2  # half of the kernel, thrice
