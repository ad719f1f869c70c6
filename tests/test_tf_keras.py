"""`to_tf_keras`: agreement or refusal; TFMOT after pruning; what TFMOT leaves in the process."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops
from nets import NETS, example_inputs, random_plan, randomise

import keras_nisp as kn
from keras_nisp import import_tfmot, quantization_aware, to_tf_keras
from keras_nisp.errors import ConversionError
from keras_nisp.export import tf_keras_layers as bridge
from keras_nisp.export.interpreter import load_interpreter

tf_keras = pytest.importorskip("tf_keras")
if importlib.util.find_spec("tensorflow_model_optimization") is None:
    pytest.skip("needs TFMOT", allow_module_level=True)

pytestmark = pytest.mark.bridges

ACTIVATIONS = [
    *("linear", "relu", "elu", "selu", "gelu", "mish", "softmax", "sigmoid", "tanh", "silu"),
    *("softplus", "softsign", "exponential", "relu6", "leaky_relu", "hard_sigmoid", "hard_silu"),
]


def assert_same(model, converted, tolerance=1e-5):
    """Outputs agree on data other than what `to_tf_keras` has looked at."""
    x = example_inputs(model, seed=1)
    expected = keras.tree.flatten(model(x, training=False))
    received = keras.tree.flatten(converted(x, training=False))
    for want, got in zip(expected, received, strict=True):
        want, got = np.asarray(want), np.asarray(got)
        np.testing.assert_allclose(want, got, atol=tolerance * np.abs(want).max())


def image_model(*steps, shape=(8, 8, 3)):
    """A convolution, the steps, and one more convolution."""
    x = inputs = keras.Input(shape, name="image")
    x = layers.Conv2D(6, 3, padding="same", name="first")(x)
    for step in steps:
        x = step(x)
    if len(x.shape) == 4:
        x = layers.Conv2D(4, 1, name="last")(x)
    return randomise(keras.Model(inputs, x))


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_networks_pruned(net):
    model = randomise(net())
    small = kn.rebuild(model, random_plan(model))
    converted = to_tf_keras(small)
    assert isinstance(converted, tf_keras.Model)
    assert converted.count_params() == small.count_params()
    assert_same(small, converted)


@pytest.mark.parametrize(
    "name",
    [
        *("MobileNetV2", "EfficientNetB0"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ResNet50", "DenseNet121", "MobileNetV3Small")
        ),
    ],
)
def test_applications_pruned(name):
    settings = {"weights": None, "classes": 10, "classifier_activation": None}
    model = randomise(getattr(keras.applications, name)(input_shape=(32, 32, 3), **settings))
    small = kn.rebuild(model, random_plan(model))
    converted = to_tf_keras(small)
    assert [layer.name for layer in small.layers if layer.trainable_weights] == [
        layer.name for layer in converted.layers if layer.trainable_weights
    ]
    assert_same(small, converted)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    """As a setting, as a layer and as an operation of the graph."""
    steps = [
        layers.Conv2D(5, 1, activation=activation),
        layers.Activation(activation),
        layers.Dense(5, activation=activation),
    ]
    operation = getattr(ops, activation, None)
    if operation is not None:
        steps.append(lambda x: operation(x, False) if activation == "gelu" else operation(x))
    model = image_model(lambda x: layers.Concatenate()([step(x) for step in steps]))
    assert_same(model, to_tf_keras(model))


@pytest.mark.parametrize(
    "step",
    [
        layers.ReLU(max_value=3.0, negative_slope=0.2, threshold=0.5),
        layers.LeakyReLU(negative_slope=0.03),
        layers.PReLU(shared_axes=[1, 2]),
        layers.ELU(0.4),
        layers.Softmax(axis=1),
        layers.LayerNormalization(),
        layers.GroupNormalization(groups=3),
        layers.UnitNormalization(),
        layers.BatchNormalization(center=False, epsilon=0.1),
        layers.Rescaling(0.5, offset=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        layers.Normalization(mean=[0.1] * 6, variance=[2.0] * 6),
        layers.Conv2DTranspose(5, 3, strides=2, kernel_regularizer="l2"),
        layers.SeparableConv2D(5, 3, dilation_rate=2, depth_multiplier=2),
        layers.Conv2D(8, 3, groups=2, kernel_constraint="max_norm", use_bias=False),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.SpatialDropout2D(0.3),
        layers.Permute((2, 1, 3)),
        layers.EinsumDense("abcd,de->abce", (None, 8, 5)),
        lambda x: 2.0 * x + 1.0 - x / 4.0,
        lambda x: 1.0 - (-x),
        lambda x: ops.maximum(x, layers.Conv2D(6, 1)(x)) * ops.sigmoid(x),
        lambda x: x * np.arange(6, dtype="float32") - np.ones(6, "float32"),
        lambda x: x * ops.mean(x, axis=(1, 2), keepdims=True),
        lambda x: ops.mean(x, axis=(-2, -3)),
        lambda x: ops.concatenate([x, ops.leaky_relu(x, 0.3)], axis=-1),
        lambda x: keras.activations.relu(x, negative_slope=0.1, max_value=2.0),
        lambda x: ops.softmax(ops.reshape(x, (-1, 64, 6)), axis=1),
    ],
    ids=lambda step: getattr(step, "__name__", None) or step.name,
)
def test_layers_and_operations(step):
    model = image_model(step)
    converted = to_tf_keras(model)
    assert_same(model, converted)
    kinds = {type(layer).__name__ for layer in converted.layers}
    assert not {"TFOpLambda", "SlicingOpLambda", "Lambda"} & kinds  # which TFMOT refuses


def test_sequences():
    inputs = keras.Input((12,), name="tokens")  # float32, as it is by default
    x = layers.Embedding(30, 8, name="embedding")(inputs)
    x = layers.LSTM(6, return_sequences=True, name="lstm")(x)
    x, state = layers.GRU(6, return_sequences=True, return_state=True, name="gru")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.SimpleRNN(4, go_backwards=True, name="rnn")(x)
    model = randomise(keras.Model(inputs, [layers.Dense(3, name="head")(x), state]))
    converted = to_tf_keras(model)
    tokens = np.random.default_rng(0).integers(0, 30, (4, 12)).astype("float32")
    for want, got in zip(model(tokens), converted(tokens), strict=True):
        np.testing.assert_allclose(want, got, atol=1e-6)


def test_adapted_normalization(rng):
    model = keras.Sequential([keras.Input((5,)), layers.Normalization(), layers.Dense(2)])
    model.layers[0].adapt(rng.normal(3.0, 2.0, (100, 5)))
    assert_same(model, to_tf_keras(model))


def test_mixed_precision_becomes_float32():
    model = image_model(layers.BatchNormalization(name="bn"))
    half = keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "mixed_float16"}
        ),
    )
    half.set_weights(model.get_weights())
    assert_same(model, to_tf_keras(half))


@pytest.mark.parametrize("settings", [{"shape": (None, None, 3)}, {"batch_shape": (1, 8, 8, 3)}])
def test_sizes_that_are_open_or_fixed(settings):
    inputs = keras.Input(**settings)
    x = layers.Conv2D(4, 3, name="conv")(inputs=inputs)
    model = randomise(keras.Model(inputs, [layers.GlobalMaxPooling2D(name="pool")(x), inputs]))
    converted = to_tf_keras(model)
    assert tuple(converted.inputs[0].shape) == tuple(inputs.shape)
    x = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    np.testing.assert_allclose(model(x)[0], converted(x)[0], atol=1e-6)


def test_structures_and_nested_models():
    model = randomise(next(net for net in NETS if net.__name__ == "nested")())
    converted = to_tf_keras(model)
    assert set(converted.input) == {"left", "right"}
    assert set(converted.output) == {"one", "two"}
    names = [layer.name for layer in converted.layers]
    assert names.count("part/conv") == 1  # called twice, but one layer
    assert "tail/conv" in names
    assert converted.count_params() == model.count_params()


def test_layers_keep_what_training_needs():
    backbone = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2), name="dense"),
            layers.BatchNormalization(momentum=0.7, name="bn"),
        ],
        name="backbone",
    )
    backbone.layers[0].trainable = False
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2, name="head")(backbone(inputs, training=False)))
    converted = to_tf_keras(randomise(model))
    dense, norm = (converted.get_layer(f"backbone/{name}") for name in ("dense", "bn"))
    assert not dense.trainable
    assert dense.kernel_regularizer.get_config() == pytest.approx({"l1": 0.1, "l2": 0.2})
    assert norm.momentum == 0.7
    before = norm.get_weights()[2:]
    converted.compile("sgd", "mse")
    converted.fit(np.ones((4, 6)), np.ones((4, 2)), verbose=0)  # BN is called in inference mode
    np.testing.assert_array_equal(before[0], norm.get_weights()[2])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (layers.Dense(4, activation="celu", name="x"), "'x' .Dense.* `activation='celu'`"),
        (layers.Activation(lambda x: x, name="x"), "'x' .Activation.* `activation="),
        (layers.Conv2D(4, 1, activity_regularizer="l2", name="x"), "`activity_regularizer`"),
        (layers.Conv2D(4, 1, kernel_regularizer="orthogonal_regularizer"), "`kernel_regularizer="),
        (layers.RandomFlip(name="flip"), "'flip' .RandomFlip.*no counterpart"),
        (layers.Lambda(lambda x: x, name="x"), "'x' .Lambda.*no counterpart"),
        (layers.TimeDistributed(layers.Dense(3), name="x"), "'x' .TimeDistributed.*no counterpart"),
        (lambda x: x[:, 0], "GetItem.*no counterpart"),
        (layers.Dropout(0.5, dtype="float64", name="x"), "'x' .*dtype policy 'float64'"),
        (lambda x: ops.gelu(x, approximate=True), "Gelu.*no counterpart"),
        (lambda x: ops.cumsum(x, axis=1), "Cumsum.*no counterpart"),
        (lambda x: layers.Dropout(0.5)(x, training=True), "training=True"),
        (lambda x: x + ops.ones((2, 1, 8, 8, 6)), "Add.*no counterpart"),
        (
            lambda x: layers.LSTM(3, recurrent_activation="hard_sigmoid")(
                layers.Reshape((64, 6))(x)
            ),
            "recurrent_activation='hard_sigmoid'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Lambda.*layer.*:UserWarning")
def test_refusals(step, message):
    with pytest.raises(ConversionError, match=message) as caught:
        to_tf_keras(image_model(step))
    assert "export_tflite" in str(caught.value)


def test_settings_that_tf_keras_does_not_know_are_refused():
    model = image_model()
    accepted = bridge.accepted_by(tf_keras.layers.Conv2D) - {"padding"}
    with pytest.raises(ConversionError, match=r"no setting `padding` \(here 'same'\)"):
        bridge.settings_of(model.get_layer("first"), "first", accepted)
    assert "padding" not in bridge.settings_of(model.get_layer("last"), "last", accepted)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`:UserWarning")
def test_quantised_models_are_refused():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="dense")])
    model.quantize("int8")
    with pytest.raises(TypeError, match=r"was quantized by Keras .*'dense' holds integers"):
        to_tf_keras(model)


def test_masks_are_refused():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Embedding(9, 4, mask_zero=True), layers.LSTM(3)]
    )
    with pytest.raises(ConversionError, match=r"masks .`mask_zero`. are not converted"):
        to_tf_keras(model)


def test_other_models_are_refused():
    class Subclassed(keras.Model):
        pass

    with pytest.raises(TypeError, match="subclassed model"):
        to_tf_keras(Subclassed())
    with pytest.raises(TypeError, match="Expected `model` to be a keras"):
        to_tf_keras(tf_keras.Sequential())


def test_a_layer_that_computes_something_else_is_named(monkeypatch):
    """Also where the outputs do not show it."""
    monkeypatch.setattr(bridge, "RENAMED", {})
    monkeypatch.setitem(bridge.IMPLIED, "negative_slope", 0.1)
    model = image_model(layers.LeakyReLU(0.1, name="leaky"), lambda x: 0.0 * x)
    with pytest.raises(ConversionError, match=r"'leaky' \(LeakyReLU\).*outputs differ by"):
        to_tf_keras(model)


@pytest.mark.parametrize("value", [None, "0"])
def test_tfmot_leaves_no_trace_in_the_process(value):
    code = """
import os, sys
import keras, tensorflow as tf
from keras_nisp import import_tfmot
assert not {"tf_keras", "tensorflow_model_optimization"} & set(sys.modules)
tfmot = import_tfmot()
print(os.environ.get("TF_USE_LEGACY_KERAS"), tf.keras.Model is keras.Model, tfmot.__name__)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    if value is not None:
        environment["TF_USE_LEGACY_KERAS"] = value
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.split() == [str(value), "True", "tensorflow_model_optimization"]


@pytest.fixture
def pruned():
    """A pruned residual CNN, and data."""
    x = inputs = keras.Input((8, 8, 3), name="image")
    for i in range(2):
        y = layers.Conv2D(12, 3, padding="same", use_bias=False, name=f"conv{i}")(x)
        y = layers.BatchNormalization(name=f"bn{i}")(y)
        x = layers.ReLU(name=f"relu{i}")(layers.Add()([x, y]) if i else y)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = randomise(keras.Model(inputs, layers.Dense(3, name="head")(x), name="residual"))
    small = kn.rebuild(model, random_plan(model))
    rng = np.random.default_rng(0)
    return small, rng.random((32, 8, 8, 3), np.float32), rng.integers(0, 3, 32)


def compiled(model, rate=0.01):
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.SGD(rate), loss)
    return model


def int8_outputs(model, x):
    """What the interpreter makes of a model trained quantisation-aware, in one batch."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    interpreter = load_interpreter(converter.convert())
    kernels = [d for d in interpreter.get_tensor_details() if len(d["shape"]) == 4]
    assert sum(d["dtype"] is np.int8 for d in kernels) > 2
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(source["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(target["index"])


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs:UserWarning")
def test_quantisation_aware_training_of_a_pruned_network(pruned):
    small, x, y = pruned
    model = quantization_aware(small)
    assert {"quant_conv0", "quant_bn1", "quant_head"} <= {layer.name for layer in model.layers}
    compiled(model).fit(x, y, verbose=0)
    expected = model.predict(x, verbose=0)
    received = int8_outputs(model, x)
    assert np.abs(expected - received).max() < 0.05 * np.abs(expected).max()


def test_magnitude_sparsity_after_pruning(pruned):
    small, x, y = pruned
    sparsity = import_tfmot().sparsity.keras
    schedule = sparsity.ConstantSparsity(0.75, begin_step=0, frequency=1)
    model = sparsity.prune_low_magnitude(to_tf_keras(small), pruning_schedule=schedule)
    compiled(model).fit(x, y, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    kernels = [w for w in sparsity.strip_pruning(model).get_weights() if w.ndim > 1]
    assert [np.mean(kernel == 0) for kernel in kernels] == pytest.approx([0.75] * 3, abs=0.03)


def test_two_of_four_sparsity_after_pruning(pruned):
    small, x, y = pruned
    sparsity = import_tfmot().sparsity.keras
    schedule = sparsity.ConstantSparsity(0.5, begin_step=0, frequency=1)
    converted = to_tf_keras(small)
    model = sparsity.prune_low_magnitude(converted, schedule, sparsity_m_by_n=(2, 4))
    compiled(model).fit(x, y, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    kernel = sparsity.strip_pruning(model).get_layer("conv1").get_weights()[0]
    rows = kernel.transpose(0, 1, 3, 2).reshape(-1, kernel.shape[2])
    whole = rows[:, : rows.shape[1] // 4 * 4].reshape(-1, 4)
    assert (whole != 0).sum(axis=1).max() <= 2


def test_clustered_weights_after_pruning(pruned):
    small, x, y = pruned
    clustering = import_tfmot().clustering.keras
    model = clustering.cluster_weights(
        to_tf_keras(small),
        number_of_clusters=4,
        cluster_centroids_init=clustering.CentroidInitialization.LINEAR,
    )
    compiled(model).fit(x, y, verbose=0)
    kernels = [w for w in clustering.strip_clustering(model).get_weights() if w.ndim > 1]
    assert all(len(np.unique(kernel)) <= 4 for kernel in kernels)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda x: layers.BatchNormalization(name="bn")(layers.ReLU()(x)), "'bn' .*right after"),
        (layers.Rescaling(0.5, name="rescaling"), r"layer 'rescaling' \(Rescaling\)"),
        (layers.ELU(name="elu"), r"layer 'elu' \(ELU\)"),
        (layers.Activation("softplus", name="act"), r"'act' \(Activation with .* 'softplus'"),
        (layers.Conv2D(4, 1, activation="elu", name="c"), r"'c' \(Conv2D with activation 'elu'"),
    ],
)
def test_what_tfmot_does_not_support_is_named(step, message):
    with pytest.raises(ConversionError, match=f"TFMOT does not support .*{message}") as caught:
        quantization_aware(image_model(step))
    assert "quantization='int8'" in str(caught.value)


# The table of docs/tfmot.md; `None` says that TFMOT takes it, else what it refuses.
NETWORKS = {
    "ResNet50": None,
    "MobileNet": None,
    "MobileNetV2": None,
    "VGG16": None,
    "InceptionV3": None,
    "Xception": None,
    "ResNet50V2": "BatchNormalization",
    "DenseNet121": "BatchNormalization",
    "NASNetMobile": "BatchNormalization",
    "EfficientNetB0": "Rescaling",
    "MobileNetV3Small": "Rescaling",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_tfmot_takes(name):
    sizes = {"InceptionV3": 75, "Xception": 71}
    shape = (sizes.get(name, 32),) * 2 + (3,)
    settings = {"weights": None, "include_top": False, "pooling": "avg", "input_shape": shape}
    model = getattr(keras.applications, name)(**settings)
    if NETWORKS[name] is None:
        quantized = quantization_aware(model)
        assert any(layer.name.startswith("quant_") for layer in quantized.layers)
        return
    with pytest.raises(ConversionError, match=rf"TFMOT does not support .*\({NETWORKS[name]}"):
        quantization_aware(model)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv1D(4, 3),
        layers.LSTM(4),
        layers.LayerNormalization(),
    ],
)
def test_sequences_are_refused_by_tfmot(layer):
    model = keras.Sequential([keras.Input((8, 3)), layer, layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ConversionError, match="TFMOT does not support"):
        quantization_aware(model)
