"""What an output of a model holds: probabilities, logits, or other values."""

import dataclasses

import keras
import numpy as np

from keras_nisp.keras_graph.keras_layers import operation_class
from keras_nisp.keras_graph.keras_models import body, is_graph
from keras_nisp.keras_graph.keras_training import loss_of

REGRESSION = (
    "mean_squared_error",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error",
    "huber",
    "log_cosh",
    "cosine_similarity",
    "poisson",
)


@dataclasses.dataclass(frozen=True)
class OutputKind:
    """What an output holds.

    Attributes:
        name: probabilities of classes that exclude each other (`"softmax"`) or do not (`"binary"`),
            their logits (`"logits"`, `"binary logits"`), or other `"values"`.
        axis: along which the classes lie, counted from the end.
    """

    name: str
    axis: int = -1


def kind_of(model: keras.Model, index: int = 0) -> OutputKind:
    """What an output holds, by its last layer and by the loss that the model is compiled with."""
    if (ending := ending_of(model, index)) is not None:
        return ending
    loss = loss_of(model, index)
    if not getattr(loss, "from_logits", False):
        return OutputKind("values")
    if "Categorical" not in type(loss).__name__:
        return OutputKind("binary logits")
    axis = getattr(loss, "_fn_kwargs", {}).get("axis", -1)
    return OutputKind("logits", _from_end(axis, len(body(model).outputs[index].shape)))


def ending_of(model: keras.Model, index: int = 0) -> OutputKind | None:
    """The kind of an output that comes out of a softmax or a sigmoid, else `None`."""
    return _ending(body(model).outputs[index])


def is_regressor(model: keras.Model, index: int = 0) -> bool:
    """Whether an output has no classes, as far as the loss of the model says."""
    loss = loss_of(model, index)
    if loss is None or kind_of(model, index).name != "values":
        return False
    loss = keras.losses.get(loss)
    function = getattr(loss, "fn", loss)  # of one of Keras' classes
    return any(function is getattr(keras.losses, name) for name in REGRESSION)


def _ending(tensor: keras.KerasTensor) -> OutputKind | None:
    operation, node, index = tensor._keras_history
    if is_graph(operation):
        return _ending(body(operation).outputs[index])
    if isinstance(operation, keras.layers.TimeDistributed) and is_graph(operation.layer):
        return _ending(body(operation.layer).outputs[0])
    if (known := probabilities(operation, len(tensor.shape))) is not None or not _passes(operation):
        return known
    (before,) = operation._inbound_nodes[node].input_tensors
    known = _ending(before)
    reshaped = tuple(before.shape) != tuple(tensor.shape)
    if known is None or (reshaped and (known.axis, before.shape[-1]) != (-1, tensor.shape[-1])):
        return None
    return known


def probabilities(operation: keras.Operation, rank: int) -> OutputKind | None:
    """The kind of what an operation gives if it ends in a softmax or a sigmoid, else `None`.

    Args:
        operation: a layer or operation.
        rank: of its output, the batch axis counted.
    """
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    if isinstance(operation, keras.layers.RNN):  # what comes out is gated
        return None
    for part in (operation, getattr(operation, "activation", None)):
        if part is keras.activations.softmax:
            return OutputKind("softmax")
        if isinstance(part, (keras.layers.Softmax, operation_class("softmax"))):
            axes = np.ravel(part.axis).tolist()
            single = len(axes) == 1 and axes[0] is not None
            return OutputKind("softmax", _from_end(axes[0], rank)) if single else None
        if part is keras.activations.sigmoid or isinstance(part, operation_class("sigmoid")):
            return OutputKind("binary")
    return None


def _from_end(axis: int, rank: int) -> int:
    return axis if axis < 0 else axis - rank


def _passes(operation: keras.Operation) -> bool:
    """Whether values stay as they are, and those along the last axis may stay together."""
    if getattr(operation, "activation", None) is keras.activations.linear:
        return isinstance(operation, keras.layers.Activation)
    kinds = keras.layers.Identity, keras.layers.Reshape, keras.layers.Flatten, keras.layers.Dropout
    return isinstance(operation, (*kinds, operation_class("cast"), operation_class("reshape")))
