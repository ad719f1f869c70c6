"""Counts the multiplications by kernels in what TensorFlow computes for a layer."""

import math
from collections.abc import Callable

import tensorflow as tf

# Operations that hold others, or do something to sizes, so that their products cannot be counted.
OPAQUE = {"While", "StatelessWhile", "If", "StatelessIf", "PartitionedCall", "SpaceToBatchND"}
OPAQUE |= {"StatefulPartitionedCall", "XlaLaunch"}


def kernel_multiplications(function: Callable, tensors: list[tf.Tensor]) -> int | None:
    """How often a function multiplies by numbers that are made of its variables alone.

    Padding counts, as it does in papers. Matrix products, convolutions and einsums are counted.

    Args:
        function: takes the tensors, and uses variables.
        tensors: for one sample.

    Returns:
        The number, or `None` if it cannot be told.
    """
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    data = {id(tensor) for tensor in graph.inputs[: len(tensors)]}
    kernels = {id(tensor) for tensor in graph.inputs[len(tensors) :]}
    total = 0
    for operation in graph.get_operations():
        inputs, outputs = ({id(x) for x in y} for y in (operation.inputs, operation.outputs))
        if inputs & data and operation.type in OPAQUE:
            return None
        if len(inputs & kernels) == 1:  # a product of two, as in LoRA, makes a kernel
            total += _multiplications(operation)
        if inputs & data:
            data |= outputs
        elif inputs & kernels:
            kernels |= outputs
    return total


def _multiplications(operation: tf.Operation) -> int:
    """The multiplications of a product, 0 for whatever else."""
    kind, shapes = operation.type, [tensor.shape.as_list() for tensor in operation.inputs]
    given = math.prod(operation.outputs[0].shape.as_list()) if operation.outputs else 0
    if kind == "MatMul":
        return given * shapes[0][0 if operation.get_attr("transpose_a") else 1]
    if kind.startswith("BatchMatMul"):
        return given * shapes[0][-2 if operation.get_attr("adj_x") else -1]
    if kind == "Einsum":
        terms = operation.get_attr("equation").decode().split("->")[0].split(",")
        pairs = zip("".join(terms), [size for shape in shapes for size in shape], strict=False)
        return 0 if any("." in term for term in terms) else math.prod(dict(pairs).values())
    if kind in ("Conv2D", "Conv3D"):
        return given * math.prod(shapes[1][:-1])
    if kind == "DepthwiseConv2dNative":
        return given * math.prod(shapes[1][:2])
    if kind in ("Conv2DBackpropInput", "Conv3DBackpropInputV2"):  # a transposed convolution
        return math.prod(shapes[2]) * math.prod(shapes[1][:-1])
    return 0
