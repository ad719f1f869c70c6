"""The registry of rules: which rule is for which class of layers or operations."""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from keras_nisp.channels.rule import BARRIER, Barrier, Rule
from keras_nisp.keras_graph import keras_layers

RuleClass = TypeVar("RuleClass", bound=type[Rule])
_RULES: dict[type, Rule] = {}
_KINDS: list[Callable[[keras.Layer], Rule | None]] = []


def register_rule(*classes: type) -> Callable[[RuleClass], RuleClass]:
    """Registers the rule for layer classes (or `keras.Operation` classes).

    Args:
        *classes: layer classes. A subclass is covered too, unless it overrides `call` or anything
            else that may change what is computed.

    Returns:
        A decorator for a `Rule` subclass.

    Raises:
        TypeError: the arguments are not classes of layers, or the decorated class is no `Rule`.

    Example: see `Rule`. For layers that keep shapes one line is enough:

    >>> class Halve(keras.layers.Layer):
    ...     def call(self, x):
    ...         return x / 2
    >>> rule = register_rule(Halve)(PassThrough)
    """
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, keras.Operation)):
            raise TypeError(
                "Expected `register_rule` to get layer classes, as in "
                f"`@register_rule(MyLayer)`. Received: {cls!r}"
            )

    def register(rule: RuleClass) -> RuleClass:
        if not (isinstance(rule, type) and issubclass(rule, Rule)):
            raise TypeError(f"Expected a subclass of keras_nisp.Rule. Received: {rule!r}")
        for cls in classes:
            _RULES[cls] = rule()
        return rule

    return register


def operations(*names: str) -> list[Any]:
    """The classes behind functions of `keras.ops`; those that this Keras lacks are left out."""
    classes = (keras_layers.operation_class(name) for name in names)
    return list(dict.fromkeys(cls for cls in classes if cls is not None))  # two may share one


def named_layers(*names: str) -> list[type]:
    """Classes of `keras.layers`; those that this Keras lacks are left out."""
    return [getattr(keras.layers, name) for name in names if hasattr(keras.layers, name)]


def register_operations(*names: str):
    """`register_rule` for functions of `keras.ops`, by name."""
    return register_rule(*operations(*names))


def fix_deliberately(
    reason: str, *classes: type, warns: bool = False, multiplies: bool = False
) -> None:
    """Registers a barrier with a reason for what channels cannot be followed through.

    Args:
        reason, warns, multiplies: as for `Barrier`.
        *classes: classes of layers or operations.
    """
    for cls in classes:
        if cls in _RULES:
            raise ValueError(f"{cls.__name__} has a rule already, and would get another.")
        _RULES[cls] = Barrier(reason, warns, multiplies)


def registered(cls: type) -> Rule | None:
    """The rule of a class of layers or operations, or `None`."""
    base = next((base for base in cls.__mro__ if base in _RULES), None)
    return None if base is None or overridden(cls, base) else _RULES[base]


def rule_of(layer: keras.Operation) -> Rule:
    """The rule of a layer or operation, however it is called: the rule of its class, or of a kind
    that is recognized by what it computes; `BARRIER` if there is none."""
    return registered(type(layer)) or _recognised(layer) or BARRIER


def register_kinds(recognise: Callable[[keras.Layer], Rule | None]) -> Callable:
    """Registers a function that finds the rule of a layer whose class has none, or `None`."""
    _KINDS.append(recognise)
    return recognise


def _recognised(layer: keras.Operation) -> Rule | None:
    if not isinstance(layer, keras.Layer) or not layer.built or isinstance(layer, keras.Model):
        return None
    return next((rule for find in _KINDS if (rule := find(layer))), None)


def is_registered(cls: type) -> bool:
    """Whether a rule is for this very class, not for one that it derives from."""
    return cls in _RULES


# What a subclass may override without a change of what it computes.
HARMLESS = {
    *("build", "build_from_config", "get_build_config", "get_config", "from_config"),
    *("compute_output_shape", "compute_output_spec", "compute_mask", "supports_masking"),
    *("count_params", "save_own_variables", "load_own_variables", "save_assets", "load_assets"),
    *("enable_lora", "quantize", "summary"),
}


@functools.cache
def overridden(cls: type, base: type) -> list[str]:
    """The names that a subclass overrides and that the base's code may use: methods and
    properties of the base, and attributes that its code names (`self.kernel`)."""
    return [
        name
        for name in dir(cls)
        if name not in HARMLESS
        and (not name.startswith("__") or name == "__call__")
        and not name.startswith("_api_export")
        and inspect.getattr_static(cls, name) is not inspect.getattr_static(base, name, None)
        and (hasattr(base, name) or name in _named_in_code(base))
    ]


@functools.cache
def _named_in_code(cls: type) -> set[str]:
    """All names in the code of a class of layers, short of `keras.Layer`."""
    names: set[str] = set()
    for base in itertools.takewhile(lambda c: c not in (keras.Layer, keras.Operation), cls.__mro__):
        for value in vars(base).values():
            for function in (value, *(getattr(value, key, None) for key in ("fget", "__func__"))):
                code = getattr(inspect.unwrap(function), "__code__", None)
                names.update(code.co_names if code else ())
    return names


def rule_for(operation: keras.Operation, args: tuple = (), kwargs: dict | None = None) -> Rule:
    """The rule for a call of a layer or operation: `BARRIER` if there is none.

    Args:
        operation: the layer or operation.
        args, kwargs: arguments of the call. A rule that does not take them (an explicit mask, say)
            does not know what the call does.
    """
    rule = rule_of(operation)
    try:
        _signature(type(rule).trace).bind(rule, None, *args, **(kwargs or {}))
    except TypeError:
        return BARRIER
    return rule


@functools.cache
def _signature(trace: Callable) -> inspect.Signature:
    return inspect.signature(trace)
