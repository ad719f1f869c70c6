"""Copies of models and layers. With `graph.py` the only file that touches Keras internals."""

import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras.src.models.functional import functional_like_constructor

from keras_nisp.graph import body, replay, structured_inputs


def clone_model(model: keras.Model, inputs: list, clone: Callable, call: Callable):
    """Builds a model of the same class and structure from other layers.

    Args:
        model: the functional or sequential model to follow.
        inputs: flat list of new symbolic inputs.
        clone: `clone(operation)` gives the operation to use in its place.
        call: `call(node, operation, args, kwargs)` calls that operation.

    Returns:
        The new model, not compiled.
    """
    if isinstance(model, keras.Sequential):
        layers = [clone(layer) for layer in model.layers]
        return type(model)([*inputs, *layers], name=model.name, trainable=model.trainable)

    def visit(node, args, kwargs):
        return call(node, clone(node.operation), args, kwargs)

    outputs = replay(model, inputs, visit)
    cls = type(model) if functional_like_constructor(type(model)) else keras.Model
    structure = structured_inputs(model, inputs)
    return cls(structure, outputs, name=model.name, trainable=model.trainable)


def copy_model(model: keras.Model, clone: Callable) -> keras.Model:
    """A copy of a model and of its weights, with other layers in places.

    Args:
        model: a functional or sequential model.
        clone: `clone(layer)` gives the layer to use in its place; it keeps its weights if it
            has as many.
    """
    pairs = []

    def noted(layer):
        if not isinstance(layer, keras.Layer):
            return layer
        pairs.append((layer, clone(layer)))
        return pairs[-1][1]

    copy = keras.models.clone_model(model, clone_function=noted, recursive=True)
    for old, new in pairs:
        if len(old.weights) == len(new.weights):
            new.set_weights(old.get_weights())
    return copy


def plain_copy(layer: keras.Layer, **settings) -> keras.Layer:
    """A copy of a layer from its config, with other settings."""
    return copy_layer(layer, {**layer_config(layer), **settings})


def copy_layer(layer: keras.Operation, config: dict) -> keras.Operation:
    """A new layer from a config; functions that are not of Keras are shared with the old one."""
    functions = {}
    for key in config:
        value = getattr(layer, key, getattr(layer, f"_{key}", None))
        if isinstance(value, types.FunctionType) and not value.__module__.startswith("keras."):
            functions[key] = value
    if functions:
        return type(layer)(**{**config, **functions})
    try:
        return type(layer).from_config(dict(config))
    except (TypeError, ValueError):
        # Some custom layers put into their config what their constructor does not take.
        known = set(inspect.signature(type(layer).__init__).parameters)
        known |= {"name", "dtype", "trainable"}
        if known >= set(config):
            raise
        return type(layer).from_config({k: v for k, v in config.items() if k in known})


def layer_config(layer: keras.Operation) -> dict:
    """The layer's config, without Keras' warning that it holds a lambda."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*includes a `lambda`")
        try:
            config = layer.get_config()
            return _without_builds(config) if {"layer", "cell"} & set(config) else config
        except NotImplementedError:
            # Keras cannot write down an Identity that was given a dtype policy.
            if type(layer) is not keras.layers.Identity:
                raise
            return {"name": layer.name, "dtype": layer.dtype_policy.name}


def _without_builds(config: Any) -> Any:
    """A config whose wrapped layers are not built at their old sizes."""
    if isinstance(config, dict):
        return {k: _without_builds(v) for k, v in config.items() if k != "build_config"}
    return [_without_builds(v) for v in config] if isinstance(config, list) else config


def new_inputs(model: keras.Model, shapes: list) -> list:
    """Symbolic inputs like those of `model`, with other shapes (batch axis included)."""
    inputs = []
    for tensor, shape in zip(body(model).inputs, shapes, strict=True):
        layer = tensor._keras_history.operation
        optional = getattr(layer, "optional", False)
        new = keras.Input(
            batch_shape=shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            name=layer.name,
            optional=optional,
        )
        new.name = tensor.name  # which serving signatures are named after
        inputs.append(new)
    return inputs


def paired_variables(old: keras.Operation, new: keras.Operation) -> list[tuple]:
    """Variables of an operation and of its clone: all weights, then states such as seeds."""
    if not isinstance(old, keras.Layer):
        return []
    weights = list(zip(old.weights, new.weights, strict=True))
    states = [
        [v for v in layer.variables if not any(v is w for w in layer.weights)]
        for layer in (old, new)
    ]
    return weights + list(zip(*states, strict=False))
