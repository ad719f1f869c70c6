"""`check_rule` lets right rules pass, and says of wrong ones what to mend."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_nisp as kn
from keras_nisp.keras_graph.keras_layers import operation_class
from keras_nisp.testing import check_rule
from keras_nisp.testing.multiplications import kernel_multiplications

register = keras.saving.register_keras_serializable("test_check_rule")


@register
class Project(layers.Layer):
    """A dense layer of one's own, with names of its own."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], self.width), name="matrix")
        self.shift = self.add_weight(shape=(self.width,), name="shift")

    def call(self, x):
        return keras.ops.tanh(x @ self.matrix + self.shift)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class ProjectRule(kn.Rule):
    does = "creates"

    def trace(self, call, x):
        names = call.create(call.layer.width)
        self.bind(call, x, names)
        return names.reshape([1] * (x.rank - 1) + [-1])

    def bind(self, call, x, names):
        applied = int(np.prod(x.shape[:-1], initial=1))
        read, create = {0: call.along(x, -1)}, {1: names}
        call.bind(call.layer.matrix, read=read, create=create, positions=applied)
        call.bind(call.layer.shift, own={0: names})

    def resize(self, call, config, width):
        return {**config, "width": width(call.outputs[0].line(-1))}

    def absolute(self, call, x):
        return tf.tensordot(x, tf.abs(tf.convert_to_tensor(call.layer.matrix)), 1)


class WrongAxis(ProjectRule):
    def bind(self, call, x, names):
        read, create = {1: call.along(x, -1)}, {0: names}
        call.bind(call.layer.matrix, read=read, create=create, positions=x.shape[0])
        call.bind(call.layer.shift, own={0: names})


class Forgotten(ProjectRule):
    def bind(self, call, x, names):
        read, create = {0: call.along(x, -1)}, {1: names}
        call.bind(call.layer.matrix, read=read, create=create, positions=x.shape[0])


class NoPositions(ProjectRule):
    def bind(self, call, x, names):
        call.bind(call.layer.matrix, read={0: call.along(x, -1)}, create={1: names})
        call.bind(call.layer.shift, own={0: names})


class NotResized(ProjectRule):
    def resize(self, call, config, width):
        return config


class WrongSize(ProjectRule):
    def resize(self, call, config, width):
        return {**config, "width": width(call.inputs[0].line(-1))}


class Signed(ProjectRule):
    def absolute(self, call, x):
        return tf.tensordot(x, tf.convert_to_tensor(call.layer.matrix), 1)


class Activated(ProjectRule):
    def absolute(self, call, x):
        return tf.tanh(super().absolute(call, x))


class Biased(ProjectRule):
    def absolute(self, call, x):
        return super().absolute(call, x) + tf.abs(tf.convert_to_tensor(call.layer.shift))


class Largest(ProjectRule):
    def absolute(self, call, x):
        kernel = tf.abs(tf.convert_to_tensor(call.layer.matrix))
        return tf.reduce_max(x[..., None] * kernel, -2)


class InNumPy(ProjectRule):
    def absolute(self, call, x):
        return tf.constant(super().absolute(call, x).numpy())


class Transposed(ProjectRule):
    def absolute(self, call, x):
        return tf.transpose(super().absolute(call, x), (0, 2, 1))


class WrongNames(ProjectRule):
    def trace(self, call, x):
        return super().trace(call, x)[0]


class Fixed(ProjectRule):
    def trace(self, call, x):
        self.bind(call, x, call.fix(call.create(call.layer.width), "is what it is"))
        call.fix(x.names, "may not go")
        return call.fresh(call.output_shape, "is left alone")


WRONG = {
    WrongAxis: r"`trace`.*binds axis 0 of variable 'matrix' by `create=`.* They lie along axis 1",
    Forgotten: r"`trace`.*does not bind variable 'shift' of shape \(6,\).*call\.layer\.shift, own=",
    NoPositions: r"`trace`.*counts 0 multiplications.*TensorFlow computes 180.*at 5 positions",
    NotResized: r"`resize`.*another size than its variables.*would become",
    WrongSize: r"`resize`.*another size than its variables",
    Signed: r"`absolute`.*negative values.*absolute value",
    Activated: r"`absolute`.*not linear: twice the input gives .* times the output",
    Biased: r"`absolute`.*gives something for an input of zeros.*biases",
    Largest: r"`absolute`.*not linear: of a sum of two inputs.*A maximum is not",
    InNumPy: r"`absolute`.*cannot be differentiated",
    Transposed: r"`absolute`.*must give tensors of shapes \[\(1, 5, 6\)\].*\[\(1, 6, 5\)\]",
    WrongNames: r"`trace`.*broadcasts to its shape.*Received: int64 \(6,\)",
    Fixed: r"`trace`.*lets no channel be removed, along any axis. It (may not go|is)",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda rule: rule.__name__)
def test_a_wrong_rule_for_a_layer_with_weights(wrong):
    kn.register_rule(Project)(wrong)
    with pytest.raises(kn.RuleError, match=WRONG[wrong]) as caught:
        check_rule(Project(6, name="mine"), (5, 6))
    assert f"{wrong.__name__}, the rule for layer 'mine' (Project)," in str(caught.value)


def test_a_right_rule_for_a_layer_with_weights():
    kn.register_rule(Project)(ProjectRule)
    layer = Project(6)
    for shape in ((4,), (5, 6), (3, 2, 6)):
        check_rule(layer, shape)
    assert not layer.built


# Layers without kernels -------------------------------------------------------------


@register
class Scale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], name="scale")

    def call(self, x):
        return x * self.scale


class ScaleRule(kn.Rule):
    def trace(self, call, x):
        call.bind(call.layer.scale, own={0: call.along(x, -1)})
        return x.names

    def absolute(self, call, x):
        return x * tf.abs(tf.convert_to_tensor(call.layer.scale))


class ReadScale(ScaleRule):
    def trace(self, call, x):
        call.bind(call.layer.scale, read={0: call.along(x, -1)})
        return x.names


@register
class Centred(layers.Layer):
    """Without the mean over channels."""

    def call(self, x):
        return x - keras.ops.mean(x, -1, keepdims=True)


class CentredRule(kn.PassThrough):
    mixes_channels = True

    def trace(self, call, x):
        call.mixes_channels = x.names.shape[-1] > 1
        return x.names

    def masked(self, call, keep, x):
        keep = keep[0] * tf.ones_like(x)
        mean = tf.reduce_sum(x * keep, -1, True) / tf.reduce_sum(keep, -1, True)
        return x - mean


class Unmasked(CentredRule):
    def masked(self, call, keep, x):
        return call.infer(x * keep[0])


@register
class Reversed(layers.Layer):
    def call(self, x):
        return x[..., ::-1]


class ReversedRule(kn.Rule):
    does = "moves"

    def trace(self, call, x):
        return x.names[..., ::-1]

    def absolute(self, call, x):
        return x[..., ::-1]


@register
class Total(layers.Layer):
    """A sum over channels."""

    def call(self, x):
        return keras.ops.sum(x, -1, keepdims=True)


class TotalRule(kn.Rule):
    sums_channels = True

    def trace(self, call, x):
        if x.names.shape[-1] == 1:  # channels lie along another axis
            call.sums_channels = False
            return x.names
        call.reads = True
        return np.full([1] * x.rank, call.fix(call.create(1), "is a sum"))

    def absolute(self, call, x):
        return tf.reduce_sum(x, -1, keepdims=True)


class SilentTotal(TotalRule):
    def trace(self, call, x):
        names = super().trace(call, x)
        call.sums_channels = False
        return names


class EverywhereTotal(TotalRule):
    """Forgets that channels may lie along another axis than that of the sum."""

    def trace(self, call, x):
        call.reads = True
        return np.full([1] * x.rank, call.fix(call.create(1), "is a sum"))


@register
class Gated(layers.Layer):
    """Two inputs, and a setting of the call."""

    def call(self, x, gate, power=1):
        return x * keras.ops.sigmoid(gate) ** power


class GatedRule(kn.Rule):
    does = "joins"

    def trace(self, call, x, gate, power=1):
        call.join(x.names, gate.names)
        return x.names

    def absolute(self, call, x, gate, power=1):
        return x + gate


class Unjoined(GatedRule):
    def trace(self, call, x, gate, power=1):
        return x.names


@register
class Table(layers.Layer):
    """Rows by index."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.rows = self.add_weight(shape=(2, width), name="rows")

    def call(self, x):
        return keras.ops.take(self.rows, x, 0)

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape, self.width))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class TableRule(kn.Rule):
    does = "creates"

    def trace(self, call, x):
        names = call.create(call.layer.width)
        call.fix(x.names, "is an index")
        call.bind(call.layer.rows, create={1: names})
        return names.reshape([1] * x.rank + [-1])

    def resize(self, call, config, width):
        return {**config, "width": width(call.outputs[0].line(-1))}

    def absolute(self, call, x):
        return x[..., None] * tf.reduce_mean(tf.abs(tf.convert_to_tensor(call.layer.rows)), 0)


PAIR = {"x": (5, 6), "gate": (5, 6)}
RIGHT = {
    "scale": (Scale, ScaleRule, (5, 6), {}),
    "centred": (Centred, CentredRule, (5, 6), {}),
    "reversed": (Reversed, ReversedRule, (5, 6), {}),
    "total": (Total, TotalRule, (5, 6), {}),
    "gated": (Gated, GatedRule, PAIR, {"call_kwargs": {"power": 2}}),
    "table": (lambda: Table(6), TableRule, (5,), {"dtype": "int32"}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rule(name):
    build, rule, shape, settings = RIGHT[name]
    layer = build()
    kn.register_rule(type(layer))(rule)
    check_rule(layer, shape, **settings)


MISTAKES = {
    "bound by read": (
        Scale,
        ReadScale,
        (5, 6),
        r"`trace`.*merged.*Bind by `own=` what a channel has",
    ),
    "mixed": (Centred, kn.PassThrough, (5, 6), r"`trace`.*set `mixes_channels = True`"),
    "not masked": (Centred, Unmasked, (5, 6), r"`masked`.*without the removed channels"),
    "other order": (Reversed, kn.PassThrough, (5, 6), r"`trace`.*in another order.*Move `x.names`"),
    "summed": (Total, SilentTotal, (5, 6), r"`trace`.*`sums_channels = True`"),
    "along another axis": (Total, EverywhereTotal, (5, 6), r"`trace`.*does not fit.*along axis -2"),
    "not joined": (Gated, Unjoined, PAIR, r"`trace`.*a change of channel 0 of the input"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_rule(name):
    layer, rule, shape, text = MISTAKES[name]
    kn.register_rule(layer)(rule)
    with pytest.raises(kn.RuleError, match=text):
        check_rule(layer(name="mine"), shape)


def test_a_layer_without_a_rule():
    class Unknown(layers.Layer):
        def call(self, x):
            return x

    with pytest.raises(kn.RuleError, match=r"has no rule.*register_rule\(Unknown\)"):
        check_rule(Unknown(), (5, 6))
    with pytest.raises(kn.RuleError, match="on purpose: which works on the colors"):
        check_rule(layers.RandomContrast(0.1), (5, 6, 3))
    with pytest.raises(TypeError, match=r"as in `check_rule\(MyLayer\(8\), \(4,\)\)`"):
        check_rule(Unknown, (5, 6))
    with pytest.raises(ValueError, match=r"the whole shape of one sample.*\(None, 6\)"):
        check_rule(layers.Dense(3), (None, 6))
    with pytest.raises(ValueError, match=r"all sizes of what layer 'open' gives.*None"):
        check_rule(layers.EinsumDense("abc,cd->abd", (None, 6), name="open"), (5, 6))


# The rules of this package ----------------------------------------------------------

FIRST = {"data_format": "channels_first"}
ATTENTION = {"query": (5, 8), "value": (7, 8)}
FAST = {
    "dense": (lambda: layers.Dense(6, activation="relu"), (8,)),
    "convolution": (lambda: layers.Conv2D(6, 3, padding="same"), (7, 6, 8)),
    "normalisation": (layers.LayerNormalization, (5, 8)),
    "sum": (layers.Add, [(5, 8), (5, 8)]),
    "largest two": (lambda: operation_class("top_k")(2), (8,)),
    "embedding": (lambda: layers.Embedding(2, 8), (5,), "int32"),
}
SLOW = {
    "attention": (lambda: layers.MultiHeadAttention(4, 3), ATTENTION),
    "dense on sequences": (lambda: layers.Dense(6), (5, 8)),
    "conv1d": (lambda: layers.Conv1D(6, 3, padding="causal"), (9, 8)),
    "channels first": (lambda: layers.Conv1D(6, 3, **FIRST), (8, 9)),
    "conv3d": (lambda: layers.Conv3D(6, 2), (4, 3, 4, 8)),
    "grouped": (lambda: layers.Conv2D(8, 3, groups=2), (7, 6, 8)),
    "separable": (lambda: layers.SeparableConv2D(6, 3, depth_multiplier=2), (7, 6, 8)),
    "transposed": (lambda: layers.Conv2DTranspose(6, 3, 2), (5, 4, 8)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (7, 6, 8)),
    "einsum": (lambda: layers.EinsumDense("abc,cd->abd", (5, 6), bias_axes="d"), (5, 8)),
    "batch normalisation": (layers.BatchNormalization, (5, 8)),
    "group normalisation": (lambda: layers.GroupNormalization(2), (5, 8)),
    "rms": (layers.RMSNormalization, (5, 8)),
    "unit": (layers.UnitNormalization, (5, 8)),
    "spectral": (lambda: layers.SpectralNormalization(layers.Dense(6)), (5, 8)),
    "lstm": (lambda: layers.LSTM(6, return_sequences=True, unroll=True), (4, 8)),
    "gru": (lambda: layers.GRU(6), (4, 8)),
    "simple rnn": (lambda: layers.SimpleRNN(6, unroll=True), (4, 8)),
    "convlstm": (lambda: layers.ConvLSTM1D(6, 3), (4, 7, 5)),
    "bidirectional": (lambda: layers.Bidirectional(layers.GRU(6)), (4, 8)),
    "time distributed": (lambda: layers.TimeDistributed(layers.Dense(6)), (5, 8)),
    "grouped queries": (lambda: layers.GroupQueryAttention(4, 4, 2), ATTENTION),
    "plain attention": (layers.Attention, [(6, 8), (5, 8)]),
    "additive attention": (layers.AdditiveAttention, [(6, 8), (5, 8)]),
    "concatenation": (layers.Concatenate, [(5, 8), (5, 4)]),
    "product": (layers.Multiply, [(6, 8), (6, 8)]),
    "dot": (lambda: layers.Dot(-1), [(5, 8), (4, 8)]),
    "relu": (layers.ReLU, (5, 8)),
    "prelu": (layers.PReLU, (5, 8)),
    "gelu": (lambda: layers.Activation("gelu"), (6, 8)),
    "softmax": (layers.Softmax, (5, 8)),
    "softmax as activation": (lambda: layers.Activation("softmax"), (5, 8)),
    "dense with softmax": (lambda: layers.Dense(6, activation="softmax"), (8,)),
    "largest two of each": (lambda: operation_class("top_k")(2), (5, 8)),
    "rescaling": (lambda: layers.Rescaling([1.0, -2.0, 3.0, 4.0]), (6, 4)),
    "dropout": (lambda: layers.Dropout(0.5), (6, 8)),
    "masking": (layers.Masking, (4, 8)),
    "matrix product": (lambda: operation_class("matmul")(), {"x1": (5, 8), "x2": (8, 4)}),
    "flatten": (layers.Flatten, (3, 4, 8)),
    "reshape": (lambda: layers.Reshape((4, 10)), (5, 8)),
    "permute": (lambda: layers.Permute((2, 1)), (5, 8)),
    "repeat": (lambda: layers.RepeatVector(3), (8,)),
    "padding": (lambda: layers.ZeroPadding1D(2), (6, 8)),
    "upsampling": (lambda: layers.UpSampling1D(2), (6, 8)),
    "largest": (lambda: layers.MaxPooling2D(2), (6, 6, 8)),
    "average": (lambda: layers.AveragePooling1D(2), (6, 8)),
    "global average": (layers.GlobalAveragePooling1D, (5, 8)),
    "global largest": (layers.GlobalMaxPooling2D, (5, 4, 8)),
}


@pytest.mark.parametrize("name", FAST)
def test_rules_of_this_package(name):
    build, shape, *dtype = FAST[name]
    check_rule(build(), shape, dtype=dtype[0] if dtype else "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_rules_of_this_package(name):
    build, shape = SLOW[name]
    check_rule(build(), shape)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.skipif(not hasattr(layers, "ReversibleEmbedding"), reason="a later Keras has it")
def test_an_embedding_backwards_counts_as_a_dense_layer(tied):
    layer = layers.ReversibleEmbedding(5, 8, tie_weights=tied)
    check_rule(layer, (4, 8), call_kwargs={"reverse": True})


# Multiplications --------------------------------------------------------------------


def test_products_with_kernels_are_counted(rng):
    first, second = (tf.Variable(rng.normal(size=(4, 4)), dtype=tf.float32) for _ in "ab")
    x = tf.ones((1, 3, 4))

    def counted(function):
        return kernel_multiplications(function, [x])

    assert counted(lambda x: x @ first) == 3 * 4 * 4
    assert counted(lambda x: x @ (first @ second)) == 3 * 4 * 4  # as LoRA makes a kernel
    assert counted(lambda x: tf.matmul(x, x, transpose_b=True)) == 0
    assert counted(lambda x: tf.einsum("abc,cd->abd", x, first)) == 3 * 4 * 4
    assert counted(lambda x: tf.ones((2, 4)) @ first + tf.reduce_sum(x)) == 2 * 4 * 4
    assert (
        counted(lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) < 0, lambda y: y, [x])) is None
    )
