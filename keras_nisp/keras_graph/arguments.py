"""The arguments of a call in one form, however its author wrote them; those of constructors."""

import inspect
from typing import Any

import keras


def arranged(operation: keras.Operation, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """What a call must be given comes by position: `layer(inputs=x)` is `layer(x)`.

    Options of layers stay as they were given; operations, which have few, get them by position.

    Args:
        operation: the layer or operation.
        args, kwargs: of the call.
    """
    if len(args) == 1 and not kwargs:
        return args, kwargs
    placed, named = list(args), dict(kwargs)
    options_too = not isinstance(operation, keras.Layer)
    for name, parameter in list(inspect.signature(operation.call).parameters.items())[len(args) :]:
        if name not in named or not (options_too or parameter.default is parameter.empty):
            break
        placed.append(named.pop(name))
    return tuple(placed), named


def constructor_parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """What the `__init__` of a class takes besides `self`, by name."""
    return dict(list(inspect.signature(kind.__init__).parameters.items())[1:])


def as_written(
    operation: keras.Operation, count: int, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    """Undoes `arranged`: Keras notes the mask of `layer(x)` in its graph, not of `layer(inputs=x)`.

    Args:
        operation: the layer or operation.
        count: how many arguments its author gave by position.
        args, kwargs: of the call, arranged.
    """
    if len(args) <= count:
        return args, kwargs
    names = list(inspect.signature(operation.call).parameters)[count : len(args)]
    return args[:count], {**dict(zip(names, args[count:], strict=True)), **kwargs}
