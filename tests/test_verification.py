"""The proof can fail: errors planted in every kind of layer are noticed, and named."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from nets import example_inputs, nested, plain, randomise, shared

import keras_nisp as kn
from keras_nisp.data.random_samples import random_samples
from keras_nisp.surgery.layerwise import Layerwise
from keras_nisp.surgery.oracle import Oracle
from keras_nisp.surgery.verification import verify_traced


def image(data_format="channels_last"):
    """Kernels of all kinds behind each other."""
    last = data_format == "channels_last"
    form, axis = {"data_format": data_format}, -1 if last else 1
    x = inputs = keras.Input((9, 9, 2) if last else (2, 9, 9))
    x = layers.Conv2D(8, 3, activation="relu", name="conv", **form)(x)
    x = layers.BatchNormalization(axis=axis, name="bn")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise", **form)(x)
    x = layers.PReLU(shared_axes=[1, 2] if last else [2, 3], name="prelu")(x)
    x = layers.SeparableConv2D(6, 3, name="separable", **form)(x)
    if last:
        x = layers.Conv2D(8, 3, groups=2, padding="same", name="grouped")(x)
        x = layers.LayerNormalization(name="layer_norm")(x)
        x = layers.GroupNormalization(2, name="group_norm")(x)
    x = layers.Conv2DTranspose(5, 2, name="transpose", **form)(x)
    x = layers.MaxPooling2D(2, name="pool", **form)(x)
    x = layers.LeakyReLU(name="leaky")(x)
    x = layers.Flatten(**form)(x)
    x = layers.Dense(6, activation="tanh", name="dense")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x))


def sequence():
    inputs = keras.Input((7,), dtype="int32")
    y = layers.Embedding(11, 5, name="other")(inputs)
    y = layers.TimeDistributed(layers.Dense(8, activation="relu", name="inner"), name="time")(y)
    x = layers.Embedding(11, 6, mask_zero=True, name="embedding")(inputs)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True), name="both")(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, name="attention")(x, x)])
    x = layers.GRU(5, name="gru")(x)
    x = layers.Concatenate()([x, layers.GlobalMaxPooling1D()(y)])
    x = layers.EinsumDense("ac,cd->ad", 6, bias_axes="d", name="einsum")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x))


def channels_first():
    return image("channels_first")


class Case:
    """A network, what it is pruned to, and the comparison of the two."""

    def __init__(self, net, merge=False):
        keras.utils.set_random_seed(0)
        self.model = randomise(net())
        # Logits of some hundreds: the outputs depend on hardly anything.
        self.model.layers[-1].kernel.assign(300 * self.model.layers[-1].kernel)
        if merge:
            self.plan = kn.plan_merging(self.model, ratio=0.4, clustering="even")
        else:
            self.plan = kn.plan_pruning(self.model, kn.Random(), ratio=0.4)
        self.small = kn.rebuild(self.model, self.plan, force=True, verbose=0)
        self.map = self.plan.trace(self.model)
        self.units = self.plan.unit_map(self.map)

    def verify(self):
        return verify_traced(self.map, self.units, self.small)

    def layers(self):
        """How far each layer is off, by path."""
        compared = Layerwise(Oracle(self.map, self.units), self.small)
        samples = random_samples(self.model, self.map.input_shapes)
        compared.run(next(samples.batches())[0])
        return compared.layers


@pytest.fixture(scope="module")
def case():
    cases = {}

    def get(*args):
        if args not in cases:
            cases[args] = Case(*args)
        return cases[args]

    return get


def plant(weight, rng):
    """One element of a weight is off by as much as its elements are large."""
    wrong = weight.numpy()
    wrong.flat[rng.integers(wrong.size)] += np.abs(wrong).max() or 1.0
    weight.assign(wrong)


def paths_with_errors(model, index, rng):
    """Plants an error in that weight of each layer and gives their names."""
    wrong = [layer for layer in model._flatten_layers(recursive=True) if not layer._layers]
    named = []
    for layer in wrong:
        if index < len(layer.weights):
            plant(layer.weights[index], rng)
            named.append(layer.weights[index].path)
    return named


@pytest.mark.parametrize(
    ("net", "merge"),
    [
        (image, False),
        (channels_first, False),
        (plain, True),
        (nested, False),
        (shared, False),
        *(pytest.param(net, True, marks=pytest.mark.slow) for net in (image, sequence)),
        *(pytest.param(net, False, marks=pytest.mark.slow) for net in (plain, sequence)),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_an_error_in_any_weight_is_noticed_and_named(case, net, merge, rng):
    """In one weight of each layer at once: none hides behind another."""
    case = case(net, merge)
    first = case.verify()
    assert first.ok, first
    assert not first.silent
    right = [weight.numpy() for weight in case.small.weights]
    for index in range(4):
        planted = paths_with_errors(case.small, index, rng)
        wrong = [path for path, layer in case.layers().items() if not layer.ok]
        assert not (planted and case.verify().ok)
        for weight, value in zip(case.small.weights, right, strict=True):
            weight.assign(value)
        for path in planted:
            # The bias of keys adds the same to all that a softmax compares.
            holders = set(path.split("/")[:-1])
            assert path.endswith("key/bias") or any(holders & set(p.split("/")) for p in wrong), (
                path
            )
    assert case.verify().ok


CONFIGS = {
    "conv": {"strides": (2, 2), "padding": "same", "dilation_rate": (2, 2), "activation": ops.gelu},
    "bn": {"epsilon": 0.1},
    "depthwise": {"dilation_rate": (2, 2)},
    "grouped": {"activation": ops.relu},
    "layer_norm": {"epsilon": 0.1},
    "group_norm": {"epsilon": 0.1},
    "pool": {"pool_size": (1, 1)},
    "leaky": {"negative_slope": 0.1},
    "dense": {"activation": ops.sigmoid},
    "head": {"activation": ops.sigmoid},
    "forward_lstm": {"go_backwards": True},
    "inner": {"activation": ops.gelu},
}


@pytest.mark.parametrize("net", [image, sequence], ids=lambda net: net.__name__)
def test_an_error_in_a_config_is_noticed_and_named(case, net):
    case = case(net, False)
    found = {layer.name: layer for layer in case.small._flatten_layers()}
    for name in CONFIGS.keys() & found.keys():
        layer = found[name]
        for key, wrong in CONFIGS[name].items():
            right = getattr(layer, key)
            setattr(layer, key, wrong)
            result = case.verify()
            setattr(layer, key, right)
            assert not result.ok, (name, key)
            assert result.layer.layer.endswith(name)
            with pytest.raises(kn.VerificationError, match=f"{name}' .*please report"):
                result.check()


def test_exchanged_inputs_are_noticed():
    """Even where both are zero on all samples."""

    def joined(a, b, swap=False):
        x, y = a(inputs), b(inputs)
        x = layers.Concatenate(name="both")([y, x] if swap else [x, y])
        return x

    inputs = keras.Input((4,))
    settings = {"activation": "relu", "bias_initializer": keras.initializers.Constant(-1e9)}
    x = joined(layers.Dense(4, name="a", **settings), layers.Dense(4, name="b", **settings))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan).ok
    inputs = small.inputs[0]
    x = joined(small.get_layer("a"), small.get_layer("b"), swap=True)
    wrong = keras.Model(inputs, small.get_layer("head")(x))
    assert not kn.verify(wrong, model, plan).ok


def test_what_can_tell_nothing_is_named():
    """A layer that is dead whatever comes in."""
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, "relu", name="dead"), layers.Dense(3)]
    )
    model.layers[0].bias.assign(np.full(6, -1e9))
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    result = kn.verify(kn.rebuild(model, plan), model, plan)
    assert result.ok
    assert result.silent == ("dead",)
    assert "; 1 layer gave nothing to compare: dead" in str(result)


def test_a_wrong_rule_is_the_users():
    @keras.saving.register_keras_serializable("test_verification")
    class Reversed(layers.Layer):
        def call(self, x):
            return x[..., ::-1]

        def compute_output_shape(self, shape):
            return shape

    kn.register_rule(Reversed)(kn.PassThrough)
    inputs = keras.Input((4,))
    x = Reversed(name="reversed")(layers.Dense(6)(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(3)(x)))
    with pytest.raises(
        kn.VerificationError, match=r"'reversed' .*registered outside of keras_nisp"
    ):
        kn.prune(model, kn.Magnitude(), ratio=0.5)


# Values that are no numbers -------------------------------------------------------------


def test_weights_that_are_not_finite_are_named():
    model = randomise(plain())
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = kn.rebuild(model, plan)
    kernel = model.get_layer("b").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    channel_map = plan.trace(model)
    result = verify_traced(channel_map, plan.unit_map(channel_map), small)
    with pytest.raises(kn.VerificationError, match=r"'b' gives NaN in the original.*b/kernel"):
        result.check()
    with pytest.raises(ValueError, match="b/kernel"):
        kn.prune(model, kn.Random(), ratio=0.5)


def test_nan_on_samples():
    inputs = keras.Input((4,))
    x = layers.Dense(6, name="a")(ops.log(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    with pytest.raises(kn.VerificationError, match=r"log.*gives NaN.*random samples. Pass calib"):
        kn.prune(model, kn.Random(), ratio=0.5)
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan, np.ones((2, 4))).ok
    small.get_layer("a").kernel.assign(np.full((4, 3), np.nan))
    result = kn.verify(small, model, plan, np.ones((2, 4)))
    with pytest.raises(kn.VerificationError, match=r"'a'.*NaN, which it does not in the original"):
        result.check()


# Inputs and outputs of all kinds --------------------------------------------------------


@pytest.mark.skipif(keras.__version__.startswith("3.12."), reason="Keras 3.12 cannot build it")
def test_strings_that_are_passed_through():
    inputs, key = keras.Input((4,), name="x"), keras.Input((), dtype="string", name="key")
    x = layers.Dense(3)(layers.Dense(6, name="a")(inputs))
    model = keras.Model({"x": inputs, "key": key}, {"y": x, "key": key})
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    assert kn.verify(kn.rebuild(model, plan), model, plan).ok


def test_states_stay_as_they_are():
    inputs = keras.Input(batch_shape=(2, 5, 3))
    x = layers.LSTM(6, stateful=True, name="lstm")(inputs)
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)))
    model(np.ones((2, 5, 3), "float32"))
    before = [w.numpy() for w in model.variables]
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.5)
    small = kn.rebuild(model, plan)
    states = [w.numpy() for w in small.variables]
    assert any(np.abs(state).max() > 0 for state in states[-3:])
    assert kn.verify(small, model, plan).ok
    for values, net in ((before, model), (states, small)):
        for old, new in zip(values, net.variables, strict=True):
            np.testing.assert_array_equal(old, new)


def test_rounding_within_a_layer_is_no_error():
    """Of one channel, a LayerNormalization gives its offset: a difference of larger numbers."""
    inputs = keras.Input((4,))
    x = layers.LayerNormalization(name="norm")(layers.Dense(3, name="a")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)), 0)
    model.get_layer("a").kernel.assign(np.full((4, 3), [0.2, 0.1, 0.1]))
    model.get_layer("a").bias.assign([0.4, 0.1, 0.2])
    model.get_layer("norm").beta.assign([-0.0144, 0.5, 0.3])
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.7)
    small = kn.rebuild(model, plan)
    assert small.get_layer("norm").beta.shape == (1,)
    assert kn.verify(small, model, plan).ok
    small.get_layer("norm").beta.assign([-0.0146])
    result = kn.verify(small, model, plan)
    assert not result.ok
    assert "'norm'" in str(result)


@pytest.mark.parametrize("policy", ["float64", "mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_precisions(policy, rng):
    keras.config.set_dtype_policy(policy)
    try:
        x = inputs = keras.Input((6, 6, 3))
        x = layers.Conv2D(8, 3, activation="relu", name="conv")(x)
        x = layers.BatchNormalization()(x)
        x = layers.LayerNormalization()(layers.Dense(8)(x))
        x = layers.GroupNormalization(2)(layers.Dense(8)(x))
        model = randomise(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    finally:
        keras.config.set_dtype_policy("float32")
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.4)
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan).ok
    kernel = small.get_layer("conv").kernel
    kernel.assign(kernel * tf.cast(1 + 0.5 * rng.normal(size=kernel.shape), kernel.dtype))
    assert not kn.verify(small, model, plan).ok


def test_a_model_of_other_layers():
    model = randomise(plain())
    plan = kn.plan_pruning(model, kn.Random(), ratio=0.4)
    with pytest.raises(kn.PlanMismatchError, match="consists of others"):
        kn.verify(randomise(image()), model, plan)


def test_a_model_of_another_plan():
    model = randomise(plain())
    plans = [kn.plan_pruning(model, kn.Random(), ratio=ratio) for ratio in (0.25, 0.5)]
    small = kn.rebuild(model, plans[0])
    with pytest.raises(kn.VerificationError, match=r"gives shape \(.*\), where \(.*another plan"):
        kn.verify(small, model, plans[1]).check()


def test_fresh_networks(rng):
    """Noise on kernels of a network whose outputs hardly depend on anything."""
    keras.utils.set_random_seed(0)
    settings = {"input_shape": (32, 32, 3), "classes": 10, "alpha": 0.35}
    model = keras.applications.MobileNetV2(weights=None, **settings)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.3)
    small = kn.rebuild(model, plan)
    kernels = [weight for weight in small.weights if weight.path.endswith("kernel")]
    for kernel in kernels[::4]:
        kernel.assign(kernel * (1 + 0.2 * rng.normal(size=kernel.shape)))
    channel_map = plan.trace(model)
    compared = Layerwise(Oracle(channel_map, plan.unit_map(channel_map)), small)
    compared.run([tf.constant(example_inputs(model))])
    wrong = {path for path, layer in compared.layers.items() if not layer.ok}
    assert wrong == {kernel.path.split("/")[0] for kernel in kernels[::4]}


def test_prune_compares_on_the_data_that_there_are(capsys):
    """Random samples would give NaN."""
    inputs = keras.Input((4,))
    x = layers.Dense(6, name="a")(ops.log(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    x = np.abs(example_inputs(model, 8)) + 0.1
    kn.prune(model, kn.Random(), ratio=0.5, calibration=x)
    (line,) = capsys.readouterr().out.strip().split("\n")
    assert "; repaired on 8 samples, its accuracy was not measured. Next: fine-tune" in line
    kn.prune(model, kn.NISP(x), ratio=0.5)
    (line,) = capsys.readouterr().out.strip().split("\n")
    assert "; not repaired, so it may be no better than chance. Next: pass `calibration`" in line


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_operations_on_half_precision_are_as_inexact_as_layers(dtype):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64, 16), dtype=dtype)
    query, key = (layers.Dense(512, name=name, dtype=dtype)(inputs) for name in ("query", "key"))
    x = ops.einsum("btd,bsd->bts", query, key)
    model = keras.Model(inputs, layers.Dense(4, dtype=dtype)(x))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.4)
    small = kn.rebuild(model, plan)
    result = kn.verify(small, model, plan)
    assert result.ok, result
    small.get_layer("key").kernel.assign(1.2 * small.get_layer("key").kernel)
    assert not kn.verify(small, model, plan).ok
