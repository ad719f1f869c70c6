"""Copies of layers and models."""

import contextlib
import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.saving.serialization_lib import SafeModeScope

from keras_nisp.errors import reason_of, warn
from keras_nisp.keras_graph import layer_state
from keras_nisp.keras_graph.arguments import as_written, constructor_parameters
from keras_nisp.keras_graph.keras_layers import is_of_keras
from keras_nisp.keras_graph.keras_models import body, is_graph, structured_inputs
from keras_nisp.keras_graph.model_class import of_class
from keras_nisp.keras_graph.symbolic import called
from keras_nisp.keras_graph.walking import replay
from keras_nisp.keras_graph.wrappers import is_wrapper, rewrap

FAILURES = (TypeError, ValueError, NotImplementedError, AttributeError, KeyError)
# Of every layer, whatever its constructor takes: settings in configs, and attributes.
SETTABLE = ("name", "dtype", "trainable")
ATTRIBUTES = ("dtype_policy", "trainable", "activity_regularizer", "autocast", "supports_masking")
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def clone_model(
    model: keras.Model,
    inputs: list,
    clone: Callable,
    arguments: Callable = lambda node, args, kwargs: (args, kwargs),
):
    """Builds a model of the same class and structure from other layers.

    Args:
        model: the functional or sequential model to follow.
        inputs: flat list of new symbolic inputs.
        clone: `clone(operation)` gives the operation to use in its place.
        arguments: `arguments(node, args, kwargs)` gives what to call it with.

    Returns:
        The new model, not compiled.
    """
    if isinstance(model, keras.Sequential):
        layers = [clone(layer) for layer in model.layers]
        return of_class(model, [*inputs, *layers])

    def visit(node, args, kwargs):
        args, kwargs = arguments(node, args, kwargs)
        args, kwargs = as_written(node.operation, len(node.arguments.args), args, kwargs)
        return called(clone(node.operation), args, kwargs)

    outputs = replay(model, inputs, visit)
    return of_class(model, structured_inputs(model, inputs), outputs)


def copy_model(
    model: keras.Model, instead: Callable = lambda layer: None, **settings
) -> keras.Model:
    """A copy of a model with all that it holds.

    Args:
        model: a functional or sequential model.
        instead: `instead(layer)` gives another layer to use in its place, or `None`.
        **settings: replace those in the configs of layers.

    Returns:
        The copy, not compiled.
    """
    copies: dict[int, keras.Operation] = {}

    def copied(operation):
        if id(operation) not in copies:
            if is_graph(operation):
                copies[id(operation)] = _copy_graph(operation, copied)
                models.append(operation)
            elif not isinstance(operation, keras.Layer):
                return operation  # which holds nothing
            elif is_wrapper(operation):
                copies[id(operation)] = rewrap(operation, copied, **settings)
            else:
                copies[id(operation)] = instead(operation) or copy_layer(operation, **settings)
                originals.append(operation)
        return copies[id(operation)]

    originals: list[keras.Operation] = []
    models: list[keras.Model] = []
    copy = copied(model)
    for layer in originals:
        if type(copies[id(layer)]) is type(layer):
            layer_state.carry(layer, copies[id(layer)])
    for graph in models:
        layer_state.carry_own(graph, copies[id(graph)], set(copies))
    return copy


def _copy_graph(model: keras.Model, copied: Callable) -> keras.Model:
    inputs = new_inputs(model, [tensor.shape for tensor in body(model).inputs])
    return clone_model(model, inputs, copied)


def copy_layer(layer: keras.Operation, /, **settings) -> keras.Operation:
    """A new layer like an old one, without its weights, with other settings in its config.

    It is made as Keras does when it loads a layer, from the config. Where the class does not take
    what its config holds, it is made from the arguments that Keras noted when the old one was
    made, or without arguments that it does not name and that can be set afterwards.

    Args:
        layer: the layer or operation.
        **settings: replace those of its config.

    Raises:
        TypeError: there is no way to make it.
    """
    failures, doubtful = [], []
    for make in _ways(layer, settings):
        try:
            with keras.saving.custom_object_scope(own_objects(layer)), SafeModeScope(False):
                copy = make()
                _settle(layer, copy, settings)
        except FAILURES as error:
            failures.append(error)
            continue
        if not (lost := _lost_settings(layer, copy, settings)):
            return copy
        doubtful.append((copy, lost))
    if doubtful:
        copy, lost = doubtful[0]
        warn(
            f"Layer '{layer.name}' ({type(layer).__name__}) does not restore all that its "
            f"`get_config` returns: its copy differs in {lost}. `__init__` (or `from_config`) must "
            "take every entry of the config and use it."
        )
        return copy
    raise TypeError(
        f"Layer '{layer.name}' ({type(layer).__name__}) cannot be copied from its config: "
        f"{reason_of(failures[0])}. Give the class a `get_config` that holds all arguments of "
        "its `__init__`, and an `__init__` that takes them by name."
    ) from failures[0]


def _ways(layer: keras.Operation, settings: dict) -> Iterator[Callable]:
    """Functions that may make a copy of a layer, the best first."""
    kind = type(layer)
    try:
        config = {**layer_config(layer), **settings}
    except FAILURES as failure:
        error = failure  # kept after the block

        def fail():
            raise error

        config = None
        yield fail
    if config is not None:
        functions = _own_functions(layer, config.keys() - settings.keys())
        if functions:
            yield lambda: kind(**{**config, **functions})
        yield lambda: kind.from_config({**config, **functions})
    recorded = getattr(layer, "_auto_config", None)
    if recorded is not None:
        yield lambda: kind(**_taken(kind, {**recorded.config, **settings}))
    if config is not None:
        yield lambda: _without_unexpected(layer, {**config, **functions})
    if not isinstance(layer, keras.Layer) and not settings:
        yield lambda: layer  # an operation holds nothing, so models may share it


def _own_functions(layer: keras.Operation, names: Iterable[str]) -> dict:
    """Functions among settings, but activations of Keras: the copy shares them with the layer.

    Keras writes down their names alone, and `gelu` of `keras.ops` is not that of
    `keras.activations`.
    """
    functions = {}
    for key in names:
        value = getattr(layer, key, getattr(layer, f"_{key}", None))
        if isinstance(value, types.FunctionType) and not is_of_keras(value, "activations"):
            functions[key] = value
    return functions


def _taken(kind: type, arguments: dict) -> dict:
    """Arguments without what a class cannot be given but what can be set on any layer."""
    parameters = constructor_parameters(kind)
    if _takes_any(kind):
        return arguments
    return {k: v for k, v in arguments.items() if k in parameters or k not in SETTABLE}


def _takes_any(kind: type) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in constructor_parameters(kind).values())


def _without_unexpected(layer: keras.Layer, config: dict) -> keras.Layer:
    """A layer from its config without what the constructor says that it does not take."""
    kind, config, dropped = type(layer), dict(config), []
    while True:
        try:
            copy = kind.from_config(dict(config))
            break
        except FAILURES as error:
            named = UNEXPECTED.findall(str(error))
            if _takes_any(kind) or not named or named[-1] not in config:
                raise
            dropped.append(named[-1])
            del config[named[-1]]
    if lost := [name for name in dropped if name not in SETTABLE]:
        warn(
            f"`get_config` of layer '{layer.name}' ({kind.__name__}) holds {lost}, which its "
            "`__init__` does not take: the copy is made without."
        )
    return copy


def _settle(layer: keras.Operation, copy: keras.Operation, settings: dict) -> None:
    """Gives a copy what every layer has, if its constructor or its config does not know of it."""
    if "name" not in settings and copy.name != layer.name:
        copy.name = layer.name
    for name in ATTRIBUTES if isinstance(layer, keras.Layer) else ():
        given, wanted = settings.get(name.removesuffix("_policy")), getattr(layer, name)
        if given is None and not _same_setting(getattr(copy, name), wanted):
            setattr(copy, name, wanted)


def _same_setting(one: Any, other: Any) -> bool:
    if isinstance(one, keras.Regularizer) and type(one) is type(other):
        with contextlib.suppress(NotImplementedError):
            return _equal(one.get_config(), other.get_config())
    return one == other


def _lost_settings(layer: keras.Operation, copy: keras.Operation, settings: dict) -> str:
    """What a copy's config has otherwise than it was asked for; empty if all is well."""
    if copy is layer or is_of_keras(type(layer)):
        return ""
    try:
        wanted, got = {**layer_config(layer), **settings}, layer_config(copy)
    except FAILURES:
        return ""  # no config, so it was made from the recorded arguments
    lost = [
        f"{key}={got.get(key)!r} (instead of {value!r})"
        for key, value in wanted.items()
        if key not in ("dtype", "build_config") and not _equal(got.get(key), value)
    ]
    return ", ".join(lost)


def _plain(value: Any) -> Any:
    """A part of a config in a form that can be compared."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and value != value:
        return "nan"
    known = isinstance(value, (bool, int, float, str, bytes, type(None)))
    return value if known else type(value).__name__


def own_objects(layer: keras.Operation) -> dict[str, Any]:
    """Classes and functions that are not of Keras, in a layer or model and what it holds: by name,
    as Keras looks for them in configs. Those of whose name there are two are left out."""
    found: dict[str, set] = {}
    for part, _ in layer_state.paired_parts(layer, layer):
        for value in (part, *vars(part).values()):
            known = value if isinstance(value, types.FunctionType) else type(value)
            saved = isinstance(known, types.FunctionType) or hasattr(known, "get_config")
            if saved and not is_of_keras(known):
                found.setdefault(known.__name__, set()).add(known)
    return {name: next(iter(objects)) for name, objects in found.items() if len(objects) == 1}


def layer_config(layer: keras.Operation) -> dict:
    """The layer's config, without Keras' warning that it holds a lambda."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*includes a `lambda`")
        try:
            config = layer.get_config()
            return _without_builds(config) if {"layer", "cell"} & set(config) else config
        except (NotImplementedError, AttributeError):  # it names what the layer does not have
            if not isinstance(layer, keras.Layer):
                return _settings(layer)
            return _config_of_arguments(layer)
        except OSError:  # in a shell, where there is no source that Keras' warning could show
            return _config_without_lambdas(layer)


def _config_without_lambdas(layer: keras.Operation) -> dict:
    """A config for copies, which share the functions of their layer."""
    parts = [part for part, _ in layer_state.paired_parts(layer, layer)]
    held = [(vars(part), key, value) for part in parts for key, value in vars(part).items()]
    held = [row for row in held if isinstance(row[2], types.LambdaType)]
    try:
        for attributes, key, _ in held:
            attributes[key] = keras.activations.linear
        return layer.get_config()
    finally:
        for attributes, key, value in held:
            attributes[key] = value


def _config_of_arguments(layer: keras.Layer) -> dict:
    """A config for copies of a layer that Keras cannot write down, because it was given an
    initializer or a dtype policy: the arguments of its constructor that Keras noted, or else its
    attributes of their names."""
    kind, recorded = type(layer), getattr(layer, "_auto_config", None)
    noted = recorded.config if recorded is not None else {}
    noted_not = getattr(layer, "_auto_config_error_args", False)  # Keras does not note `*args`
    config = {"name": layer.name, "dtype": layer.dtype_policy.name, "trainable": layer.trainable}
    for name, parameter in constructor_parameters(kind).items():
        if parameter.kind is parameter.VAR_POSITIONAL and noted_not:
            raise NotImplementedError(f"nothing says what `*{name}` were.")
        if name in config or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        value = noted.get(name, getattr(layer, name, getattr(layer, f"_{name}", layer)))
        parts = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, keras.Layer) or not all(map(_is_setting, parts)):
            raise NotImplementedError(f"no attribute of the layer says what `{name}` was.")
        config[name] = value
    return _taken(kind, config)


def _is_setting(value: Any) -> bool:
    is_function = isinstance(value, types.FunctionType)
    return is_function or layer_state.is_plain(value) or hasattr(value, "get_config")


def _settings(operation: keras.Operation) -> dict:
    """The settings of an operation that was given arrays, which Keras does not write down."""
    config = {}
    for name in constructor_parameters(type(operation)):
        value = getattr(operation, name, getattr(operation, f"_{name}", None))
        is_array = isinstance(value, np.ndarray) or tf.is_tensor(value)
        config[name] = np.asarray(value).tolist() if is_array else value
    return config


def changes(before: dict, after: dict) -> dict:
    """The settings of one config that another does not have or has otherwise."""
    return {k: v for k, v in after.items() if k not in before or not _equal(before[k], v)}


def _equal(one: Any, other: Any) -> bool:
    return _plain(one) == _plain(other)


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
