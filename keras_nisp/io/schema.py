"""Files of JSON, read as the dataclasses that were written.

The annotations of a dataclass are the schema; pydantic holds data against them, strictly: no
number in a string, no fraction for a count, no key that is missing, unknown or there twice.
"""

import functools
import json
from typing import Any, TypeVar

Row = TypeVar("Row")

# `__pydantic_config__` of a dataclass that is read from files; it holds for those inside, too.
STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


class StoredAs:
    """Marks a field that files hold as another type than its constructor takes.

    Args:
        kind: that type.
    """

    def __init__(self, kind: Any):
        self.kind = kind

    def __get_pydantic_core_schema__(self, source, handler):
        return handler.generate_schema(self.kind)


class AsPairs:
    """Marks a dict with integer keys, which JSON does not have: in files it is a list of pairs."""

    @staticmethod
    def __get_pydantic_core_schema__(source, handler):
        from pydantic_core import core_schema

        pairs = handler.generate_schema(tuple[tuple[int, tuple[int, ...]], ...])
        return core_schema.no_info_after_validator_function(_distinct, pairs)


def parse(text: str | bytes) -> Any:
    """Plain data from JSON.

    Raises:
        ValueError: the text is no JSON, holds a key twice, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(kind: type[Row], data: Any) -> Row:
    """A dataclass from plain data, as `dataclasses.asdict` gave them.

    Args:
        kind: a dataclass with `__pydantic_config__ = STRICT`.
        data: what JSON can hold.

    Raises:
        ValueError: the data do not fit. Says where and why.
    """
    from pydantic import ValidationError  # not when the package is imported

    try:
        schema: type = kind  # mypy takes a class of a type variable for not hashable
        return _adapter(schema).validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        place = ".".join(map(str, first["loc"]))
        more = f" (and {len(others)} more faults)" if others else ""
        raise ValueError(f"{place + ': ' if place else ''}{first['msg']}{more}") from None
    except TypeError as error:
        raise ValueError(f"it holds what JSON cannot hold: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _distinct(pairs) -> dict:
    """A dict of pairs whose keys are distinct."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {str(double)[:100]!r} is there twice")
    return found
