"""Arguments that have another name now: the old one works for one version, and warns."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from keras_nisp.errors import warn

Function = TypeVar("Function", bound=Callable)


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
                    f"`{old}` of `{function.__name__}` is now called `{new}`; the old name "
                    "will go with the next version.",
                    DeprecationWarning,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate
