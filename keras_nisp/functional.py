"""`as_functional`: writes out subclassed models and composite layers as graphs of Keras layers."""

import contextlib
import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_nisp import copying, graph
from keras_nisp.probing import random_samples
from keras_nisp.rules.base import registered
from keras_nisp.wrappers import is_wrapper

TOLERANCE = 1e-4
PROBE = 3  # batch size at which a call is traced that does not take an open one
ASSUMED_SIZE = 32  # for input axes whose size is open
RESHAPE = graph.operation_class("reshape")


def as_functional(model: keras.Model, inputs: Any = None) -> keras.Model:
    """Writes a model out as a functional graph of layers whose channels can be followed.

    A subclassed model becomes a functional one, and every custom layer that is made of other
    layers and operations becomes a nested functional model of its name. What cannot be written
    out stays as it is: layers with weights of their own, with code that needs values, or that
    do something else in training.

    Args:
        model: any Keras model. It is not changed; the result shares its layers and weights.
        inputs: for a subclassed model: `keras.Input` (or a structure of them) like what it is
            called with.

    Returns:
        A functional model that computes the same, checked on a random sample; the model itself
        if there is nothing to write out.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: `inputs` are missing, the model's `call` cannot be traced on symbolic
            tensors, or the graph would not do what the model does.

    Example:

    >>> class Classifier(keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden, self.head = keras.layers.Dense(8), keras.layers.Dense(2)
    ...     def call(self, x):
    ...         return self.head(keras.ops.relu(self.hidden(x)))
    >>> model = as_functional(Classifier(), keras.Input((4,)))
    >>> prune(model, Magnitude(), ratio=0.5, verbose=0).count_params()
    30
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"Expected `model` to be a keras.Model. Received: {model!r}")
    if graph.is_graph(model):
        graph.check_model(model)
        written = _Writer().graph(model)
        if written is not model:
            _check_whole(written, model)
        return written
    return _write_subclassed(model, inputs)


def _check_whole(written: keras.Model, model: keras.Model) -> None:
    def original(values):
        return graph.infer(model, graph.structured_inputs(model, values))

    try:
        _check_outputs(_Written(written, written.outputs), original)
    except Exception as error:
        raise ValueError(
            f"Model '{model.name}' cannot be written out: {error} (A layer that is not of Keras "
            "may give other shapes than it says.)"
        ) from error


def _write_subclassed(model: keras.Model, inputs: Any) -> keras.Model:
    if inputs is None:
        raise ValueError(
            f"Expected `inputs` for the subclassed model '{model.name}', such as "
            "`keras.Input((224, 224, 3))`: the shape of what it is called with."
        )
    writer = _Writer()
    written = writer.composite(model, (inputs,), {})
    if written is None:
        raise ValueError(
            f"Model '{model.name}' ({type(model).__name__}) cannot be written out: "
            f"{writer.reasons[model.name]}. Build it from layers and `keras.ops` as "
            "`keras.Model(inputs, outputs)`."
        )
    return written.model


@dataclasses.dataclass(frozen=True)
class _Written:
    """A composite, written out.

    Attributes:
        model: takes the tensors of the composite's call, and gives those of its result.
        structure: the composite's result; what is no tensor in it stands as it is.
    """

    model: keras.Model
    structure: Any

    def __call__(self, args, kwargs):
        tensors = _tensors(args, kwargs)
        outputs = iter(keras.tree.flatten(self.model(_single(tensors))))
        return keras.tree.map_structure(
            lambda x: next(outputs) if isinstance(x, keras.KerasTensor) else x, self.structure
        )


class _Writer:
    """Writes out composites; each of them once, so that what is shared stays shared."""

    def __init__(self):
        self.models: dict[int, tuple] = {}
        self.composites: dict[int, dict[str, _Written | None]] = {}
        self.reasons: dict[str, str] = {}

    def graph(self, model: keras.Model) -> keras.Model:
        """A functional or sequential model with its composites written out."""
        if id(model) not in self.models:
            changed = False

            def visit(node, args, kwargs):
                nonlocal changed
                written = self.operation(node.operation, args, kwargs)
                changed |= written is not node.operation
                if isinstance(written, _Written):
                    return written(args, kwargs)
                return written(*args, **kwargs)

            inputs = copying.new_inputs(model, [t.shape for t in graph.body(model).inputs])
            outputs = graph.replay(model, inputs, visit)
            structure = graph.structured_inputs(model, inputs)
            written = keras.Model(structure, outputs, name=model.name) if changed else model
            self.models[id(model)] = written, model  # which stays alive, and its id with it
        return self.models[id(model)][0]

    def operation(self, operation, args, kwargs):
        """What stands in the place of an operation."""
        if graph.is_graph(operation):
            return self.graph(operation)
        return (_is_composite(operation) and self.composite(operation, args, kwargs)) or operation

    def composite(self, layer: keras.Layer, args, kwargs) -> _Written | None:
        """A model that does what a layer does, or `None` (and a reason) if there is none."""
        variants = self.composites.setdefault(id(layer), {})
        key = _described(args, kwargs)
        if key not in variants:
            variants[key] = None
            # With an open batch size if that will do; else with one that is then opened.
            for batch in (None, PROBE):
                try:
                    written = variants[key] = self._write(layer, args, kwargs, batch)
                    if len(variants) > 1:  # called with other shapes or settings, too
                        written.model.name += f"_{len(variants)}"
                    break
                except Exception as error:  # whatever code of users raises on symbolic tensors
                    first = (str(error).strip() or repr(error)).splitlines()[0]
                    self.reasons.setdefault(layer.name, f"{type(error).__name__}: {first}")
        return variants[key]

    def _write(self, layer, args, kwargs, batch) -> _Written:
        kwargs = {k: v for k, v in kwargs.items() if k != "training"}
        if not layer.built:
            _build(layer, args, kwargs)
        if "training" in inspect.signature(layer.call).parameters:
            kinds = [
                _kinds(self._trace(layer, args, {**kwargs, "training": flag}, batch).model)
                for flag in (False, True)
            ]
            if kinds[0] != kinds[1]:
                raise ValueError("it does something else in training")
        written = self._trace(layer, args, kwargs, batch)
        if batch is not None:
            written = dataclasses.replace(written, model=_with_open_batch(written.model))
        if {id(w) for w in written.model.weights} != {id(w) for w in layer.weights}:
            raise ValueError("it has weights that are not those of its layers")
        _check_outputs(written, lambda values: _infer(layer, *_fill(args, kwargs, values)))
        return written

    def _trace(self, layer, args, kwargs, batch) -> _Written:
        """The graph that a layer's `call` makes of symbolic tensors."""

        def call(part, proceed, args, kwargs):
            written = None
            if part is not layer and _is_composite(part) and _tensors(args, kwargs):
                written = self.composite(part, args, kwargs)
            return proceed(part, *args, **kwargs) if written is None else written(args, kwargs)

        inputs = [
            keras.Input(batch_shape=(batch or t.shape[0], *t.shape[1:]), dtype=t.dtype)
            for t in _tensors(args, kwargs)
        ]
        args, kwargs = _fill(args, kwargs, inputs)
        with graph.intercepted_calls(call):
            outputs = layer.call(*args, **kwargs)
        model = keras.Model(_single(inputs), _tensors(outputs, {}), name=layer.name)
        return _Written(_with_open_reshapes(model), outputs)


def _build(layer, args, kwargs) -> None:
    """Lets a layer make its weights, if a symbolic call does; else its parts do when traced."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        layer(*args, **kwargs)


def _is_composite(operation) -> bool:
    """Whether something is a layer without a rule, which may be made of others."""
    rule = registered(type(operation))
    known = graph.is_graph(operation) or (rule is not None and not getattr(rule, "warns", False))
    return isinstance(operation, keras.Layer) and not known and not is_wrapper(operation)


def _single(values: list) -> Any:
    return values[0] if len(values) == 1 else values


def _infer(layer, args, kwargs) -> Any:
    return graph.infer(layer, *args, **kwargs)


def _tensors(args, kwargs) -> list[keras.KerasTensor]:
    """The symbolic tensors of a call."""
    flat = keras.tree.flatten((args, kwargs))
    return [x for x in flat if isinstance(x, keras.KerasTensor)]


def _described(args, kwargs) -> str:
    """The shapes and settings of a call, but for `training`."""
    kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    return repr(
        keras.tree.map_structure(
            lambda x: x.shape if isinstance(x, keras.KerasTensor) else x, (args, kwargs)
        )
    )


def _fill(args, kwargs, values) -> tuple[tuple, dict]:
    """A call's arguments with other values for its tensors."""
    pending = iter(values)
    return keras.tree.map_structure(
        lambda x: next(pending) if isinstance(x, keras.KerasTensor) else x, (args, kwargs)
    )


def _with_open_reshapes(model: keras.Model) -> keras.Model:
    """A graph that may be called: a reshape to the unknown batch size was written as `None`."""
    if not any(None in op.newshape for op in model.operations if isinstance(op, RESHAPE)):
        return model
    return _replayed(model, [tensor.shape for tensor in model.inputs])


def _with_open_batch(model: keras.Model) -> keras.Model:
    """A graph traced at one batch size as one for any."""
    return _replayed(model, [(None, *tensor.shape[1:]) for tensor in model.inputs])


def _replayed(model: keras.Model, shapes: list) -> keras.Model:
    """The same graph on other input shapes; reshapes leave the batch axis open."""

    def visit(node, args, kwargs):
        operation = node.operation
        if isinstance(operation, RESHAPE) and args[0].shape[0] is None:
            return RESHAPE(_open_shape(operation, args[0], node.outputs[0]))(args[0])
        return operation(*args, **kwargs)

    inputs = copying.new_inputs(model, shapes)
    outputs = graph.replay(model, inputs, visit)
    return keras.Model(_single(inputs), outputs, name=model.name)


def _open_shape(reshape, source, target) -> list[int]:
    """The new shape with an open batch axis, if the sizes of all others can be known."""
    given = list(reshape.newshape)
    sizes = [size if size != -1 else n for size, n in zip(given, target.shape, strict=True)][1:]
    if given[0] == -1 and None not in given:
        return given
    if None in sizes and sizes.count(None) == 1 and None not in source.shape[1:]:
        whole = math.prod(source.shape[1:])
        known = math.prod(size for size in sizes if size is not None)
        sizes[sizes.index(None)] = whole // known
    return [-1, *sizes]


def _kinds(model: keras.Model) -> list[str]:
    """Classes of the operations of a graph, in order."""
    kinds = []

    def visit(node, args, kwargs):
        kinds.append(type(node.operation).__name__)
        return node.outputs

    graph.replay(model, model.inputs, visit)
    return kinds


def _check_outputs(written: _Written, original: Callable) -> None:
    """Raises unless a graph gives what the original gives, on a random sample.

    Args:
        original: called with the flat list of inputs.
    """
    model = written.model
    shapes = [tuple(ASSUMED_SIZE if n is None else n for n in t.shape[1:]) for t in model.inputs]
    inputs, _ = next(random_samples(model, shapes).batches())
    received = iter(keras.tree.flatten(graph.infer(model, graph.structured_inputs(model, inputs))))
    expected = keras.tree.flatten(original(inputs))
    for want, symbolic in zip(expected, keras.tree.flatten(written.structure), strict=True):
        if isinstance(symbolic, keras.KerasTensor):
            want, got = np.asarray(want, np.float64), np.asarray(next(received), np.float64)
            difference = np.abs(want - got).max(initial=0)
            if not difference <= TOLERANCE * max(np.abs(want).max(initial=0), 1e-9):
                raise ValueError(
                    f"it does what its graph does not show: outputs differ by {difference:.1e}"
                )
