"""Files of JSON, read as the dataclasses that were written.

The annotations of a dataclass are the schema, and they are taken strictly: no number in a string,
no fraction for a count, no key that is missing, unknown or there twice.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from typing import Any, NoReturn, TypeVar

Row = TypeVar("Row")


class AsPairs:
    """Marks a dict with integer keys, which JSON does not have: in files it is a list of pairs."""


def parse(text: str | bytes) -> Any:
    """Plain data from JSON.

    Raises:
        ValueError: the text is no JSON, holds a key twice, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(kind: type[Row], data: Any, place: str = "") -> Row:
    """What an annotation says, from plain data, as `dataclasses.asdict` and JSON gave them.

    Args:
        kind: a dataclass, or an annotation as its fields have them.
        data: plain data.
        place: where they are, for errors.

    Raises:
        ValueError: the data do not fit. Says where and why.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_row(kind, data, place)
    if origin is tuple:
        return _read_tuple(arguments, data, place)
    if origin is types.UnionType:  # with None
        return None if data is None else read(arguments[0], data, place)
    if origin is typing.Annotated and arguments[1] is AsPairs:
        pairs = read(tuple[tuple[int, tuple[int, ...]], ...], data, place)
        return _distinct(pairs, place)
    if origin is dict:
        if not isinstance(data, dict):
            _refuse(place, "an object")
        return {read(str, k, place): read(arguments[1], v, f"{place}.{k}") for k, v in data.items()}
    if origin is typing.Literal:
        return data if data in arguments else _refuse(place, repr(arguments[0]))
    return _read_scalar(kind, data, place)


def _read_row(kind: type[Row], data: Any, place: str) -> Row:
    if not isinstance(data, dict):
        _refuse(place, "an object")
    fields, hints = dataclasses.fields(kind), _hints(kind)
    before = f"{place}." if place else ""
    for name in data:
        if name not in hints:
            raise ValueError(f"{before}{str(name)[:100]}: Unexpected keyword argument")
    for field in fields:
        if field.name not in data and field.default is dataclasses.MISSING:
            raise ValueError(f"{before}{field.name}: Field required")
    return kind(**{name: read(hints[name], part, before + name) for name, part in data.items()})


def _read_tuple(arguments: tuple, data: Any, place: str) -> tuple:
    if not isinstance(data, list):
        _refuse(place, "an array")
    kinds = arguments
    if arguments[-1] is ...:
        kinds = arguments[:1] * len(data)
    elif len(kinds) != len(data):
        _refuse(place, f"an array of {len(kinds)}")
    pairs = zip(kinds, data, strict=True)
    return tuple(read(kind, part, f"{place}.{i}") for i, (kind, part) in enumerate(pairs))


def _read_scalar(kind: type, data: Any, place: str) -> Any:
    if kind is int:
        return data if type(data) is int else _refuse(place, "an integer")  # True is none
    if kind is bool:
        return data if type(data) is bool else _refuse(place, "true or false")
    if kind is str:
        fits = isinstance(data, str) and not any("\ud800" <= c <= "\udfff" for c in data)
        return data if fits else _refuse(place, "a string")
    fits = type(data) is float or (type(data) is int and abs(data) < 2**1000)
    return float(data) if fits and math.isfinite(data) else _refuse(place, "a finite number")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _refuse(place: str, expected: str) -> NoReturn:
    raise ValueError(f"{place or 'all'}: Input should be {expected}")


def _distinct(pairs, place: str = "") -> dict:
    """A dict of pairs whose keys are distinct."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        at = f"{place}: " if place else ""
        raise ValueError(f"{at}the key {str(double)[:100]!r} is there twice")
    return found
