"""What Keras computes by operations that other runtimes lack, computed otherwise."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.keras_graph import calling, keras_layers, keras_models, walking
from keras_nisp.rules.products import parse

# Keras tells -0 from 0 by the bits of a float, which neither TFLite nor ONNX can look at.
INDICES = {
    keras_layers.operation_class("argmax"): tf.argmax,
    keras_layers.operation_class("argmin"): tf.argmin,
}
EINSUM = keras_layers.operation_class("einsum")


def run_translated(model: keras.Model, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
    """The flat outputs of a model in inference mode, by what other runtimes know.

    Args:
        model: a functional or sequential model.
        inputs: a tensor for each of its inputs, flat.
    """
    if not any(_is_translated(operation) for operation in _operations(model)):
        structure = keras_models.structured_inputs(model, inputs)
        return keras.tree.flatten(model(structure, training=False))

    def visit(site, args, kwargs):
        operation = site.operation
        if type(operation) in INDICES:
            return _index(operation, *args, **kwargs)
        if _adds_nothing_up(operation):
            return _spread(operation, *args, **kwargs)
        return calling.infer(operation, *args, **kwargs)

    return keras.tree.flatten(walking.walk(model, inputs, visit))  # takes wrappers apart


def _operations(model: keras.Model) -> Iterator[keras.Operation]:
    for operation in keras_models.body(model).operations:
        if keras_models.is_graph(operation):
            yield from _operations(operation)
        yield operation


def _is_translated(operation: keras.Operation) -> bool:
    """Whether an operation is computed otherwise.

    `TimeDistributed` over an open axis is a loop of `vectorized_map`, which SavedModels get wrong
    and other runtimes do not know.
    """
    loops = type(operation) is keras.layers.TimeDistributed
    return type(operation) in INDICES or loops or _adds_nothing_up(operation)


def _adds_nothing_up(operation: keras.Operation) -> bool:
    """Whether an einsum is a product element by element, of which TFLite's converter makes matrix
    products of wrong shapes."""
    if type(operation) is EINSUM:
        equation = operation.subscripts
    elif type(operation) is keras.layers.EinsumDense and not operation.quantization_mode:
        equation = operation.equation
    else:
        return False
    operands, arrow, output = equation.replace(" ", "").replace("...", ".").partition("->")
    parts = operands.split(",")
    once = all(len(set(part)) == len(part) for part in parts)  # "aa" is a diagonal
    return bool(arrow) and once and set().union(*parts) <= set(output)


def _spread(operation: keras.Operation, *args: Any, **kwargs: Any) -> tf.Tensor:
    """What an einsum gives that adds nothing up."""
    if type(operation) is EINSUM:
        return _product(operation.subscripts, args)
    inputs = args[0] if args else kwargs["inputs"]
    factors = [keras.ops.cast(x, operation.compute_dtype) for x in (inputs, operation.kernel)]
    result = _product(operation.equation, factors)
    if operation.bias is not None:
        result += keras.ops.cast(operation.bias, operation.compute_dtype)
    return result if operation.activation is None else operation.activation(result)


def _product(equation: str, factors: Sequence[Any]) -> tf.Tensor:
    operands, output = parse(equation, [len(factor.shape) for factor in factors])
    laid = []
    for factor, letters in zip(factors, operands, strict=True):
        order = [letters.index(letter) for letter in output if letter in letters]
        missing = [axis for axis, letter in enumerate(output) if letter not in letters]
        laid.append(keras.ops.expand_dims(keras.ops.transpose(factor, order), missing))
    return functools.reduce(keras.ops.multiply, laid)


def _index(operation: keras.Operation, x: Any) -> tf.Tensor:
    x = tf.convert_to_tensor(x)
    rank, axis = len(x.shape), operation.axis
    flat = tf.reshape(x, [-1]) if axis is None else x
    index = INDICES[type(operation)](flat, axis=axis or 0, output_type=tf.int32)
    if not operation.keepdims:
        return index
    return tf.reshape(index, [1] * rank) if axis is None else tf.expand_dims(index, axis)
