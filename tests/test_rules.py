"""Each rule's absolute network against the layer itself, and rules of users."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from nets import randomise

import keras_nisp as kn
from keras_nisp.channels import registry
from keras_nisp.channels.rule import Normalisation, PlainKernel
from keras_nisp.testing import check_rule

FIRST = {"data_format": "channels_first"}
# Layers that are linear once weights are positive, biases zero and activations linear; then
# the absolute network must give what the layer gives on positive inputs.
LINEAR = {
    "conv1d": (lambda: layers.Conv1D(4, 3, use_bias=False), (9, 3)),
    "causal": (lambda: layers.Conv1D(4, 3, padding="causal", use_bias=False), (9, 3)),
    "conv2d": (lambda: layers.Conv2D(4, 3, 2, "same", use_bias=False), (9, 8, 3)),
    "dilated": (lambda: layers.Conv2D(4, 3, dilation_rate=2, use_bias=False), (9, 8, 3)),
    "channels first": (lambda: layers.Conv2D(4, 3, use_bias=False, **FIRST), (3, 9, 8)),
    "grouped": (lambda: layers.Conv2D(6, 3, groups=2, use_bias=False), (9, 8, 4)),
    "depthwise by groups": (lambda: layers.Conv2D(8, 3, groups=4, use_bias=False), (9, 8, 4)),
    "conv3d": (lambda: layers.Conv3D(4, 2, use_bias=False), (5, 4, 3, 2)),
    "depthwise1d": (lambda: layers.DepthwiseConv1D(3, use_bias=False), (9, 3)),
    "depthwise2d": (
        lambda: layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, use_bias=False),
        (9, 8, 3),
    ),
    "separable1d": (lambda: layers.SeparableConv1D(5, 3, use_bias=False), (9, 3)),
    "separable2d": (
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2, use_bias=False),
        (9, 8, 3),
    ),
    "transposed1d": (lambda: layers.Conv1DTranspose(4, 3, 2, use_bias=False), (5, 3)),
    "transposed2d": (lambda: layers.Conv2DTranspose(4, 3, 2, "same", use_bias=False), (5, 4, 3)),
    "transposed3d": (lambda: layers.Conv3DTranspose(4, 2, use_bias=False), (3, 3, 3, 2)),
    "dense": (lambda: layers.Dense(4, use_bias=False), (7, 3)),
    "average pooling": (lambda: layers.AveragePooling2D(3, 2, "same"), (9, 8, 3)),
    "average pooling, first": (lambda: layers.AveragePooling2D(2, **FIRST), (3, 9, 8)),
    "global average": (lambda: layers.GlobalAveragePooling2D(keepdims=True), (9, 8, 3)),
    "flatten, first": (lambda: layers.Flatten(**FIRST), (3, 4, 5)),
    "reshape": (lambda: layers.Reshape((5, -1)), (4, 5, 3)),
    "permute": (lambda: layers.Permute((3, 1, 2)), (4, 5, 3)),
    "padding": (lambda: layers.ZeroPadding2D(((1, 2), (0, 3))), (4, 5, 3)),
    "cropping": (lambda: layers.Cropping2D(((1, 0), (0, 2))), (4, 5, 3)),
    "upsampling": (lambda: layers.UpSampling2D(2), (4, 5, 3)),
    "einsum dense": (lambda: layers.EinsumDense("abc,cde->abde", (7, 2, 4)), (7, 3)),
    "resizing": (lambda: layers.Resizing(7, 3), (4, 5, 3)),
    "repeat vector": (lambda: layers.RepeatVector(3), (4,)),
    "rescaling": (lambda: layers.Rescaling([1.0, 2.0, 3.0]), (4, 5, 3)),
    "spectral norm": (
        lambda: layers.SpectralNormalization(layers.Conv2D(4, 3, use_bias=False)),
        (5, 6, 3),
    ),
}
if hasattr(layers, "AdaptiveAveragePooling2D"):  # new in Keras 3.13
    LINEAR["adaptive average"] = (lambda: layers.AdaptiveAveragePooling2D((2, 3)), (5, 7, 3))


def only_call(layer, shape):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    for weight in layer.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    (call,) = kn.trace(model).calls
    return model, call


@pytest.mark.parametrize("name", LINEAR)
def test_absolute_layer(name, rng):
    build, shape = LINEAR[name]
    model, call = only_call(build(), shape)
    x = tf.constant(rng.uniform(size=(1, *shape)), tf.float32)
    absolute = np.asarray(call.rule.absolute(call, x))
    for weight in model.weights:
        weight.assign(np.abs(weight.numpy()))
    np.testing.assert_allclose(absolute, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("first", [False, True])
def test_max_pooling_counts_every_cell_of_a_window(padding, size, stride, first, rng):
    """It is the sum over a window: average pooling of a padded map times the window."""
    layer = layers.MaxPooling2D(size, stride, padding, **(FIRST if first else {}))
    _, call = only_call(layer, (2, 7, 8) if first else (7, 8, 2))
    x = rng.uniform(size=(1, 7, 8, 2)).astype("float32")
    kernel = np.repeat(np.ones((size, size, 1, 1), "float32"), 2, 2)
    expected = tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), padding.upper())
    received = call.rule.absolute(call, tf.transpose(x, (0, 3, 1, 2)) if first else x)
    received = tf.transpose(received, (0, 2, 3, 1)) if first else received
    np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_global_max_pooling_counts_every_cell(rng):
    _, call = only_call(layers.GlobalMaxPooling2D(), (4, 5, 3))
    x = rng.uniform(size=(1, 4, 5, 3)).astype("float32")
    np.testing.assert_allclose(call.rule.absolute(call, x), x.sum((1, 2)), rtol=1e-5)


def test_layer_norm_with_a_mask_is_the_layer_on_fewer_channels(rng):
    model, call = only_call(layers.LayerNormalization(), (3, 5))
    x = tf.constant(rng.normal(size=(2, 3, 5)), "float32")
    np.testing.assert_allclose(call.rule.masked(call, [tf.ones((1, 1, 5))], x), model(x), atol=1e-6)
    kept = np.array([0, 2, 3])
    smaller, _ = only_call(layers.LayerNormalization(), (3, 3))
    for small, large in zip(smaller.weights, model.weights, strict=True):
        small.assign(large.numpy()[kept])
    mask = np.isin(np.arange(5), kept).astype("float32")
    received = np.asarray(call.rule.masked(call, [mask], x))[..., kept]
    np.testing.assert_allclose(received, smaller(x.numpy()[..., kept]), atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Square(layers.Layer):
    """Keeps shapes, has no weights."""

    def call(self, x):
        return x * x


def test_register_rule_refuses_what_is_no_layer():
    with pytest.raises(TypeError, match="layer classes"):
        kn.register_rule("Dense")
    with pytest.raises(TypeError, match=r"subclass of keras_nisp\.Rule"):
        kn.register_rule(Square)(Square)


# Facts ----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
class Standardised(layers.Layer):
    """Statistics from training, by names of its own."""

    def build(self, shape):
        self.centre = self.add_weight(shape=shape[-1:], trainable=False, name="centre")
        self.power = self.add_weight(
            shape=shape[-1:], trainable=False, initializer="ones", name="variance"
        )

    def call(self, x):
        return (x - self.centre) / keras.ops.sqrt(self.power + 1e-3)


@keras.saving.register_keras_serializable(package="tests")
class Matrix(layers.Layer):
    """A dense layer without activation, by names of its own."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], self.width), name="matrix")
        self.shift = self.add_weight(shape=(self.width,), name="shift")

    def call(self, x):
        return x @ self.matrix + self.shift

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def register_own_layers():
    @kn.register_rule(Standardised)
    class StandardisedRule(kn.Rule):
        def trace(self, call, x):
            names = call.along(x, -1)
            call.bind(call.layer.centre, own={0: names})
            call.bind(call.layer.power, own={0: names})
            return x.names

        def absolute(self, call, x):
            return x / tf.sqrt(tf.convert_to_tensor(call.layer.power) + 1e-3)

        def normalisation(self, layer):
            return Normalisation(layer.centre, layer.power, None, None, 1e-3, -1)

    @kn.register_rule(Matrix)
    class MatrixRule(kn.Rule):
        def trace(self, call, x):
            names = call.create(call.layer.width)
            read, create = {0: call.along(x, -1)}, {1: names}
            call.bind(call.layer.matrix, read=read, create=create, positions=1)
            call.bind(call.layer.shift, own={0: names})
            return call.spread(names)

        def absolute(self, call, x):
            return x @ tf.abs(tf.convert_to_tensor(call.layer.matrix))

        def resize(self, call, config, width):
            return {**config, "width": width(call.outputs[0].line(-1))}

        def plain_kernels(self, layer):
            return [PlainKernel(layer.matrix, layer.shift)]


def test_layers_of_ones_own_are_recalibrated_by_what_their_rules_say(rng):
    register_own_layers()
    for layer, shape in ((Standardised(), (6,)), (Matrix(6), (4,))):
        check_rule(layer, shape)
    inputs = keras.Input((3,))
    hidden = Standardised(name="norm")(layers.Dense(8, name="first")(inputs))
    model = randomise(keras.Model(inputs, Matrix(2, name="last")(hidden)))
    x = rng.normal(2, 3, (512, 3)).astype("float32")
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    kn.recalibrate(small, x, model, plan, ridge=1e-9)
    # Four channels of three inputs say all: nothing is lost once kernels make up for the others.
    np.testing.assert_allclose(small(x), model(x), atol=1e-2)
    # Statistics change as those of the samples do.
    kept = [i for i in range(8) if i not in plan.creators[0].removed]
    before, after = (np.asarray(net.get_layer("first")(x)) for net in (model, small))
    ratio = after.std(0) / before.std(0)[kept]
    stored = model.get_layer("norm").centre.numpy()[kept]
    expected = after.mean(0) - ratio * (before.mean(0)[kept] - stored)
    np.testing.assert_allclose(small.get_layer("norm").centre, expected, rtol=1e-2, atol=1e-2)


def test_a_rule_need_not_say_at_how_many_positions(rng):
    """Then no FLOPs are counted; what reads all the same is refitted, and its damage is seen."""

    class Product(layers.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(shape=(shape[-1], 4), name="matrix")

        def call(self, x):
            return x @ self.matrix

    @kn.register_rule(Product)
    class ProductRule(kn.Rule):
        def trace(self, call, x):
            names = call.create(4)
            call.bind(call.layer.matrix, read={0: call.along(x, -1)}, create={1: names})
            return call.fix(call.spread(names), "is as wide as its class says")

        def plain_kernels(self, layer):
            return [PlainKernel(layer.matrix, None)]

    inputs = keras.Input((3,))
    hidden = layers.Dense(8, use_bias=False, name="first")(inputs)
    model = randomise(keras.Model(inputs, Product(name="last")(hidden)))
    x = rng.normal(size=(64, 3)).astype("float32")
    plan = kn.plan_pruning(model, kn.Magnitude(), params_reduction=0.3, calibration=x)
    assert plan.budget.allocation == "predicted"
    small = kn.recalibrate(kn.rebuild(model, plan), x, model, plan, ridge=1e-9)
    # Four or more channels of three inputs say all.
    assert plan.creators[0].kept >= 3
    np.testing.assert_allclose(small(x), model(x), atol=1e-3)


def test_a_batch_normalization_without_a_rule_has_no_score():
    class Other(layers.BatchNormalization):
        def call(self, x, training=None, mask=None):
            return super().call(x[..., ::-1], training=training, mask=mask)

    inputs = keras.Input((3,))
    x = layers.BatchNormalization(name="known")(layers.Dense(6, name="a")(inputs))
    x = Other(name="other")(layers.Dense(6, name="b")(x))
    model = randomise(keras.Model(inputs, layers.Dense(2)(x)))
    with pytest.warns(kn.UnknownLayerWarning, match="'other'"):
        channel_map = kn.trace(model)
    scores = kn.BNScale()(channel_map)
    known = channel_map.creators[0].units
    expected = np.abs(model.get_layer("known").gamma)
    np.testing.assert_allclose(scores[known], expected, rtol=1e-6)
    assert np.isnan(np.delete(scores, known)).all()


def test_the_old_name_of_fix_all_warns():
    class Old(layers.Layer):
        def call(self, x):
            return x

    @kn.register_rule(Old)
    class OldRule(kn.PassThrough):
        def trace(self, call, x):
            return call.block("which is not followed")

    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), Old(name="old"), layers.Dense(2)])
    with pytest.warns(DeprecationWarning, match=r"now called `call\.fix_all\(reason\)`"):
        channel_map = kn.trace(model)
    units = channel_map.creators[0].units.tolist()
    assert all(
        channel_map.reasons[unit] == ["enters 'old', which is not followed"] for unit in units
    )


def test_recognised_kinds_fill_no_cache():
    @keras.saving.register_keras_serializable("test_rules")
    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=shape[-1:], initializer="ones")

        def call(self, x):
            return x * self.factor

    model = keras.Sequential([keras.Input((4,)), layers.Dense(6), Scale(), layers.Dense(2)])
    assert kn.plan_pruning(model, kn.Magnitude(), ratio=0.5).creators[0].kept == 3
    sizes = []
    for _ in range(3):
        kn.profile(model)
        sizes.append(registry._signature.cache_info().currsize)
    assert len(set(sizes)) == 1


def test_no_class_gets_two_reasons():
    with pytest.raises(ValueError, match="Dense has a rule already"):
        registry.fix_deliberately("which is a trial", keras.layers.Dense)
