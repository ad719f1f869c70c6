"""Arguments that have another name or place now: the old way works for one version, and warns."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from keras_nisp.errors import warn

Function = TypeVar("Function", bound=Callable)
END = "the old way will go with the next version."


def renamed(**names: str) -> Callable[[Function], Function]:
    """Lets a function take arguments by their old names.

    Args:
        **names: the new name for each old one.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(
                        f"Expected `{new}` alone. Received it and `{old}`, its old name."
                    )
                warn(
                    f"`{old}` of `{function.__name__}` is now called `{new}`; {END}",
                    DeprecationWarning,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


def small_first(function: Function) -> Function:
    """Lets a function of `small` and `original` take them by position in the old order.

    The original is the one with more weights.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        named = args and "small" in kwargs
        if named or (len(args) > 1 and _weights(args[0]) > _weights(args[1])):
            name = function.__name__
            warn(f"`{name}` now takes `small` before `original`; {END}", DeprecationWarning)
            args = (kwargs.pop("small"), *args) if named else (args[1], args[0], *args[2:])
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _weights(model: Any) -> int:
    """How many weights a model has; 0 for what is none, or not built."""
    return model.count_params() if isinstance(model, keras.Model) and model.built else 0
