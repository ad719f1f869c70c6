"""Arguments that have another name now: the old name works for one version, with a warning."""

import functools
import warnings
from collections.abc import Callable
from typing import Any


def renamed(**names: str) -> Callable:
    """Lets a function take arguments by their old names.

    Args:
        **names: the new name for each old one.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(
                        f"Expected `{new}` alone. Received it and `{old}`, its old name."
                    )
                warnings.warn(
                    f"`{old}` of `{function.__name__}` is now called `{new}`; the old name will go "
                    "with the next version.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
