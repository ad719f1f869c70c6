"""Can a model be loaded again after it was saved? Tried by its config, without its weights."""

import contextlib
import json
import re
import types
import warnings
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_nisp.errors import reason_of, several, warn
from keras_nisp.keras_graph import calling, copying, keras_models, layer_state
from keras_nisp.keras_graph.rounding import relative_difference

SAME = 1e-6  # over the scale of what an activation gives
ADVICE = "let its class give a `get_config` from which its constructor makes it again"
ADVICE_FOR_LAMBDAS = (
    "a file has the code of a function, and not what it uses from around it (`tf`, say): write a "
    "layer class in place of the `Lambda`"
)
ADVICE_FOR_CALLS = (
    "let the call take tensors, numbers and text alone, or let the layer hold the rest and give it "
    "in `get_config`"
)


def loading_fault(model: keras.Model) -> str | None:
    """Says what keeps a `.keras` file of a model from being loaded.

    Nothing is written, and no memory is taken for weights. Who loads the file is taken to
    have the model's own classes.

    Args:
        model: a built model.

    Returns:
        `None` if the model can be saved and loaded; else why not, with the layer's name where
        it is one layer.
    """
    with keras.saving.custom_object_scope(copying.own_objects(model)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Saving and loading will say the same.
        fault = _fault(model)
        if fault is None:
            return None
        faults: dict[str, list[str]] = {}
        for layer in keras_models.all_layers(model):
            if not keras_models.is_graph(layer) and (own := _fault(layer)) is not None:
                title = f"'{layer.name}' ({type(layer).__name__})"
                faults.setdefault(own, []).append(title)
    if not faults:
        return fault
    told = (f"layer {several(titles)}: {own}" for own, titles in faults.items())
    return several(told, what="faults", between="; ")


def warn_of_names(model: keras.Model) -> None:
    """Warns of functions that Keras' files hold by a name under which it loads others.

    `activation=keras.ops.gelu` comes back as `keras.activations.gelu`, and so does a `gelu` of the
    user's own.
    """
    parts = [part for part, _ in layer_state.paired_parts(model, model)]
    held = {value for part in parts for value in vars(part).values() if _is_function(value)}
    for function in sorted(held, key=lambda function: function.__name__):
        loaded = getattr(keras.activations, function.__name__, function)
        if loaded is function or not isinstance(keras.activations.serialize(function), str):
            continue  # since 3.16 files name the module as well
        if not _same_numbers(function, loaded):
            warn(
                f"Files of model '{model.name}' hold the function '{function.__name__}' of module "
                f"'{function.__module__}' by its name, and Keras loads "
                f"`keras.activations.{function.__name__}`, which computes something else. Before "
                "training, give layers that one, or a function of another name that was "
                "registered by `@keras.saving.register_keras_serializable()`."
            )


def warn_of_functions(model: keras.Model) -> None:
    """Warns of functions that whoever loads a file of the model, which can be saved, has to name.

    A layer of one's own may load by itself, and the functions that it gives to layers of Keras, of
    which a graph is made, do not.
    """
    if held := _unregistered_functions(model):
        told = several(f"'{x.__name__}' (of module '{x.__module__}')" for x in held)
        given = ", ".join(f"'{x.__name__}': {x.__name__}" for x in held)
        warn(
            f"Files of model '{model.name}' hold functions by their names: {told}. Load them with "
            f"`custom_objects={{{given}}}`, or register the functions by "
            "`@keras.saving.register_keras_serializable()` before you save."
        )


def _unregistered_functions(model: keras.Model) -> list[types.FunctionType]:
    """The functions that a file of the model holds, and that Keras does not know by name."""
    own = [value for value in copying.own_objects(model).values() if _is_function(value)]
    unknown = [x for x in own if keras.saving.get_registered_name(x) == x.__name__]
    if not unknown:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Saving will say the same.
        config = json.dumps(keras.saving.serialize_keras_object(model))
    # Since Keras 3.16 files name the module as well, and it is looked up there.
    held = '"module": "builtins", "class_name": "function", "config": "{}"'
    return [x for x in unknown if held.format(x.__name__) in config]


def _is_function(value: object) -> bool:
    return isinstance(value, types.FunctionType)


def _same_numbers(one: Callable, other: Callable) -> bool:
    """Whether two activations give the same, as far as they can be tried."""
    values = tf.reshape(tf.linspace(-3.0, 3.0, 16), (2, 8))
    try:
        return relative_difference(one(values), other(values)) < SAME
    except (TypeError, ValueError, tf.errors.OpError):
        return False


def _fault(part: keras.Layer) -> str | None:
    try:
        config = keras.saving.serialize_keras_object(part)
        config.pop("compile_config", None)
        config = json.dumps(config)
    except Exception as error:  # whatever code of users raises in `get_config`
        return f"its config cannot be written ({reason_of(error)}): {ADVICE}"
    # Without values for weights first; some layers need them when they are built.
    for scope in (calling.without_memory, contextlib.nullcontext):
        try:
            with scope():
                return _difference(part, _loaded(config))
        except Exception as error:  # whatever code of users raises in `__init__` or `build`
            fault = error  # the last is told: a file is loaded in that way
    if keras_models.is_graph(part):
        return _fault_of_calls(part, fault)
    return f"it cannot be made from its config ({reason_of(fault)}): {ADVICE}"


def _fault_of_calls(model: keras.Model, error: Exception) -> str:
    """What cannot be made again of a model whose layers can: calls of those that the error names,
    or else of those of a class that it names."""
    layers = [x for x in keras_models.all_layers(model) if not keras_models.is_graph(x)]
    named = [layer for layer in layers if f"'{layer.name}'" in str(error)]
    words = set(re.findall(r"\w+", str(error)))
    named = named or [layer for layer in layers if type(layer).__name__ in words]
    what = several(f"'{layer.name}'" for layer in named) or "its layers"
    of_code = any(isinstance(layer, keras.layers.Lambda) for layer in named)
    advice = ADVICE_FOR_LAMBDAS if of_code else ADVICE_FOR_CALLS
    return f"its calls of {what} cannot be made from its config ({reason_of(error)}): {advice}"


def _loaded(config: str) -> keras.Layer:
    return keras.saving.deserialize_keras_object(json.loads(config), safe_mode=False)


def _difference(part: keras.Layer, loaded: keras.Layer) -> str | None:
    """What weights of another number or shape are there; a layer may build them when called."""
    expected, received = ([tuple(w.shape) for w in x.weights] for x in (part, loaded))
    if expected == received or not (keras_models.is_graph(part) or received):
        return None
    if keras_models.is_graph(part) and len(received) > len(expected):
        return "Keras gives each of its nested models a copy of the layers that they share"
    return (
        f"made from its config, it has weights of the shapes {received} instead of {expected}: "
        f"{ADVICE}"
    )
