"""The walk over the calls of a Keras model.

Tracing channels, propagating importance, running a masked model and rebuilding
are the same walk with another meaning for each layer.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_nisp.keras_graph import masks
from keras_nisp.keras_graph.arguments import arranged
from keras_nisp.keras_graph.calling import infer
from keras_nisp.keras_graph.keras_models import body, input_names, is_graph
from keras_nisp.keras_graph.wrappers import is_wrapper, take_apart


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One call of one operation in the graph.

    Attributes:
        operation: the layer or `keras.ops` operation that is called.
        path: its name, after the names of the nested models that hold it
            (`"backbone/conv1"`).
        node_inputs: symbolic input tensors as recorded when the graph was built.
        node_outputs: symbolic output tensors, likewise.
    """

    operation: keras.Operation
    path: str
    node_inputs: list
    node_outputs: list

    @property
    def node(self) -> int | None:
        """Identifies the call; `None` for one inside a wrapper."""
        return id(self.node_outputs[0]) if self.node_outputs else None

    @property
    def takes_numbers(self) -> bool:
        """Whether any input holds more than whole numbers or truth values, as far as is known."""
        dtypes = [tensor.dtype for tensor in self.node_inputs]
        return not dtypes or any("float" in dtype for dtype in dtypes)


def replay(model: keras.Model, inputs: Any, visit: Callable) -> Any:
    """Runs `visit(node, args, kwargs)` over the calls of one model, in order.

    Nested models count as one call; `walk` goes into them.

    Args:
        model: a functional or sequential model.
        inputs: values for the model's inputs, in its own structure.
        visit: returns the value (or list of values) of the call's outputs. Arguments that the
            call must have come by position, however the graph was written.

    Returns:
        The values of the model's outputs, in its own structure.
    """
    graph, given = body(model), keras.tree.flatten(inputs)
    masks.mark_inputs(input_names(model), given)
    values = {id(tensor): value for tensor, value in zip(graph.inputs, given, strict=True)}
    nodes = [
        node
        for depth in sorted(graph._nodes_by_depth, reverse=True)
        for node in graph._nodes_by_depth[depth]
        if not node.is_input and node.operation
    ]
    last = {id(tensor): node for node in nodes for tensor in node.input_tensors}
    last |= {id(tensor): None for tensor in graph.outputs}  # kept to the end
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        if not isinstance(node.operation, keras.Layer):
            args, kwargs = _with_array_constants(node, args, kwargs)
        args, kwargs = arranged(node.operation, args, kwargs)
        outputs = keras.tree.flatten(visit(node, args, kwargs))
        del args, kwargs
        values.update(zip(map(id, node.outputs), outputs, strict=True))
        del outputs
        # Activations of large images are too many to keep all of them to the end.
        for tensor in (*node.input_tensors, *node.outputs):
            if last.get(id(tensor), node) is node:
                values.pop(id(tensor), None)
    outputs = [values[id(tensor)] for tensor in graph.outputs]
    return keras.tree.pack_sequence_as(graph._outputs_struct, outputs)


def _with_array_constants(node, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Constants among the arguments as arrays, so that they cannot be taken for values."""
    given = (node.arguments.args, node.arguments.kwargs)
    return keras.tree.map_structure(
        lambda constant, value: constant.numpy() if isinstance(constant, tf.Tensor) else value,
        given,
        (args, kwargs),
    )


def constant_arguments(operation: keras.Operation) -> set[int]:
    """The `id` of each tensor among the arguments of an operation's calls that is no value of
    the graph."""
    return {
        id(x)
        for node in operation._inbound_nodes
        for x in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        if isinstance(x, tf.Tensor)
    }


def held_operations(operation: keras.Operation) -> list[keras.Operation]:
    """A layer or operation and, of a nested model or a wrapper, all that the walk calls inside."""
    layers = operation._flatten_layers() if isinstance(operation, keras.Layer) else [operation]
    graphs = [body(layer) for layer in layers if is_graph(layer)]
    return [*layers, *(inner for graph in graphs for inner in graph.operations)]


def walk(
    model: keras.Model,
    inputs: Any,
    visit: Callable,
    enter: Callable = lambda model, inputs: None,
    prefix: str = "",
) -> Any:
    """Runs `visit(site, args, kwargs)` over every call, those of nested models too.

    Args:
        model: a functional or sequential model.
        inputs: values for the model's inputs.
        visit: called with a `Site` and the call's arguments, in which values stand
            for tensors; returns the value (or list of values) of its outputs.
        enter: called with each nested model and its flat list of inputs.
        prefix: put before the paths.

    Returns:
        The values of the model's outputs, in its own structure.
    """

    def step(node, args, kwargs):
        path, tensors = prefix + node.operation.name, (node.input_tensors, node.outputs)
        return _call(visit, enter, node.operation, path, args, kwargs, *tensors)

    return replay(model, inputs, step)


def _call(
    visit: Callable, enter: Callable, operation, path, args, kwargs, inputs=(), outputs=()
) -> list:
    """One call of the walk, taken apart where it holds others: the flat list of its outputs.

    It refers to itself by name, not by a closure: a closure would be a cycle, and keep alive all
    that `visit` holds, activations and tapes, until they are collected.
    """
    if is_graph(operation):
        nested = keras.tree.flatten(args[0])
        enter(operation, nested)
        values = walk(operation, nested, visit, enter, path + "/")
    elif is_wrapper(operation):
        inner = functools.partial(_call, visit, enter)
        values = take_apart(operation, path, args, kwargs, inner)
    else:
        values = visit(Site(operation, path, list(inputs), list(outputs)), args, kwargs)
        outputs = keras.tree.flatten(values)
        masks.pass_on(operation, args, kwargs, outputs)
        masks.pass_on_counts(args, kwargs, outputs)
    return keras.tree.flatten(values)


def output_shapes(
    site: Site, args: tuple, kwargs: dict, shape_of: Callable
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Shapes of a call's outputs without the batch axis, and where this lies.

    Recorded shapes serve unless the call sees other sizes than were recorded: inside
    a nested model, or where the model's input size is open. Sizes that Keras leaves open although
    those of the inputs are known are tried out. An output that is open, but not along its first
    axis, has its batch axis there, if those of the inputs are open.

    Args:
        site: the call.
        args, kwargs: its arguments, with values for tensors.
        shape_of: gives the shape of a value, with `None` for its batch axis; or `None` for what is
            not a tensor.
    """
    flat = keras.tree.flatten((args, kwargs))
    actual = [shape for shape in map(shape_of, flat) if shape is not None]
    places = [shape.index(None) for shape in actual]
    recorded = [tuple(tensor.shape) for tensor in site.node_inputs]
    batches = [s[at] for s, at in zip(recorded, places, strict=False) if len(s) > at]
    if len(actual) == len(recorded) and all(map(_same_sizes, actual, recorded)):
        shapes = [tuple(tensor.shape) for tensor in site.node_outputs]
    else:
        shapes = _inferred_shapes(site, args, kwargs, shape_of)
    open_batch = None in batches or not recorded
    axes = [
        shape.index(None) if open_batch and shape and shape[0] is not None and None in shape else 0
        for shape in shapes
    ]
    if any(None in _without(shape, axis) for shape, axis in zip(shapes, axes, strict=True)):
        batch = next((size for size in batches if size), None) or 1
        shapes = _tried_shapes(site, args, kwargs, shape_of, batch)
    return [_without(shape, axis) for shape, axis in zip(shapes, axes, strict=True)], axes


def _inferred_shapes(site: Site, args: tuple, kwargs: dict, shape_of: Callable) -> list[tuple]:
    """What Keras says of the shapes of a call's outputs, the batch axis counted."""
    try:
        args, kwargs = _filled(site, args, kwargs, shape_of, keras.KerasTensor)
        outputs = site.operation.compute_output_spec(*args, **kwargs)
    except ValueError:  # what is taken apart along the batch axis has to be known
        return [(None,) * (1 + len(site.node_outputs[0].shape))] * len(site.node_outputs)
    return [tuple(tensor.shape) for tensor in keras.tree.flatten(outputs)]


def _tried_shapes(
    site: Site, args: tuple, kwargs: dict, shape_of: Callable, batch: int
) -> list[tuple]:
    """The shapes of a call's outputs, computed on `batch` samples of zeros."""

    def zeros(shape, dtype):
        return tf.zeros([batch if size is None else size for size in shape], dtype)

    args, kwargs = _filled(site, args, kwargs, shape_of, zeros)
    outputs = infer(site.operation, *args, **kwargs)
    return [tuple(tensor.shape) for tensor in keras.tree.flatten(outputs)]


def _filled(
    site: Site, args: tuple, kwargs: dict, shape_of: Callable, make: Callable
) -> tuple[tuple, dict]:
    """A call's arguments with `make(shape, dtype)` for each tensor."""
    dtypes = iter([tensor.dtype for tensor in site.node_inputs])

    def made(value):
        shape = shape_of(value)
        return value if shape is None else make(shape, next(dtypes, keras.backend.floatx()))

    return keras.tree.map_structure(made, (args, kwargs))


def _same_sizes(actual: tuple, recorded: tuple) -> bool:
    """Whether shapes are the same but for the batch axis, `None` in the first."""
    at = actual.index(None)
    return len(actual) == len(recorded) and _without(actual, at) == _without(recorded, at)


def _without(shape: tuple, axis: int) -> tuple:
    return (*shape[:axis], *shape[axis + 1 :])
