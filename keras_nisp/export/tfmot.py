"""TFMOT: its import without side effects, and `quantization_aware` training of Keras 3 models."""

import os
import re
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from keras_nisp.errors import ConversionError, from_extra
from keras_nisp.export.tf_keras import to_tf_keras
from keras_nisp.export.tf_keras_layers import INSTEAD

if TYPE_CHECKING:
    import tf_keras


def quantization_aware(model: keras.Model) -> "tf_keras.Model":
    """A Keras 3 model as a tf_keras model that emulates int8 while it trains, by TFMOT.

    Compile and fit the result with tf_keras, at a small learning rate; then
    `tf.lite.TFLiteConverter.from_keras_model` with `tf.lite.Optimize.DEFAULT` converts it to an
    int8 file. TFMOT supports plain CNNs, ResNets and MobileNetV2. It refuses networks in which
    BatchNormalization does not follow a convolution or Dense layer directly (DenseNet), and
    layers such as Rescaling and Multiply (EfficientNet, MobileNetV3).

    Args:
        model: a functional or `Sequential` model.

    Returns:
        The `tf_keras.Model` that TFMOT makes from `to_tf_keras(model)`, not compiled.

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
            f"Model '{model.name}' cannot be trained quantization-aware: TFMOT does not support "
            f"{_unsupported(converted, quantize, error)}. {INSTEAD}"
        ) from error


def import_tfmot() -> ModuleType:
    """Imports `tensorflow_model_optimization` without its side effects on the process.

    When it is imported, TFMOT sets the environment variable `TF_USE_LEGACY_KERAS`. That turns
    `tf.keras` into Keras 2: in this process if nobody has used it before, and in every process
    that is started from it. This function loads `tf.keras` first, and restores the variable.

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
        with from_extra("tfmot", "TFMOT needs"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="distutils Version classes are deprecated")
            import tensorflow_model_optimization as tfmot
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return tfmot


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
