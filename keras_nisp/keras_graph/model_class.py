"""Models of people's own classes, made from other layers: constructor, settings, `train_step`."""

from typing import Any

import keras
from keras.src.models.functional import functional_like_constructor

from keras_nisp.errors import warn
from keras_nisp.keras_graph import keras_layers, keras_models
from keras_nisp.keras_graph.arguments import constructor_parameters

# What a class may say otherwise than Keras does, and what is lost with the class.
BEHAVIOUR = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
    "compile",
    "compile_from_config",
    "fit",
    "evaluate",
    "predict",
    "metrics",
    "make_train_function",
    "make_test_function",
    "make_predict_function",
)
# What Keras' own configs of models hold; all else is a setting of the class.
GRAPH_KEYS = {
    *("name", "trainable", "dtype", "layers", "input_layers", "output_layers"),
    "build_input_shape",
}


def of_class(model: keras.Model, *graph_parts: Any, quiet: bool = False) -> keras.Model:
    """A model of the class and settings of another, from other layers.

    A class gets its settings as Keras gives them when it loads a model, or by the names of its
    constructor's arguments. One whose constructor makes the layers itself cannot be given others:
    then the result is a plain model, with a warning if the class had a say in training.

    Args:
        model: the functional or sequential model to follow.
        *graph_parts: inputs and outputs; or for a sequential model the list of input and layers.
        quiet: no warning.
    """
    new = _of_class(model, graph_parts, quiet)
    if new.dtype_policy != model.dtype_policy:
        new.dtype_policy = model.dtype_policy  # by which `compile` decides on a loss scale
    return new


def _of_class(model: keras.Model, graph_parts: tuple, quiet: bool) -> keras.Model:
    kind, base = type(model), _base(model)
    if base is keras.Sequential and len(graph_parts) == 2:
        if not quiet:
            _warn_of_loss(model, "it is no row of layers any more")
        return keras.Model(*graph_parts, name=model.name, trainable=model.trainable)
    if kind is base:
        return kind(*graph_parts, name=model.name, trainable=model.trainable)
    reason = "its constructor does not take " + ("layers" if len(graph_parts) == 1 else "a graph")
    new = None
    if _takes_graph(kind, base):
        try:
            new = kind(**_arguments(model, base, graph_parts))
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            reason = f"its constructor raises {type(error).__name__}: {error}"
        if new is not None and not _holds(new, base, graph_parts):
            new, reason = None, "its constructor adds to the graph that it is given"
    if new is not None:
        new.name, new._trainable = model.name, model.trainable
        return new
    if not quiet:
        _warn_of_loss(model, reason)
    return base(*graph_parts, name=model.name, trainable=model.trainable)


def _base(model: keras.Model) -> type:
    """The class of Keras that knows the graph."""
    if isinstance(model, keras.Sequential):
        return keras.Sequential
    own = type(model)
    return own if keras_layers.is_of_keras(own) else keras.Model


def _takes_graph(kind: type, base: type) -> bool:
    needed = {"layers"} if base is keras.Sequential else {"inputs", "outputs"}
    return needed <= set(constructor_parameters(kind)) or functional_like_constructor(kind)


def _arguments(model: keras.Model, base: type, graph_parts: tuple) -> dict:
    """The constructor's arguments: the graph, what the config holds, and attributes of the names
    that remain."""
    kind = type(model)
    parameters = constructor_parameters(kind)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = ("layers",) if base is keras.Sequential else ("inputs", "outputs")
    given = {**_settings(model), "name": model.name}
    arguments = {k: v for k, v in given.items() if takes_any or k in parameters}
    arguments |= dict(zip(names, graph_parts, strict=True))
    for name, parameter in parameters.items():
        if name in arguments or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        value = getattr(model, name, getattr(model, f"_{name}", parameter.default))
        if value is parameter.empty:
            raise TypeError(
                f"it needs `{name}`, which is neither in `get_config` nor an attribute of the model"
            )
        arguments[name] = value
    return arguments


def _settings(model: keras.Model) -> dict:
    """What `get_config` of a class of one's own holds besides the graph."""
    defined = type(model).get_config
    if keras_layers.is_of_keras(defined):
        return {}
    try:
        config = model.get_config()
    except (NotImplementedError, OSError):  # Keras cannot write down how this model was made
        return {}
    return {k: v for k, v in config.items() if k not in GRAPH_KEYS}


def _holds(new: keras.Model, base: type, graph_parts: tuple) -> bool:
    """Whether a model computes the graph that it was given, and nothing else."""
    if not keras_models.is_graph(new):
        return False
    if base is keras.Sequential:
        layers = [part for part in graph_parts[0] if isinstance(part, keras.Layer)]
        return [id(x) for x in new.layers] == [id(x) for x in layers]
    ends = keras.tree.flatten(graph_parts[1])
    return [id(x) for x in keras_models.body(new).outputs] == [id(x) for x in ends]


def own_behaviour(model: keras.Model) -> list[str]:
    """Names of what a model's class does otherwise than Keras."""
    found = {name: getattr(type(model), name) for name in BEHAVIOUR}
    found = {name: getattr(value, "fget", value) for name, value in found.items()}
    return [name for name, value in found.items() if not keras_layers.is_of_keras(value)]


def _warn_of_loss(model: keras.Model, reason: str) -> None:
    """Says what a plain model does otherwise than a model's own class."""
    if lost := own_behaviour(model):
        warn(
            f"Model '{model.name}' ({type(model).__name__}) becomes a plain model, since {reason}: "
            f"`{'`, `'.join(lost)}` of the class are lost. Give the class an `__init__` that takes "
            "`(inputs, outputs, ..., **kwargs)` and a `get_config` with its other arguments; or, "
            "if its hyperparameters say how wide it is, use `keras_nisp.as_original`."
        )
