"""What layers hold besides their config, carried from a layer to its copy.

Weights are paired in order. The rest (vocabularies, statistics that were made constants, flags of
single weights) comes along by the hooks that Keras has for files.
"""

import copy
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.layers.preprocessing.index_lookup import IndexLookup
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.saving_lib import get_attr_skipset

from keras_nisp.keras_graph.keras_layers import is_of_keras

ARRAYS = (np.ndarray, np.generic, tf.__internal__.EagerTensor)
PLAIN = (bool, int, float, complex, str, bytes, type(None), *ARRAYS)


def carry(
    old: keras.Layer,
    new: keras.Layer,
    value_of: Callable = tf.convert_to_tensor,
    same_width: bool = True,
) -> None:
    """Gives a copy of a layer all that the layer holds: weights first, then what goes with them.

    Args:
        old: the layer.
        new: its copy, built.
        value_of: `value_of(variable)` gives the value that its twin gets, by default its own.
        same_width: whether no axis of the layer has changed.
    """
    if old is new:
        return
    parts = list(paired_parts(old, new))
    _match_low_rank(parts)
    pairs = paired_variables(old, new)
    for variable, twin in pairs:
        value = value_of(variable)
        if value.shape != twin.shape:
            raise ValueError(
                f"Variable '{variable.path}' would become {tuple(value.shape)}, but the copy of "
                f"layer '{old.name}' ({type(old).__name__}) has {tuple(twin.shape)}: its config, "
                "or the rule of this layer, does not give its size."
            )
        twin.assign(value)
    twins = {id(variable): twin for variable, twin in pairs}
    for part, twin in parts:
        carry_part(part, twin, twins, same_width)
    match_trainable(parts, pairs)


def carry_own(old: keras.Model, new: keras.Model, layers: set[int]) -> None:
    """Gives a copy of a model of somebody's own class what the model holds besides its graph.

    Args:
        old: the model.
        new: its copy, whose layers have all that they hold.
        layers: ids of the layers of the old one's graph.
    """
    if type(old) is not type(new) or is_of_keras(type(old)):
        return
    copy_plain_attributes(old, new)
    own = [layer._trainable_variables + layer._non_trainable_variables for layer in (old, new)]
    for variable, twin in zip(*own, strict=False):
        if variable.shape == twin.shape:
            twin.assign(variable)
    for part, twin in list(paired_parts(old, new, set(layers)))[1:]:
        if isinstance(part, keras.Layer) and part.built and twin.built:
            carry(part, twin)


def carry_assets(old: keras.Model, new: keras.Model) -> None:
    """Gives a model what parts without variables hold in another of its class: vocabularies."""
    for part, twin in paired_parts(old, new):
        if not getattr(part, "variables", ()):
            carry_part(part, twin, {}, same_width=False)


def paired_variables(old: keras.Operation, new: keras.Operation) -> list[tuple]:
    """Variables of a layer and of its copy: all weights, then states such as seeds."""
    if not isinstance(old, keras.Layer):
        return []
    if len(old.weights) != len(new.weights):
        raise ValueError(
            f"Layer '{old.name}' ({type(old).__name__}) has {len(old.weights)} weights, and its "
            f"copy, called on the same inputs, {len(new.weights)}. Create all weights in "
            "`__init__` or `build`, from arguments that `get_config` gives back."
        )
    pairs = list(zip(old.weights, new.weights, strict=True))
    states = [
        [v for v in layer.variables if not any(v is w for w in layer.weights)]
        for layer in (old, new)
    ]
    return pairs + list(zip(*states, strict=False))


def paired_parts(old: Any, new: Any, seen: set | None = None) -> Iterator[tuple]:
    """An object and its copy, then what they hold at the same places, as Keras' files do.

    Args:
        old, new: layers, models or other objects that Keras can save.
        seen: ids of objects to pass over; those that come are added.
    """
    seen = set() if seen is None else seen
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        for one, other in zip(old, new, strict=False):
            yield from paired_parts(one, other, seen)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() & new.keys():
            yield from paired_parts(old[key], new[key], seen)
    elif isinstance(old, KerasSaveable) and type(old) is type(new) and id(old) not in seen:
        seen.add(id(old))
        yield old, new
        for name in _saved_attributes(old):
            child = getattr(old, name, None)
            if isinstance(child, (KerasSaveable, list, tuple, dict)):
                yield from paired_parts(child, getattr(new, name, None), seen)


def _saved_attributes(part: KerasSaveable) -> list[str]:
    """Names of attributes that Keras' files look through, in their order."""
    kind = part._obj_type()
    own = {name for name in dir(part) if not name.startswith("__")} - _of_any(kind)
    names = sorted(own, key=lambda name: (name.startswith("_"), name))
    return ["layers", *names] if kind in ("Sequential", "Functional") else names


@functools.cache  # Keras looks for its own under another name than it keeps it
def _of_any(kind: str) -> frozenset[str]:
    """Attributes that every object of a kind has, which hold nothing of its own."""
    return frozenset(get_attr_skipset(kind))


def carry_part(old: Any, new: Any, twins: dict, same_width: bool) -> None:
    """What one object holds besides variables, which its copy has got.

    Args:
        old, new: the object and its copy.
        twins: by `id` of a variable of the old one, that of the new one.
        same_width: whether no axis of the layer has changed.
    """
    if same_width and not is_of_keras(type(old)):
        copy_plain_attributes(old, new)
    if isinstance(old, keras.layers.TextVectorization):
        return  # whose words are in a lookup layer, which comes by itself
    if isinstance(old, IndexLookup):
        _copy_vocabulary(old, new)
        return
    if _has_own_hooks(type(old)):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables({key: _twin_value(v, old, twins) for key, v in store.items()})
    if hasattr(old, "save_assets") and hasattr(new, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            if any(pathlib.Path(folder).iterdir()):
                new.load_assets(folder)
    if hasattr(new, "finalize_state") and getattr(new, "variables", None):
        new.finalize_state()  # makes constants of variables


def _has_own_hooks(kind: type) -> bool:
    """Whether a class says itself what is saved of it.

    Kernels of Keras say so because of quantization and LoRA: they hold nothing else.
    """
    if not hasattr(kind, "save_own_variables") or not hasattr(kind, "load_own_variables"):
        return False
    hooks = (kind.save_own_variables, kind.load_own_variables)
    modules = ("layers.core.", "layers.convolutional.", "layers.layer", "metrics")
    return not all(is_of_keras(hook, *modules) for hook in hooks)


def _twin_value(value: Any, old: Any, twins: dict) -> Any:
    """What a hook stores, at the copy's widths: the value of the copy's variable, if it is one."""
    for variable in getattr(old, "variables", ()):
        if variable is value or _equal(variable, value):
            twin = twins.get(id(variable))
            return value if twin is None else np.asarray(twin)
    return np.asarray(value) if isinstance(value, keras.Variable) else value


def _equal(variable: keras.Variable, value: Any) -> bool:
    shape = getattr(value, "shape", None)
    if shape is None or tuple(shape) != tuple(variable.shape):
        return False
    return np.array_equal(np.asarray(variable), np.asarray(value))


def _copy_vocabulary(old: IndexLookup, new: IndexLookup) -> None:
    """By the layer's own methods: a file of it breaks where tokens hold line breaks."""
    weights = getattr(old, "idf_weights_const", None)
    if old.lookup_table.size() > 0:
        vocabulary = old.get_vocabulary()
        new.set_vocabulary(vocabulary, None if weights is None else weights.numpy())


def copy_plain_attributes(old: Any, new: Any) -> None:
    """Numbers, strings and arrays that were set on an object after it was made."""
    known = _of_any(old._obj_type())
    if is_model := isinstance(old, keras.Model):
        known = known | _model_attributes()
    for name, value in vars(old).items():
        if name in known or (is_model and name.startswith("_")) or not is_plain(value):
            continue
        if name not in vars(new) or not _same(value, vars(new)[name]):
            object.__setattr__(new, name, copy.deepcopy(value))


@functools.cache
def _model_attributes() -> frozenset[str]:
    inputs = keras.Input((1,))
    outputs = keras.layers.Identity()(inputs)
    return frozenset(vars(keras.Model(inputs, outputs)))


def is_plain(value: Any) -> bool:
    """Whether something is numbers, strings and arrays alone."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return isinstance(value, PLAIN)


def _same(value: Any, present: Any) -> bool:
    """Whether an attribute needs no copy: it is equal, or there is another kind of thing."""
    if isinstance(value, ARRAYS) or isinstance(present, ARRAYS):
        dtypes = [getattr(x, "dtype", None) for x in (value, present)]
        if None not in dtypes and dtypes[0] != dtypes[1]:
            return True  # made for the copy's own dtype
        return None not in dtypes and np.array_equal(np.asarray(value), np.asarray(present))
    if isinstance(value, (list, tuple)) and isinstance(present, (list, tuple)):
        return len(value) == len(present) and all(map(_same, value, present))
    if isinstance(value, dict) and isinstance(present, dict):
        return value.keys() == present.keys() and all(_same(value[k], present[k]) for k in value)
    return not is_plain(present) or value == present


def _match_low_rank(parts: list[tuple]) -> None:
    """Enables LoRA where it was enabled after the layer was made, and keeps its scale."""
    for old, new in parts:
        if getattr(old, "lora_enabled", False):
            if not new.lora_enabled:
                new.enable_lora(old.lora_rank, lora_alpha=old.lora_alpha)
            new.lora_alpha = old.lora_alpha  # which some layers forget when they are loaded


def match_trainable(parts: list[tuple], pairs: list[tuple]) -> None:
    """Freezes what is frozen, inside layers too."""
    for old, new in (*parts, *pairs):
        if hasattr(old, "trainable") and old.trainable != new.trainable:
            new.trainable = old.trainable


def weights_by_path(layer: keras.Layer) -> dict[str, keras.Variable]:
    """The weights of a layer and of what it holds, by the names that lead to them."""
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    found = {variable.name: variable for variable in own}
    for inner in layer._layers:
        found |= {f"{inner.name}/{name}": v for name, v in weights_by_path(inner).items()}
    return found
