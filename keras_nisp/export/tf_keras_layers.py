"""The tf_keras counterpart of each layer, setting, activation and operation of Keras 3."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_nisp.errors import ConversionError
from keras_nisp.keras_graph import copying, keras_layers
from keras_nisp.keras_graph.arguments import constructor_parameters
from keras_nisp.keras_graph.keras_layers import operation_class

INSTEAD = (
    "For an int8 file without TFMOT: `keras_nisp.export_tflite(model, path, "
    "quantization='int8', calibration=...)`."
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


def check_layer(layer: keras.Layer, path: str) -> None:
    policy = layer.dtype_policy
    if {policy.compute_dtype, policy.variable_dtype} != {"float32"}:
        reason = f"it has the dtype policy '{policy.name}', and tf_keras models are made in float32"
        raise refusal(layer, path, reason)
    if type(layer) not in SAME:
        raise refusal(layer, path, "no counterpart in tf_keras is known to compute the same")


def settings_of(layer: keras.Layer, path: str, accepted: set[str]) -> dict:
    """The layer's settings as its counterpart takes them; none is dropped that means something."""
    defaults = constructor_parameters(type(layer))
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
            raise refusal(layer, path, f"tf_keras has no setting `{key}` (here {value!r})")
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
    raise refusal(layer, path, reason)


def _object_setting(layer: keras.Layer, path: str, key: str, value: Any) -> Any:
    """A regularizer or constraint as tf_keras writes it down."""
    if value is None:
        return None
    if key == "activity_regularizer":
        reason = f"`{key}` is divided by the batch size in tf_keras, and is not in Keras 3"
        raise refusal(layer, path, reason)
    if value.get("class_name") not in OBJECTS:
        raise refusal(layer, path, f"`{key}={value!r}` has no counterpart in tf_keras")
    return {"class_name": value["class_name"], "config": value["config"]}


def accepted_by(cls: type) -> set[str]:
    """The settings that a tf_keras layer takes."""
    names = {name for c in cls.__mro__[:-1] for name in constructor_parameters(c)}
    return {"trainable", *names} - {"kwargs"}


def as_layer(operation: keras.Operation, path: str, args: tuple) -> tuple[str, dict, tuple]:
    """An operation of `keras.ops` as a kind of layer or activation, its settings and arguments."""
    for constant in keras.tree.flatten(args):
        if isinstance(constant, keras.Variable):
            raise refusal(operation, path, "it uses a variable, and the layer is not known")
    if type(operation) in PLAIN:
        return PLAIN[type(operation)], {}, args
    if type(operation) in BINARY:
        found = _binary(BINARY[type(operation)], *args)
    else:
        found = OPERATIONS.get(type(operation), lambda operation, *args: None)(operation, *args)
    if found is None:
        reason = "this operation, called like this, has no counterpart among the layers of tf_keras"
        if isinstance(operation, operation_class("not_equal")):
            reason = "masks (`mask_zero`) are not converted"
        raise refusal(operation, path, reason)
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
    scale: float | np.ndarray
    offset: float | np.ndarray
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
    operation_class("exp" if name == "exponential" else name): name
    for name in (
        *("relu", "relu6", "selu", "sigmoid", "tanh", "silu", "softplus", "softsign"),
        *("exponential", "hard_sigmoid", "hard_silu"),
    )
}
BINARY = {
    **{
        operation_class(kind.lower()): kind
        for kind in ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Divide")
    },
    operation_class("true_divide"): "Divide",
}
OPERATIONS: dict[type, Callable] = {
    **{
        cls: lambda op, x: (
            "ReLU",
            {key: getattr(op, key) for key in ("max_value", "negative_slope", "threshold")},
            (x,),
        )
        for cls in keras_layers.ACTIVATIONS
        if cls.__name__ == "ReLU"
    },
    operation_class("leaky_relu"): lambda op, x: (
        "LeakyReLU",
        {"alpha": op.negative_slope},
        (x,),
    ),
    operation_class("elu"): lambda op, x: ("ELU", {"alpha": op.alpha}, (x,)),
    operation_class("softmax"): lambda op, x: ("Softmax", {"axis": op.axis}, (x,)),
    operation_class("gelu"): lambda op, x: None if op.approximate else ("gelu", {}, (x,)),
    operation_class("negative"): lambda op, x: ("Rescaling", {"scale": -1.0}, (x,)),
    operation_class("concatenate"): lambda op, xs: (
        "Concatenate",
        {"axis": op.axis},
        (xs,),
    ),
    operation_class("reshape"): _reshape,
    operation_class("mean"): _mean,
}


def refusal(operation: keras.Operation, path: str, reason: str) -> ConversionError:
    kind = type(operation).__name__
    return ConversionError(
        f"'{path}' ({kind}) cannot be converted to tf_keras: {reason}. {INSTEAD}"
    )
