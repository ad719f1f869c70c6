"""What a measurement depends on, as one short text: models, data, functions."""

import functools
import hashlib
import types
from typing import Any

import keras
import numpy as np

from keras_nisp.keras_graph import keras_models

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
MUTABLE = (list, dict, set, keras.Model)


def identity(*parts: Any) -> str:
    """The same text for the same parts, in any process; another one for others.

    Args:
        parts: models, arrays, functions, plain data, and lists, tuples and dicts of them. A
            function is its name, its code, its defaults, and the constants and arrays of its
            closure; an object likewise. Their lists and dicts are left out: calls may write there.
    """
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest, part: Any) -> None:
    """Adds a part, its type first, so that no two kinds of parts look alike."""
    digest.update(f"\n{type(part).__module__}.{type(part).__qualname__} ".encode())
    if isinstance(part, PLAIN):
        digest.update(repr(part).encode())
    elif isinstance(part, keras.Model):
        _feed(digest, [_config(layer) for layer in keras_models.all_layers(part)])
        _feed(digest, [np.asarray(weight) for weight in part.weights])
    elif isinstance(part, dict):
        _feed(digest, list(part.items()))
    elif isinstance(part, (list, tuple)):
        digest.update(f"{len(part)}".encode())
        for entry in part:
            _feed(digest, entry)
    elif isinstance(part, functools.partial):
        _feed(digest, [part.func, part.args, part.keywords])
    elif isinstance(part, types.MethodType):
        _feed(digest, [part.__func__, part.__self__])
    elif isinstance(part, types.FunctionType):
        held = [cell.cell_contents for cell in part.__closure__ or () if _is_set(cell)]
        held = [entry for entry in held if not isinstance(entry, MUTABLE)]
        name = f"{part.__module__}.{part.__qualname__}"
        _feed(digest, [name, part.__code__, part.__defaults__, part.__kwdefaults__, held])
    elif isinstance(part, types.CodeType):
        _feed(digest, [part.co_code, part.co_names, part.co_consts])
    elif isinstance(part, np.ndarray) or hasattr(part, "__array__"):
        _feed_array(digest, np.asarray(part))
    elif isinstance(part, (type, types.ModuleType, types.BuiltinFunctionType)):
        digest.update(f"{getattr(part, '__module__', '')}.{part.__name__}".encode())
    elif hasattr(part, "get_config"):  # losses and metrics of Keras
        _feed(digest, _config(part))
    else:
        pairs = getattr(part, "__dict__", {}).items()
        _feed(digest, [pair for pair in pairs if not isinstance(pair[1], MUTABLE)])


def _feed_array(digest, array: np.ndarray) -> None:
    digest.update(f"{array.dtype} {array.shape}".encode())
    # Arrays of objects, such as texts, hold addresses.
    digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())


def _is_set(cell) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _config(part: Any) -> list:
    """The class of a layer, and its settings without its name."""
    try:
        settings = keras.saving.serialize_keras_object(part.get_config())
    except (NotImplementedError, OSError, TypeError, ValueError):  # a layer without one
        settings = {}
    settings = {key: value for key, value in settings.items() if key != "name"}
    return [type(part).__qualname__, settings]
