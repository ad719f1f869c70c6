"""The walk over a Keras model. With `copying.py` the only file that touches Keras internals.

Tracing channels, propagating importance, running a masked model and rebuilding
are the same walk with another meaning for each layer.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.activations import activations
from keras.src.applications.convnext import LayerScale, StochasticDepth  # noqa: F401
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer  # noqa: F401
from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # noqa: F401
from keras.src.models.functional import Functional

from keras_nisp import masks
from keras_nisp._environment import legacy_keras_hint
from keras_nisp.arguments import arranged
from keras_nisp.calling import on_data
from keras_nisp.wrappers import is_wrapper, take_apart

# What functions of `keras.activations` leave in a graph, unless it is what those of `keras.ops` do.
ACTIVATIONS = [
    cls
    for _, cls in inspect.getmembers(activations, inspect.isclass)
    if issubclass(cls, keras.Operation)
]


def operation_class(name: str) -> type | None:
    """The class behind a function of `keras.ops`, which stands in a graph in its place."""
    function = keras.ops
    for part in name.split("."):
        function = getattr(function, part, None)
    function = inspect.unwrap(function) if function is not None else None
    for used in getattr(getattr(function, "__code__", None), "co_names", ()):
        found = function.__globals__.get(used)
        if inspect.isclass(found) and issubclass(found, keras.Operation):
            return found
    return None


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
    def place(self) -> int | None:
        """Identifies the call; `None` for one inside a wrapper."""
        return id(self.node_outputs[0]) if self.node_outputs else None


def is_graph(operation: Any) -> bool:
    """Whether `operation` is a model whose graph of layers is known, and all that it computes."""
    known = isinstance(operation, (Functional, keras.Sequential))
    return known and type(operation).call in (Functional.call, keras.Sequential.call)


def is_of_keras(what: Any, *modules: str) -> bool:
    """Whether Keras defines a class or function, in one of these modules if any are given."""
    # A function has no module at all if the code was run by `exec` with globals of its own.
    defined = what.__module__ or ""
    return defined.startswith(tuple(f"keras.src.{m}" for m in modules) or "keras.")


def check_model(model: Any) -> None:
    """Raises unless `model` is a built functional or sequential model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Expected `model` to be a keras.Model. Received: {model!r} "
            f"(of type {type(model).__name__}).{_instead(model)}{legacy_keras_hint()}"
        )
    if not is_graph(model):
        raise TypeError(
            f"Model '{model.name}' is a subclassed model ({type(model).__name__}): its "
            "graph of layers is not known to Keras, so channels cannot be followed "
            "through it. Expected a functional or Sequential model: write it out with "
            "`keras_nisp.as_functional(model, keras.Input(...))`."
        )
    if not model.built or (isinstance(model, keras.Sequential) and not model.inputs):
        raise ValueError(
            f"Model '{model.name}' is not built: its weights do not exist yet. Start it "
            "with `keras.Input(shape=...)` or call `model.build(input_shape)` first."
        )
    for layer in all_layers(model):
        if mode := getattr(layer, "quantization_mode", None):
            raise TypeError(
                f"Model '{model.name}' was quantized by Keras (`model.quantize('{mode}')`): the "
                f"kernel of layer '{layer.name}' holds integers and a scale for each channel, "
                "which can be neither pruned nor exported as they are. Prune and export the "
                "model as it was before; `keras_nisp.export_tflite` quantizes while it exports."
            )


def _instead(model: Any) -> str:
    """What to pass instead of what is no model, as far as one can guess."""
    if hasattr(type(model), "pruned_model"):  # which raises before the end of training
        return " Pass its `pruned_model`, which it has after `fit`."
    if model is None:
        return " `pruned_model` of a NISPPruner is None until `fit` has ended."
    if isinstance(model, (str, os.PathLike)):
        return " Load it first: `keras.models.load_model(path)`."
    return ""


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model, those of nested models and inside layers too."""
    return [layer for layer in model._flatten_layers() if layer is not model]


def body(model: keras.Model) -> Functional:
    """The functional graph of a functional or sequential model."""
    return model._functional if isinstance(model, keras.Sequential) else model


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
    graph = body(model)
    values = {
        id(tensor): value
        for tensor, value in zip(graph.inputs, keras.tree.flatten(inputs), strict=True)
    }
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

    def call(operation, path, args, kwargs, inputs=(), outputs=()):
        if is_graph(operation):
            nested = keras.tree.flatten(args[0])
            enter(operation, nested)
            values = walk(operation, nested, visit, enter, path + "/")
        elif is_wrapper(operation, kwargs):
            values = take_apart(operation, path, args, kwargs, call)
        else:
            values = visit(Site(operation, path, list(inputs), list(outputs)), args, kwargs)
            masks.pass_on(operation, args, kwargs, keras.tree.flatten(values))
        return keras.tree.flatten(values)

    def step(node, args, kwargs):
        operation = node.operation
        path = prefix + operation.name
        return call(operation, path, args, kwargs, node.input_tensors, node.outputs)

    return replay(model, inputs, step)


def output_shapes(site: Site, args: tuple, kwargs: dict, shape_of: Callable) -> list:
    """Shapes of a call's outputs without the batch axis.

    Recorded shapes serve unless the call sees other sizes than were recorded: inside
    a nested model, or where the model's input size is open. Sizes that Keras leaves open although
    those of the inputs are known are tried out.

    Args:
        site: the call.
        args, kwargs: its arguments, with values for tensors.
        shape_of: gives the shape of a value, or `None` for what is not a tensor.
    """
    flat = keras.tree.flatten((args, kwargs))
    actual = [shape for shape in map(shape_of, flat) if shape is not None]
    recorded = [tuple(tensor.shape[1:]) for tensor in site.node_inputs]

    def outputs(run, make):
        dtypes = iter([tensor.dtype for tensor in site.node_inputs])

        def made(value):
            shape = shape_of(value)
            return value if shape is None else make(shape, next(dtypes, keras.backend.floatx()))

        given, named = keras.tree.map_structure(made, (args, kwargs))
        flat = keras.tree.flatten(run(*given, **named))
        return [tuple(tensor.shape[1:]) for tensor in flat]

    if actual == recorded:
        shapes = [tuple(tensor.shape[1:]) for tensor in site.node_outputs]
    else:
        shapes = outputs(
            site.operation.compute_output_spec,
            lambda shape, dtype: keras.KerasTensor((None, *shape), dtype=dtype),
        )
    if any(None in shape for shape in shapes):
        batch = next((tensor.shape[0] for tensor in site.node_inputs), None) or 1
        shapes = outputs(
            functools.partial(infer, site.operation),
            lambda shape, dtype: tf.zeros((batch, *shape), dtype),
        )
    return shapes


def infer(layer: keras.Operation, /, *args, **kwargs) -> Any:
    """Calls a layer in inference mode, and so all that it calls."""
    return call_in_mode(layer, False, *args, **kwargs)


def call_in_mode(layer: keras.Operation, training: bool, /, *args, **kwargs) -> Any:
    """Calls a layer in training or in inference, and so all that it calls."""
    if takes_training(layer):
        kwargs = {**kwargs, "training": training}  # the graph may have noted a default
    with mode(training), on_data(layer):
        return layer(*args, **kwargs)


def takes_training(layer: keras.Operation) -> bool:
    """Whether a layer's `call` has an argument `training`."""
    return getattr(layer, "_call_has_training_arg", False)


@contextlib.contextmanager
def mode(training: bool):
    """What is called in it takes itself to be in training, or in inference."""
    context = CallContext(entry_layer=None)
    context.set_value("training", training)
    before = global_state.get_global_attribute("current_call_ctx")
    global_state.set_global_attribute("current_call_ctx", context)
    try:
        yield
    finally:
        global_state.set_global_attribute("current_call_ctx", before)


def projection(attention: keras.Layer, which: str) -> keras.layers.EinsumDense | None:
    """The layer inside an attention layer that makes its queries, keys, values or gates, or its
    output; `None` if there is none."""
    return getattr(attention, f"_{which}_dense", None)


@contextlib.contextmanager
def fresh_states(operation: keras.Operation):
    """While it lasts, what keeps its state from batch to batch starts from zero; afterwards it has
    the state that it had, and so have layers that write to other variables."""
    is_layer = isinstance(operation, keras.Layer)
    inside = operation._flatten_layers() if is_layer else ()
    states = [
        state
        for inner in inside
        if isinstance(inner, keras.layers.RNN) and inner.stateful
        for state in keras.tree.flatten(inner.states)
        if state is not None
    ]
    written = [*states, *(operation.non_trainable_variables if is_layer else ())]
    before = [variable.numpy() for variable in written]
    for state in states:
        state.assign(tf.zeros_like(state))
    try:
        yield
    finally:
        for variable, value in zip(written, before, strict=True):
            variable.assign(value)


def answer(model: keras.Model, inputs: list) -> Any:
    """What a model gives in inference for a flat list of inputs, from a fresh state."""
    with fresh_states(model), on_data(model):
        return model(structured_inputs(model, inputs), training=False)


def batch_size(model: keras.Model) -> int | None:
    """The batch size that a model is bound to, or `None`."""
    sizes = (tensor.shape[0] for tensor in body(model).inputs)
    return next((size for size in sizes if size is not None), None)


def is_open(model: keras.Model) -> bool:
    """Whether a model leaves sizes of its inputs open, the batch size apart."""
    check_model(model)
    return any(None in tensor.shape[1:] for tensor in body(model).inputs)


def is_optional(tensor: keras.KerasTensor) -> bool:
    """Whether a model's input may be left out."""
    return bool(getattr(tensor._keras_history.operation, "optional", False))


def low_rank_kernel(layer: keras.Operation, value: Any) -> tuple | None:
    """What a kernel with LoRA is made of: a variable, two factors of the rest, and their scale.

    Args:
        layer: the layer, or what holds it.
        value: its kernel, or its embeddings, as it computes them.
    """
    parts = layer._flatten_layers() if isinstance(layer, keras.Layer) and value is not None else ()
    for part in parts:
        if not getattr(part, "lora_enabled", False):
            continue
        name = "embeddings" if hasattr(part, "lora_embeddings_a") else "kernel"
        if np.array_equal(np.asarray(getattr(part, name)), np.asarray(value)):
            factors = (getattr(part, f"lora_{name}_{letter}") for letter in "ab")
            return getattr(part, f"_{name}"), *factors, part.lora_alpha / part.lora_rank
    return None


def input_names(model: keras.Model) -> list[str]:
    """Names of the model's input layers."""
    return [tensor._keras_history.operation.name for tensor in body(model).inputs]


def output_names(model: keras.Model) -> list[str]:
    """Names of the layers that give the model's outputs."""
    return [tensor._keras_history.operation.name for tensor in body(model).outputs]


def structured_inputs(model: keras.Model, inputs: list) -> Any:
    """A flat list of inputs in the structure in which the model takes them."""
    if isinstance(model, keras.Sequential):
        return inputs[0]
    return keras.tree.pack_sequence_as(model._inputs_struct, inputs)


def input_structure(model: keras.Model) -> Any:
    """The structure (dict, list, a single one) of the symbolic tensors that the model takes."""
    return body(model)._inputs_struct


def output_structure(model: keras.Model) -> Any:
    """The structure of the symbolic tensors that the model gives."""
    return body(model)._outputs_struct


def is_half(model: keras.Model) -> bool:
    """Whether any layer computes in half precision."""
    return any("16" in layer.compute_dtype for layer in all_layers(model))


def ending(model: keras.Model) -> str | None:
    """`"softmax"` or `"sigmoid"` if the model's first output comes out of one, else `None`."""
    source = body(model).outputs[0]._keras_history
    while is_graph(source.operation):
        source = body(source.operation).outputs[source.tensor_index]._keras_history
    operation = source.operation
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    activation = getattr(operation, "activation", None)
    for name in ("softmax", "sigmoid"):
        named = getattr(keras.activations, name)
        if activation is named or isinstance(operation, operation_class(name)):
            return name
    return None
