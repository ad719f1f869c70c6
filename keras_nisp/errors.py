"""Errors and warnings of this package, all of them also the usual built-in kinds."""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

HOME = f"{Path(__file__).parent}{os.sep}"
LONGEST_REASON = 300


class NoFinalResponseLayerError(ValueError):
    """The layer that feeds the classifier could not be found."""


class BudgetError(ValueError):
    """A reduction or a width that cannot be reached, whatever the budget counts."""


class PlanMismatchError(ValueError):
    """A plan that was made for a model of another structure."""


class PlanFileError(ValueError):
    """A file that is not a plan or a result of `sensitivity`, is damaged, or does not fit."""


class RuleError(TypeError):
    """A rule of a layer that fails, or that declares something impossible about the layer."""


class VerificationError(ValueError):
    """A rebuilt model that does not give what the plan says it must give."""


class NotCollapsedError(ValueError):
    """Clusters that are to be merged but are not identical."""


class ConversionError(ValueError):
    """A model that cannot be converted: to tf_keras, by TFMOT, or to the original's class."""


class ReasonError(ValueError):
    """A reason that becomes part of the message of another error."""


class DataRangeWarning(UserWarning):
    """Calibration data that seem to be in another range than the model was trained on."""


class UnknownLayerWarning(UserWarning):
    """A layer without a rule: its channels stay."""


class ExportError(ValueError):
    """A model that cannot be exported, or whose export does not compute the same."""


def warn(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warns with the first frame outside this package as the location."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(HOME):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises unless an argument is a whole number of at least 1, or of at least 0 for a seed."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(
            f"Expected `{name}` to be an integer of at least {least}. Received: {value!r}"
        )


def check_number(name: str, value: Any, within: str, holds: Callable[[Any], bool]) -> None:
    """Raises unless an argument is a number for which something holds.

    Args:
        name: of the argument.
        value: the user's.
        within: which numbers do, in words: "above 0".
        holds: tells of a number whether it does.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not holds(value):
        raise (ValueError if number else TypeError)(
            f"Expected `{name}` to be a number {within}. Received: {name}={value!r}"
        )


def check_function(name: str, value: Any) -> None:
    """Raises unless an argument can be called, and is no class that was not instantiated."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"Expected `{name}` to be a function. Received: {name}={value!r}")


def several(names: Iterable[str], most: int = 4, what: str = "", between: str = ", ") -> str:
    """The first few of some names, and how many more there are.

    Args:
        names: names to list.
        most: largest number of names to list.
        what: plural noun for the rest.
        between: separator.
    """
    names = list(names)
    more = f" and {len(names) - most} more {what}".rstrip() if len(names) > most else ""
    return between.join(names[:most]) + more


@contextlib.contextmanager
def from_extra(extra: str, what: str):
    """For imports of packages that only an extra of this package installs.

    Args:
        extra: name of the extra in setup.cfg.
        what: subject and verb of the error: "`export_onnx` needs".

    Raises:
        ImportError: a package is missing or broken. The message says what to install.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{what} packages that cannot be imported ({error}): "
            f'`pip install "keras-nisp[{extra}]"`.',
            name=error.name,
        ) from error


def reason_of(error: Exception) -> str:
    """The message of an error as one line, without the calls and configs that Keras adds."""
    text = str(*error.args) if isinstance(error, KeyError) and len(error.args) == 1 else str(error)
    text = re.sub(r"\x1b\[\d*m", "", text).split("Arguments received by ")[0]
    for introduction in ("Exception encountered: ", "Error encountered:"):
        text = text.split(introduction)[-1]
    text = re.sub(r"^\s*Exception encountered when calling \S+\.\s", "", text)
    text = " ".join(text.split()).rstrip(".") or repr(error)
    text = text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
    return text if isinstance(error, ReasonError) else f"{type(error).__name__}: {text}"


def first_line(error: Exception) -> str:
    """The first line of an error's message; TensorFlow adds lines about its graph."""
    text = str(getattr(error, "message", error)).strip().splitlines()
    return text[0] if text else type(error).__name__


@contextlib.contextmanager
def each_once(said: set):
    """Lets each kind of warning through only once, over all uses with the same set.

    Args:
        said: the kinds that were let through so far; empty at first.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        kind = (warning.category, warning.filename, warning.lineno)
        if kind not in said:
            said.add(kind)
            warn(warning.message, warning.category)
