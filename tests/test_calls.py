"""Layers and operations called in other forms than usual, and rules that are wrong."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from nets import example_inputs, randomise

import keras_nisp as kn


def checked(model, **settings):
    """How many channels each layer keeps of a model at half its width, which is exact."""
    plan = kn.plan_pruning(model, kn.NISP(example_inputs(model)), ratio=0.5, **settings)
    small = kn.rebuild(model, plan)
    assert kn.verify(small, model, plan).ok
    assert small.count_params() == plan.after.parameters
    return {row.layer: row.kept for row in plan.creators}


def head(inputs, x):
    return randomise(keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))))


def test_keyword_calls(rng):
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 3, padding="same", name="conv")(inputs=inputs)
    x = layers.BatchNormalization()(inputs=x)
    x = ops.add(x1=x, x2=np.ones(8, "float32"))
    x = layers.Concatenate()(inputs=[x, x])
    x = layers.TimeDistributed(layers.ReLU())(inputs=layers.Reshape((16, 16))(inputs=x))
    x = layers.MultiHeadAttention(2, 4, name="mha")(query=x, value=x)
    x = ops.where(x > 0, x1=x, x2=x * 0.1)
    inner = keras.Sequential([keras.Input((16, 16)), layers.Dense(8, name="dense")], name="inner")
    x = inner(inputs=x)
    x = layers.Bidirectional(layers.GRU(4))(sequences=x)
    model = head(inputs, x)
    kept = checked(model)
    kept = [kept[name] for name in ("conv", "mha", "mha:heads", "inner/dense")]
    assert kept == [4, 8, 1, 4]
    data = rng.normal(size=(64, 4, 4, 3)).astype("float32")
    kn.prune(model, kn.Magnitude(), ratio=0.5, calibration=data, verbose=0)


def test_arguments_by_position_that_are_usually_named():
    inputs = keras.Input((5, 3))
    x = layers.Dense(8, name="a")(inputs)
    x = layers.BatchNormalization()(x)
    state = layers.Dense(6)(layers.GlobalAveragePooling1D()(x))
    x = layers.Bidirectional(layers.GRU(6, return_sequences=True))(x, [state, state])
    assert checked(head(inputs, x))["a"] == 4


def steep_swish(x):
    return x * ops.sigmoid(1.7 * x)


def sharp_softmax(x):
    return ops.softmax(2.0 * x, axis=-1)


def backwards(x):
    return ops.flip(x, -1)


def tensorflow_alone(x):
    return tf.nn.relu(x) + 1.0


ACTIVATED = {
    "conv": lambda f: layers.Conv1D(8, 3, padding="same", activation=f, name="layer"),
    "dense": lambda f: layers.Dense(8, activation=f, name="layer"),
    "einsum": lambda f: layers.EinsumDense("abc,cd->abd", (6, 8), activation=f, name="layer"),
    "lstm": lambda f: layers.LSTM(8, recurrent_activation=f, return_sequences=True, name="layer"),
}


@pytest.mark.parametrize("kind", ACTIVATED)
def test_activations_that_are_layers_or_functions(kind):
    for activation, width in (
        (layers.LeakyReLU(), 4),
        (steep_swish, 4),
        (sharp_softmax, 8),
        (backwards, 8),
    ):
        inputs = keras.Input((6, 3))
        x = ACTIVATED[kind](activation)(layers.Dense(8)(inputs))
        assert checked(head(inputs, x))["layer"] == width


def test_activation_that_cannot_be_followed_is_named():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation=tensorflow_alone, name="odd")(layers.Dense(4)(inputs))
    model = head(inputs, x)
    with pytest.warns(kn.UnknownLayerWarning, match="'tensorflow_alone' of 'odd'.*keras.ops"):
        plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert [row.kept for row in plan.creators] == [2, 8, 2]


def test_activations_with_weights():
    """They stay as they are. What layers share of them would not come along in copies: Keras makes
    one for each layer from its config."""
    inputs = keras.Input((6,))
    shared = layers.PReLU(name="slopes")
    x = layers.Dense(8, activation=shared, name="a")(inputs)
    alone = head(inputs, layers.Dense(4, name="free")(x))
    alone(np.zeros((1, 6)))
    shared.alpha.assign(np.linspace(0.1, 0.9, 8))
    with pytest.warns(kn.UnknownLayerWarning, match="'PReLU' of 'a'"):
        assert checked(alone) == {"a": 8, "free": 2, "head": 2}
    with pytest.warns(kn.UnknownLayerWarning, match="'PReLU' of 'a'"):
        plan = kn.plan_pruning(alone, kn.Magnitude(), ratio=0.5)
    assert "has weights: call it as a layer of its own" in plan.explain("a")
    for other in (layers.Dense(8, activation=shared, name="b"), shared):
        model = head(inputs, layers.Add()([other(x), x]))
        model(np.zeros((1, 6)))
        with pytest.raises(ValueError, match=r"'slopes' \(PReLU\) has weights, .*'a'.*of its own"):
            kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)


def test_layer_that_binds_another_axis_when_it_is_called_again():
    for first in (0, 1):
        inputs = keras.Input((4, 4, 3))
        full = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
        one = layers.Conv2D(1, 3, padding="same")(inputs)
        alike = ops.broadcast_to(one, (1, 4, 4, 8)) if first == 2 else ops.repeat(one, 8, -1)
        shared = layers.PReLU(shared_axes=[1, 2])
        tensors = [full, alike][:: 1 if first == 0 else -1]
        x = layers.Concatenate()([shared(tensor) for tensor in tensors])
        checked(head(inputs, x))


def test_reshape_that_is_called_twice():
    inputs = keras.Input((6,))
    shared = layers.Reshape((2, 8))
    x = [shared(layers.Dense(16, name=name)(inputs)) for name in "ab"]
    assert checked(head(inputs, layers.Concatenate()(x)))["a"] == 8


def test_layer_that_is_followed_in_one_of_its_calls_only():
    """The second call adds up the channels that it takes in: they lie on another axis."""
    for turn in (1, -1):
        inputs = keras.Input((8, 3))
        followed = layers.Dense(8, name="a")(layers.Cropping1D((0, 2))(inputs))
        other = layers.Permute((2, 1))(layers.Conv1D(6, 1, name="b")(inputs))
        shared = layers.EinsumDense("abc,cd->ad", 5, name="shared")
        x = layers.Add()([shared(x) for x in (followed, other)[::turn]])
        model = head(inputs, layers.Dense(4, name="free")(x))
        kept = checked(model)
        assert [kept[name] for name in ("a", "b", "shared", "free")] == [8, 6, 5, 2]
        plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
        assert "is also called in a way that no rule follows" in plan.explain("a")


@pytest.mark.parametrize("pattern", ["mha*", "mha", "block/*", "mha:*"])
def test_patterns_over_channels_that_no_tensor_shows(pattern):
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(2, 4, name="mha")
    inner = keras.Input((5, 8))
    block = keras.Model(inner, attention(inner, inner), name="block")
    model = head(inputs, layers.Dense(6, name="last")(block(inputs)))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5, exclude=pattern)
    kept = {row.layer: row.kept for row in plan.creators}
    assert [kept["block/mha:heads"], kept["block/mha:key"], kept["last"]] == [2, 4, 3]
    assert "excluded" in plan.explain(pattern)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratios={pattern: 0.5})
    assert plan.after.parameters < plan.before.parameters


class Doubled(layers.Conv1D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, ops.flip(kernel, -1) * 2)


class Standardised(layers.Dense):
    @property
    def kernel(self):
        kernel = super().kernel
        return kernel - ops.mean(kernel, axis=-1, keepdims=True)


class Cell(layers.GRUCell):
    def call(self, inputs, states, training=False):
        output, states = super().call(inputs, states, training)
        return ops.flip(output, -1), states


class Own(layers.LSTM):
    def inner_loop(self, *args, **kwargs):
        output, *others = super().inner_loop(*args, **kwargs)
        return ops.flip(output, -1), *others


class Gabor(layers.Conv1D):
    """Filters that are no variable."""

    def build(self, shape):
        self._kernel, self.bias, self.built = ops.ones((3, shape[-1], 8)) / 9, None, True


OVERRIDING = {
    "convolution_op": lambda: Doubled(8, 3, padding="same", name="layer"),
    "kernel": lambda: Standardised(8, name="layer"),
    "cell": lambda: layers.RNN(Cell(8), return_sequences=True, name="layer"),
    "inner_loop": lambda: Own(8, return_sequences=True, name="layer"),
    "constant": lambda: Gabor(8, 3, padding="same", name="layer"),
}


@pytest.mark.parametrize("name", OVERRIDING)
def test_subclass_that_computes_otherwise_has_no_rule(name):
    inputs = keras.Input((6, 3))
    x = OVERRIDING[name]()(layers.Dense(8, name="before")(inputs))
    model = head(inputs, layers.Dense(4, name="after")(x))
    with pytest.warns(kn.UnknownLayerWarning, match="'layer'"):
        plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert {row.layer: row.kept for row in plan.creators} | {"layer": 8} == {
        "before": 8,
        "layer": 8,
        "after": 2,
        "head": 2,
    }


def test_subclass_that_changes_nothing_keeps_its_rule():
    class Named(layers.Dense):
        def __init__(self, units, flavour="plain", **kwargs):
            super().__init__(units, **kwargs)
            self.flavour = flavour

        def get_config(self):
            return {**super().get_config(), "flavour": self.flavour}

        def helper(self):
            return self.flavour

    inputs = keras.Input((6,))
    assert checked(head(inputs, Named(8, name="named")(inputs)))["named"] == 4


class Plain(layers.Layer):
    def call(self, x):
        return x + 0.0


class Wrong(kn.Rule):
    """A rule that fails in the one way it is told."""

    wrong = None

    def trace(self, call, x):
        if self.wrong == "trace":
            raise ValueError("no idea")
        if self.wrong == "shape":
            return x.names[..., :1].repeat(3, -1)
        if self.wrong == "count":
            return [x.names, x.names]
        return x.names.astype(float) if self.wrong == "kind" else x.names

    def resize(self, call, config, kept):
        raise KeyError("units")


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("trace", r"`trace` of .*Wrong.*'plain' \(Plain\), raised ValueError: no idea"),
        ("shape", r"broadcasts to its shape.*\(8,\).*Received: int64 \(3,\)"),
        ("count", r"for each output.*Received: int64 \(8,\), int64 \(8,\)"),
        ("kind", "Received: float64"),
    ],
)
def test_errors_of_rules_name_them(wrong, text, monkeypatch):
    inputs = keras.Input((6,))
    model = head(inputs, Plain(name="plain")(layers.Dense(8)(inputs)))
    kn.register_rule(Plain)(Wrong)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    with pytest.raises(kn.RuleError, match=r"`resize` of .*'plain'.*KeyError"):
        kn.rebuild(model, plan)
    with pytest.raises(kn.RuleError, match=r"no `absolute`.*Magnitude"):
        kn.plan_pruning(model, kn.NISP(example_inputs(model)), ratio=0.5)
    monkeypatch.setattr(Wrong, "wrong", wrong)
    for attempt in (lambda: kn.trace(model), lambda: kn.rebuild(model, plan)):
        with pytest.raises(kn.RuleError, match=text):
            attempt()


def test_one_warning_from_the_line_of_the_user(rng):
    class Unknown(Plain):
        def call(self, x):
            return x * 2.0

    inputs = keras.Input((6,))
    model = head(inputs, Unknown(name="unknown")(layers.Dense(8)(layers.Dense(8)(inputs))))
    data = rng.normal(size=(32, 6)).astype("float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", kn.UnknownLayerWarning)
        kn.prune(model, kn.Magnitude(), ratio=0.5, calibration=data, verbose=0)
    caught = [w for w in caught if w.category is kn.UnknownLayerWarning]
    assert [w.filename for w in caught] == [__file__]


def test_sizes_that_keras_leaves_open():
    inputs = keras.Input((6, 3))
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 8), bias_axes="d", name="a")(inputs)
    inner = [layers.Conv1D(8, 3, name="b"), layers.EinsumDense("abc,cde->abde", (None, 2, 6))]
    x = keras.Sequential([keras.Input((None, 8)), *inner])(x)
    kept = checked(head(inputs, layers.GlobalMaxPooling2D()(x)))
    assert list(kept.values()) == [4, 4, 3, 2, 2]  # the heads of "einsum_dense" are positions


def test_arrays_and_empty_parts_among_the_arguments():
    inputs = keras.Input((6, 3))
    x = layers.Dense(16, name="a")(inputs)
    x = ops.concatenate([layers.Dense(8)(part) for part in ops.split(x, np.array([8]), -1)], -1)
    x = ops.concatenate([*ops.split(x, [4, 16], -1), x[..., :0]], -1)
    x = ops.pad(ops.take(x, np.array([0, 2, 2, 9]), axis=-1), np.array([[0, 0], [0, 0], [1, 0]]))
    assert checked(head(inputs, layers.Dense(4)(x)))["a"] == 8


MASKED = {
    "layer norm": layers.LayerNormalization,
    "rms": layers.RMSNormalization,
    "group norm": lambda: layers.GroupNormalization(4),
    "unit norm": layers.UnitNormalization,
    "softmax": layers.Softmax,
    "mean": lambda: lambda x: ops.mean(x, axis=-1, keepdims=True),
    "max": lambda: lambda x: ops.max(x, axis=-1, keepdims=True),
    "sum": lambda: lambda x: ops.sum(x, axis=-1, keepdims=True),
    "cosine": lambda: lambda x: layers.Dot(-1, normalize=True)([x, x]),
    "attention": lambda: lambda x: layers.Attention()([x, x]),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_layers_in_a_graph_with_open_sizes(name, rng):
    """`masked` in a compiled step equals the rebuilt model, which has the channels removed."""
    inputs = keras.Input((5, 3))
    mixed = MASKED[name]()(layers.Dense(8, name="a")(inputs))
    model = head(inputs, layers.GlobalAveragePooling1D()(mixed))
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    assert bool(plan.inexact) == (name not in ("sum", "attention"))
    channel_map = plan.trace(model)
    keep = ~plan.removed_units(channel_map)
    x = rng.normal(size=(7, 5, 3)).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec((None, None, 3))])
    def masked(x):
        def visit(call, args, kwargs):
            if not (call.mixes_channels or call.sums_channels):
                return call.infer(*args, **kwargs)
            kept = [tf.cast(keep[tensor.names][None], tf.float32) for tensor in call.inputs]
            y = call.rule.masked(call, kept, *args)
            return y * tf.cast(keep[call.outputs[0].names][None], y.dtype)

        return channel_map.walk([x], visit)

    small = kn.rebuild(model, plan)
    np.testing.assert_allclose(masked(x), small(x), rtol=1e-4, atol=1e-5)
