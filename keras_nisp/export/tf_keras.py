"""`to_tf_keras`: Keras 3 models as tf_keras models, which is what TFMOT works on.

A layer of the same name need not compute the same in both: settings were renamed, and some were
given another meaning. So only layers that are known are converted, every setting is accounted
for, and numbers are compared at the end, layer by layer and as a whole.
"""

import inspect
import os
import re
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp import copying, graph
from keras_nisp.data import random_samples
from keras_nisp.errors import ConversionError
from keras_nisp.export.tflite import in_float32
from keras_nisp.verification import LARGEST_TOLERANCE, amplification

if TYPE_CHECKING:
    import tf_keras

TOLERANCE = 1e-5
ASSUMED_SIZE = 32  # for input axes whose size is open
INSTEAD = (
    "For an int8 file without TFMOT: `keras_nisp.export_tflite(model, path, "
    "quantization='int8', representative_data=...)`."
)

# Layers of the same name, settings and weights in both.
SAME = {
    *(layers.Dense, layers.EinsumDense, layers.Embedding, layers.Activation),
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
    *(layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization),
    *(layers.UnitNormalization, layers.Normalization, layers.Rescaling, layers.Identity),
    *(layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU, layers.Softmax),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalAveragePooling3D, layers.Flatten, layers.Reshape, layers.Permute),
    *(layers.RepeatVector, layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum),
    *(layers.Minimum, layers.Concatenate, layers.Dot),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianNoise, layers.GaussianDropout),
    *(layers.LSTM, layers.GRU, layers.SimpleRNN, layers.MultiHeadAttention),
}
# Settings that tf_keras does not have, at the value that stands for what it does.
IMPLIED = {"data_format": "channels_last", "rms_scaling": False, "zero_output_for_mask": False}
RENAMED = {(layers.LeakyReLU, "negative_slope"): "alpha"}

# Activations of the same meaning, by their names in Keras 3.
ACTIVATIONS = {
    **{name: name for name in ("linear", "relu", "elu", "selu", "gelu", "mish", "softmax")},
    **{name: name for name in ("sigmoid", "tanh", "softplus", "softsign", "exponential")},
    "silu": "swish",
}
# Those that become layers of their own; tf_keras has others, or none, of these names.
COMPOSED = {"relu6", "leaky_relu", "hard_sigmoid", "hard_silu"}
OBJECTS = {"L1", "L2", "L1L2", "MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm"}


def to_tf_keras(model: keras.Model) -> "tf_keras.Model":
    """Converts a Keras 3 model to tf_keras (Keras 2), for TFMOT and other tools that need it.

    The result is a functional model that is not compiled. Layers keep names, weights, `trainable`,
    regularizers and constraints; initializers are left out. Nested models are written out, because
    TFMOT takes none: their layers are named `"backbone/conv1"`. Sums, products and activations of
    `keras.ops` become layers, and so do activations that tf_keras does not have (`hard_silu`).

    Args:
        model: a functional or `Sequential` model. Mixed precision becomes float32.

    Returns:
        A `tf_keras.Model` with copies of the weights. Each layer and the whole have been compared
        with the original on random data: they agree to 1e-5 of their outputs' scale. (The whole
        of a network that amplifies rounding errors: to ten times what 1e-6 at its inputs does.)

    Raises:
        ConversionError: a layer, operation, setting or dtype has no counterpart in tf_keras, or
            numbers differ.
        TypeError: `model` is no functional or `Sequential` model of Keras 3, or `model.quantize`
            has turned its weights into integers.
        ImportError: tf_keras is not installed.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, activation="hard_silu", name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(name="pool"),
    ... ])
    >>> converted = to_tf_keras(model)
    >>> x = np.random.rand(2, 8, 8, 3).astype("float32")
    >>> np.allclose(model(x), converted(x), atol=1e-6)
    True
    """
    graph.check_model(model)
    model = in_float32(model)
    keras_2 = _import_tf_keras()
    converter = _Converter(keras_2)
    inputs = converter.inputs(model)
    outputs = converter.run(model, inputs, converter.call)
    structure = graph.structured_inputs(model, inputs)
    converted = keras_2.Model(structure, outputs, name=model.name)
    converter.copy_weights()
    indices = [id(tensor) in converter.looked_up for tensor in inputs]
    _check(model, converted, converter, indices)
    return converted


def quantization_aware(model: keras.Model) -> "tf_keras.Model":
    """A Keras 3 model as a tf_keras model that emulates int8 while it trains, by TFMOT.

    Compile and fit the result with tf_keras, at a small learning rate; then
    `tf.lite.TFLiteConverter.from_keras_model` with `tf.lite.Optimize.DEFAULT` makes an int8 file
    of it. TFMOT supports plain CNNs, ResNets and MobileNetV2. It refuses networks in which
    BatchNormalization does not follow a convolution or Dense layer directly (DenseNet), and
    layers such as Rescaling and Multiply (EfficientNet, MobileNetV3).

    Args:
        model: a functional or `Sequential` model.

    Returns:
        The `tf_keras.Model` that TFMOT makes of `to_tf_keras(model)`, not compiled.

    Raises:
        ConversionError: the model cannot be converted to tf_keras, or TFMOT does not support it.
        ImportError: TFMOT or tf_keras is not installed.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    >>> quantization_aware(model).layers[-1].name
    'quant_head'
    """
    quantize = import_tfmot().quantization.keras.quantize_model
    converted = to_tf_keras(model)
    try:
        return quantize(converted)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"Model '{model.name}' cannot be trained quantisation-aware: TFMOT does not support "
            f"{_unsupported(converted, quantize, error)}. {INSTEAD}"
        ) from error


def import_tfmot() -> ModuleType:
    """Imports `tensorflow_model_optimization` without what it does to the process.

    When it is imported, TFMOT sets the environment variable `TF_USE_LEGACY_KERAS`. That turns
    `tf.keras` into Keras 2, here if nobody has used it before, and in every process that is
    started from here. This function has `tf.keras` loaded before, and puts the variable back.

    Returns:
        The module.

    Raises:
        ImportError: TFMOT cannot be imported.

    Example:

    >>> before = dict(os.environ)
    >>> tfmot = import_tfmot()
    >>> dict(os.environ) == before
    True
    """
    _ = tf.keras.Model  # lazy: what it is, is decided by the variable at its first use
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="distutils Version classes are deprecated")
            import tensorflow_model_optimization as tfmot
    except ImportError as error:
        raise ImportError(
            f"TFMOT cannot be imported ({error}): `pip install keras-nisp[tfmot]` installs it."
        ) from error
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return tfmot


def _import_tf_keras() -> ModuleType:
    try:
        import tf_keras
    except ImportError as error:
        raise ImportError(
            f"tf_keras cannot be imported ({error}): `pip install keras-nisp[tfmot]` installs it."
        ) from error
    return tf_keras


class _Converter:
    """Makes the counterpart of each operation; one each, so that what is shared stays shared.

    Args:
        keras_2: the module tf_keras.
    """

    def __init__(self, keras_2: ModuleType):
        self.keras_2 = keras_2
        self.counterparts: dict[int, Callable] = {}
        self.pairs: list[tuple] = []  # layers that hold the same weights
        self.names: set[str] = set()
        self.looked_up: set[int] = set()  # tensors that are indices, whatever their dtype

    def inputs(self, model: keras.Model) -> list:
        """New symbolic inputs, flat."""
        inputs = []
        names = graph.input_names(model)
        for tensor, name in zip(graph.body(model).inputs, names, strict=True):
            if tensor.sparse:
                raise ConversionError(f"Input '{name}' is sparse: tf_keras takes dense ones here.")
            size, *shape = tensor.shape
            self.names.add(name)
            inputs.append(self.keras_2.Input(shape, size, name=name, dtype=tensor.dtype))
        return inputs

    def run(self, model, inputs: list, call: Callable, prefix: str = "", training=None) -> Any:
        """Runs `call(operation, path, args, kwargs)` over all calls, those of nested models too.

        What a nested model is told about `training`, the layers in it are told.
        """

        def visit(node, args, kwargs):
            operation, path = node.operation, prefix + node.operation.name
            mode = kwargs.pop("training", None)
            mode = training if mode is None else mode
            if graph.is_graph(operation):
                nested = keras.tree.flatten(args[0] if args else kwargs["inputs"])
                return self.run(operation, nested, call, path + "/", mode)
            if mode is not None and "training" in inspect.signature(operation.call).parameters:
                kwargs["training"] = mode
            return call(operation, path, args, kwargs)

        return graph.replay(model, inputs, visit)

    def call(self, operation, path: str, args: tuple, kwargs: dict) -> Any:
        """The outputs of a call, by the operation's counterpart."""
        if isinstance(operation, keras.Layer):
            part = self._once(operation, lambda: self._layer(operation, path))
            if kwargs.get("training"):
                raise _refusal(operation, path, "it is called with `training=True`")
            kwargs = {key: value for key, value in kwargs.items() if value is not None}
        else:
            kind, settings, args = _as_layer(operation, path, args)
            make = self.activation if kind in ACTIVATIONS or kind in COMPOSED else self.make
            part = self._once(operation, lambda: make(kind, path, **settings))
        if isinstance(operation, layers.Embedding) and args:
            self.looked_up.add(id(args[0]))
        try:
            return part(*args, **kwargs)
        except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
            raise _refusal(operation, path, f"tf_keras does not take it ({error})") from error

    def compare(self, operation, path: str, args: tuple, kwargs: dict) -> Any:
        """The outputs of a call by the original, if the counterpart gives the same."""
        expected = graph.infer(operation, *args, **kwargs)
        difference = _difference(expected, self.call(operation, path, args, kwargs))
        if not difference <= TOLERANCE:
            reason = f"outputs differ by {difference:.1e} of their scale (please report this)"
            raise _refusal(operation, path, reason)
        return expected

    def copy_weights(self) -> None:
        for old, new in self.pairs:
            new.set_weights([np.asarray(weight) for weight in old.weights if new.weights])

    def make(self, kind: str, name: str, **settings) -> Any:
        """A new tf_keras layer of a name that is not taken yet."""
        unique, count = name, 0
        while unique in self.names:
            count += 1
            unique = f"{name}_{count}"
        self.names.add(unique)
        return getattr(self.keras_2.layers, kind)(name=unique, **settings)

    def activation(self, name: str, path: str) -> Callable:
        """An activation as a layer, or composed of several."""
        if name not in COMPOSED:
            return self.make("Activation", path, activation=ACTIVATIONS.get(name, name))
        if name == "relu6":
            return self.make("ReLU", path, max_value=6.0)
        if name == "leaky_relu":
            return self.make("LeakyReLU", path, alpha=0.2)
        # What hard sigmoid means in Keras 3; in tf_keras it is clip(0.2 * x + 0.5).
        product = self.make("Multiply", path) if name == "hard_silu" else None
        shift = self.make("Rescaling", f"{path}_shift", scale=1.0, offset=3.0)
        clip = self.make("ReLU", f"{path}_clip", max_value=6.0)
        scale = self.make("Rescaling", f"{path}_gate" if product else path, scale=1 / 6)
        if product is None:
            return lambda x: scale(clip(shift(x)))
        return lambda x: product([x, scale(clip(shift(x)))])

    def _once(self, operation, make: Callable) -> Callable:
        if id(operation) not in self.counterparts:
            self.counterparts[id(operation)] = make()
        return self.counterparts[id(operation)]

    def _layer(self, layer: keras.Layer, path: str) -> Callable:
        _check_layer(layer, path)
        kind = type(layer).__name__
        settings = _settings(layer, path, _accepted(getattr(self.keras_2.layers, kind)))
        activation = settings.get("activation")
        if isinstance(layer, layers.Activation):
            return self.activation(activation, path)
        if activation not in COMPOSED:
            return self._paired(layer, self.make(kind, path, **settings))
        new = self._paired(layer, self.make(kind, path, **{**settings, "activation": "linear"}))
        after = self.activation(activation, f"{path}_{activation}")
        return lambda *args, **kwargs: after(new(*args, **kwargs))

    def _paired(self, old: keras.Layer, new) -> Any:
        self.pairs.append((old, new))
        return new


def _check_layer(layer: keras.Layer, path: str) -> None:
    policy = layer.dtype_policy
    if {policy.compute_dtype, policy.variable_dtype} != {"float32"}:
        reason = f"it has the dtype policy '{policy.name}', and tf_keras models are made in float32"
        raise _refusal(layer, path, reason)
    if type(layer) not in SAME:
        raise _refusal(layer, path, "no counterpart in tf_keras is known to compute the same")


def _settings(layer: keras.Layer, path: str, accepted: set[str]) -> dict:
    """The layer's settings as its counterpart takes them; none is dropped that means something."""
    defaults = inspect.signature(type(layer).__init__).parameters
    settings = {}
    for key, value in copying.layer_config(layer).items():
        new_key = RENAMED.get((type(layer), key), key)
        if key in ("name", "dtype") or key.endswith("_initializer"):
            continue
        if key.endswith("activation"):
            value = _activation_setting(layer, path, key, value)
        elif key.endswith(("_regularizer", "_constraint")):
            value = _object_setting(layer, path, key, value)
        if new_key in accepted:
            settings[new_key] = value
        elif value != IMPLIED.get(key, getattr(defaults.get(key), "default", None)):
            raise _refusal(layer, path, f"tf_keras has no setting `{key}` (here {value!r})")
    if isinstance(layer, layers.Normalization):
        axes = settings["axis"] or ()
        for key, value in (("mean", layer.mean), ("variance", layer.variance)):
            value = np.asarray(value)
            settings[key] = value.reshape([value.shape[axis] for axis in axes]).tolist()
    return settings


def _activation_setting(layer: keras.Layer, path: str, key: str, value: Any) -> str:
    """An activation by the name it has in tf_keras, or one of those that are composed."""
    composable = not isinstance(layer, (layers.LSTM, layers.GRU, layers.SimpleRNN))
    if isinstance(value, str) and value in ACTIVATIONS:
        return ACTIVATIONS[value]
    if isinstance(value, str) and value in COMPOSED and composable:
        return value
    title = value if isinstance(value, str) else getattr(layer, key)
    reason = f"`{key}={title!r}` is something else in tf_keras, or unknown there"
    raise _refusal(layer, path, reason)


def _object_setting(layer: keras.Layer, path: str, key: str, value: Any) -> Any:
    """A regularizer or constraint as tf_keras writes it down."""
    if value is None:
        return None
    if key == "activity_regularizer":
        reason = f"`{key}` is divided by the batch size in tf_keras, and is not in Keras 3"
        raise _refusal(layer, path, reason)
    if value.get("class_name") not in OBJECTS:
        raise _refusal(layer, path, f"`{key}={value!r}` has no counterpart in tf_keras")
    return {"class_name": value["class_name"], "config": value["config"]}


def _accepted(cls: type) -> set[str]:
    """The settings that a tf_keras layer takes."""
    signatures = [inspect.signature(c.__init__).parameters for c in cls.__mro__[:-1]]
    return {"trainable", *(name for parameters in signatures for name in parameters)} - {"kwargs"}


def _as_layer(operation: keras.Operation, path: str, args: tuple) -> tuple[str, dict, tuple]:
    """An operation of `keras.ops` as a kind of layer or activation, its settings and arguments."""
    for constant in keras.tree.flatten(args):
        if isinstance(constant, keras.Variable):
            raise _refusal(operation, path, "it uses a variable, and the layer is not known")
    if type(operation) in PLAIN:
        return PLAIN[type(operation)], {}, args
    if type(operation) in BINARY:
        found = _binary(BINARY[type(operation)], *args)
    else:
        found = OPERATIONS.get(type(operation), lambda operation, *args: None)(operation, *args)
    if found is None:
        reason = "this operation, called like this, has no counterpart among the layers of tf_keras"
        if isinstance(operation, graph.operation_class("not_equal")):
            reason = "masks (`mask_zero`) are not converted"
        raise _refusal(operation, path, reason)
    return found


def _binary(kind: str, x: Any, y: Any) -> tuple | None:
    """Arithmetic as a merging layer, or with a constant as Rescaling: TFMOT knows no operations."""
    if not _is_constant(x) and not _is_constant(y):
        # tf_keras aligns shapes of other ranks at the batch axis, `keras.ops` at the last.
        known = kind != "Divide" and len(x.shape) == len(y.shape)
        return (kind, {}, ([x, y],)) if known else None
    (tensor, constant), first = ((y, x), True) if _is_constant(x) else ((x, y), False)
    constant = np.asarray(constant, np.float32)
    if constant.ndim > len(tensor.shape):
        return None
    if kind == "Add":
        scale, offset = 1.0, constant
    elif kind == "Subtract":
        scale, offset = (-1.0, constant) if first else (1.0, -constant)
    elif kind == "Multiply":
        scale, offset = constant, 0.0
    elif kind == "Divide" and not first:
        scale, offset = 1 / constant, 0.0
    else:
        return None
    settings = {"scale": np.asarray(scale).tolist(), "offset": np.asarray(offset).tolist()}
    return "Rescaling", settings, (tensor,)


def _is_constant(value: Any) -> bool:
    return isinstance(value, (int, float, list, tuple, np.ndarray, np.generic))


def _reshape(operation, x):
    sizes = operation.newshape
    open_batch = sizes[0] in (-1, None) and -1 not in sizes[1:]
    return ("Reshape", {"target_shape": sizes[1:]}, (x,)) if open_batch else None


def _mean(operation, x):
    axes, rank = operation.axis, len(x.shape)
    axes = [axes] if isinstance(axes, int) else list(axes or ())
    if rank not in (3, 4, 5) or sorted(axis % rank for axis in axes) != list(range(1, rank - 1)):
        return None
    settings = {"keepdims": operation.keepdims, "data_format": "channels_last"}
    return f"GlobalAveragePooling{rank - 2}D", settings, (x,)


PLAIN = {
    graph.operation_class("exp" if name == "exponential" else name): name
    for name in (
        *("relu", "relu6", "selu", "sigmoid", "tanh", "silu", "softplus", "softsign"),
        *("exponential", "hard_sigmoid", "hard_silu"),
    )
}
BINARY = {
    **{
        graph.operation_class(kind.lower()): kind
        for kind in ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Divide")
    },
    graph.operation_class("true_divide"): "Divide",
}
OPERATIONS = {
    **{
        cls: lambda op, x: (
            "ReLU",
            {key: getattr(op, key) for key in ("max_value", "negative_slope", "threshold")},
            (x,),
        )
        for cls in graph.ACTIVATIONS
        if cls.__name__ == "ReLU"
    },
    graph.operation_class("leaky_relu"): lambda op, x: (
        "LeakyReLU",
        {"alpha": op.negative_slope},
        (x,),
    ),
    graph.operation_class("elu"): lambda op, x: ("ELU", {"alpha": op.alpha}, (x,)),
    graph.operation_class("softmax"): lambda op, x: ("Softmax", {"axis": op.axis}, (x,)),
    graph.operation_class("gelu"): lambda op, x: None if op.approximate else ("gelu", {}, (x,)),
    graph.operation_class("negative"): lambda op, x: ("Rescaling", {"scale": -1.0}, (x,)),
    graph.operation_class("concatenate"): lambda op, xs: ("Concatenate", {"axis": op.axis}, (xs,)),
    graph.operation_class("reshape"): _reshape,
    graph.operation_class("mean"): _mean,
}


def _check(model, converted: "tf_keras.Model", converter: _Converter, indices: list) -> None:
    """Raises unless each layer, and then the whole, gives what the original gives.

    A softmax over many classes, say, hides what goes wrong inside: hence each layer.

    Args:
        indices: for each input whether an embedding looks it up.
    """
    tensors = graph.body(model).inputs
    shapes = [tuple(ASSUMED_SIZE if n is None else n for n in t.shape[1:]) for t in tensors]
    count = next((t.shape[0] for t in tensors if t.shape[0] is not None), 2)
    inputs, _ = next(random_samples(model, shapes, count).batches())
    pairs = zip(inputs, indices, strict=True)
    inputs = [tf.cast(x > 0, x.dtype) if index else x for x, index in pairs]
    converter.run(model, inputs, converter.compare)
    structure = graph.structured_inputs(model, inputs)
    expected, received = (net(structure, training=False) for net in (model, converted))
    difference = _difference(expected, received)
    if not difference <= TOLERANCE:
        change = amplification(model, inputs)
        if not difference <= min(10 * change, LARGEST_TOLERANCE):
            raise ConversionError(
                f"Model '{model.name}' does not become the same in tf_keras, although each of its "
                f"layers does: outputs differ by {difference:.1e} of their scale. (A change of its "
                f"inputs by 1e-6 changes them by {change:.1e}.) Please report this."
            )


def _difference(expected: Any, received: Any) -> float:
    """The largest difference over the scale of the outputs."""
    worst = 0.0
    pairs = zip(keras.tree.flatten(expected), keras.tree.flatten(received), strict=True)
    for want, got in pairs:
        want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
        if want.shape != got.shape:
            return np.inf
        difference = np.abs(want - got).max(initial=0) / (np.abs(want).max(initial=0) or 1.0)
        worst = np.maximum(worst, difference)  # keeps NaN
    return float(worst)


def _refusal(operation: keras.Operation, path: str, reason: str) -> ConversionError:
    kind = type(operation).__name__
    return ConversionError(
        f"'{path}' ({kind}) cannot be converted to tf_keras: {reason}. {INSTEAD}"
    )


def _unsupported(converted: "tf_keras.Model", quantize: Callable, error: Exception) -> str:
    """The layer that TFMOT does not support: the one it names, or the first it refuses alone."""
    named = re.match(r"Layer (.+?):<", str(error))
    for layer in converted.layers:
        if layer.name == named[1] if named else not _quantizable(layer, quantize):
            activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
            extra = "" if activation == "linear" else f" with activation '{activation}'"
            kind = type(layer).__name__
            if kind == "BatchNormalization":
                extra = ", which does not come right after a convolution without activation"
            return f"layer '{layer.name}' ({kind}{extra})"
    return f"this combination of layers ({error})"


def _quantizable(layer, quantize: Callable) -> bool:
    """Whether TFMOT takes a model of this layer alone."""
    import tf_keras

    if isinstance(layer, (tf_keras.layers.InputLayer, tf_keras.layers.BatchNormalization)):
        return True
    inputs = tf.nest.map_structure(lambda x: tf_keras.Input(x.shape[1:]), layer.get_input_at(0))
    alone = type(layer).from_config(layer.get_config())
    try:
        quantize(tf_keras.Model(inputs, alone(inputs)))
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return False
    return True
