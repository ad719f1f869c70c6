"""`as_original`: a smaller functional graph as a model of the original's own class."""

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_nisp.errors import ConversionError, reason_of, several
from keras_nisp.functional.equivalence import check_same
from keras_nisp.keras_graph import calling, keras_models, symbolic
from keras_nisp.keras_graph.layer_state import carry_assets, weights_by_path

Shapes = dict[str, tuple[int, ...]]
Leaf = tuple[Any, ...]  # keys that lead to a number in a config


def as_original(small: keras.Model, original: keras.Model) -> keras.Model:
    """Puts a smaller graph into a new model of the class that the original has.

    For a model of a class of its own, such as a backbone or a task of keras-hub, `as_functional`
    and `prune` return a plain graph, without the methods of the class: `generate`, its
    preprocessor, its presets. If the smaller widths can be expressed as constructor arguments of
    the class, this function returns a model of the class that computes the same as the graph.

    These arguments are found by trial: each number in the config is doubled, to see which axes of
    which weights follow it. A class has one number for all of its blocks, so all of them
    must have lost the same share: prune with `allocation="uniform"` and a ratio, or by `ratios`
    for the layers that the class can make smaller (in GPT-2 only the width of the MLP, since the
    size of its heads follows from that of the whole).

    Args:
        small: the result of `prune` or `rebuild` for `as_functional(original)`.
        original: the model. It is not changed.

    Returns:
        A model of the class of `original`, made from its `get_config` with smaller numbers, with
        the weights of `small` and the vocabularies of `original`. It is not compiled, unless its
        constructor does so. Its outputs were compared with those of `small`. Losses that its layers
        add in training, which the graph left out, are back.

    Raises:
        ConversionError: the class cannot express these widths, or computes something else with
            them; the message names a weight.
        TypeError: an argument is not a Keras model.

    Example:

    >>> @keras.saving.register_keras_serializable("docs")
    ... class Net(keras.Model):
    ...     def __init__(self, hidden=8, **kwargs):
    ...         inputs = keras.Input((4,))
    ...         x = keras.layers.Dense(hidden, activation="relu", name="hidden")(inputs)
    ...         super().__init__(inputs, keras.layers.Dense(2, name="head")(x), **kwargs)
    ...         self.hidden = hidden
    ...     def get_config(self):
    ...         return {"name": self.name, "hidden": self.hidden}
    >>> net = Net()
    >>> small = prune(as_functional(net), Magnitude(), ratio=0.5, verbose=0)
    >>> as_original(small, net).hidden
    4
    """
    for name, model in (("small", small), ("original", original)):
        if not isinstance(model, keras.Model):
            raise TypeError(f"Expected `{name}` to be a keras.Model. Received: {model!r}")
    values = _values(small, original)
    known = weights_by_path(original)
    before, after = (
        {path: tuple(weights[path].shape) for path in values} for weights in (known, values)
    )
    config, refused = _smaller(original, before, after)
    made = _by_names_of(known, _shapes_by(config, type(original)))
    _check_shapes(original, before, after, made, refused)
    new = type(original).from_config(config)
    for path, variable in _by_names_of(known, weights_by_path(new)).items():
        if path in values:
            variable.assign(values[path])
    carry_assets(original, new)
    _check_outputs(small, new)
    return new


def _values(small: keras.Model, original: keras.Model) -> dict[str, keras.Variable]:
    """The weights of the smaller model, by the paths of the original, of which a graph knows some:
    a layer may be held in several places. What no call uses stays as it is in the original."""
    known, weights = weights_by_path(original), _by_original_path(small, original)
    values = {path: weights[path] for path in known if path in weights}
    used = {id(known[path]) for path in values}
    unused = {path: variable for path, variable in known.items() if id(variable) not in used}
    read = _read(small, original) if unused else set()
    given = {id(variable) for variable in values.values()}
    others = [path for path, variable in weights.items() if id(variable) not in given]
    others += [path for path, variable in unused.items() if id(variable) in read]
    if others:
        raise ConversionError(
            f"Expected `small` to have the weights of '{original.name}', smaller. Received "
            f"others, such as '{others[0]}' in one of them: pass what became of "
            "`as_functional(original)`."
        )
    return {**values, **unused}


def _read(small: keras.Model, original: keras.Model) -> set[int]:
    """The `id` of each weight whose value a call of the original reads."""
    inputs = keras_models.body(original).inputs if keras_models.is_graph(original) else small.inputs
    with calling.noted_reads() as read:
        symbolic.compute_output_spec(original, keras_models.structured_inputs(original, inputs))
    return read


def _by_original_path(small: keras.Model, original: keras.Model) -> dict[str, keras.Variable]:
    """The weights of a graph, by the paths that they had: those that a layer held itself are in a
    layer of their own there, which has their name."""
    known, weights = weights_by_path(original), weights_by_path(small)
    own = {path: path.rpartition("/")[0] for path in weights if path not in known}
    return {own[path] if own.get(path) in known else path: v for path, v in weights.items()}


def _by_names_of(known: Iterable[str], made: dict[str, Any]) -> dict[str, Any]:
    """What another model of the class has for each weight, by the paths of the first: Keras counts
    on in the names of layers that were given none."""
    known = [*known]
    if made.keys() >= set(known) or [*map(_uncounted, known)] != [*map(_uncounted, made)]:
        return made
    return dict(zip(known, made.values(), strict=True))


def _uncounted(path: str) -> str:
    return re.sub(r"_\d+(?=/|$)", "", path)


def _shapes_by(config: dict, kind: Any) -> Shapes:
    """Of a model with this config, without making its weights."""
    with calling.PATCHING:
        own = vars(kind).get("compile")  # by some constructors, and optimizers make variables
        kind.compile = lambda *args, **kwargs: None
        try:
            with calling.without_memory():
                made = kind.from_config(copy.deepcopy(config))
                return {path: tuple(v.shape) for path, v in weights_by_path(made).items()}
        finally:
            if own is None:
                del kind.compile
            else:
                kind.compile = own


def _smaller(original: keras.Model, before: Shapes, after: Shapes) -> tuple[dict, list[str]]:
    """The config whose numbers give the new shapes, if these are products of such numbers.

    The logarithm of an axis is then a sum of theirs, and the change of all axes a linear system.

    Returns:
        The config, and what could not be tried: numbers that the class does not take twice as
        large, with what it says.
    """
    known = weights_by_path(original)
    config, refused = _editable(original.get_config()), []
    axes = [(path, axis) for path, shape in before.items() for axis in range(len(shape))]
    change = np.log2([after[path][axis] / before[path][axis] for path, axis in axes])
    followed = {}
    for leaf, number in _numbers(config):
        larger = copy.deepcopy(config)
        _set(larger, leaf, 2 * number)
        try:
            shapes = _shapes_by(larger, type(original))
        except Exception as error:  # whatever a class raises whose numbers do not fit together
            refused.append(f"`{leaf[-1]}` ({reason_of(error)})")
            continue
        doubled = _by_names_of(known, shapes)
        if doubled.keys() >= before.keys():
            factor = np.log2([doubled[path][axis] / before[path][axis] for path, axis in axes])
            if factor.any():
                followed[leaf] = factor
    if followed:
        from scipy.optimize import nnls  # takes a while to import

        system = np.stack(list(followed.values()), 1)
        # No number grows; of several that would do (heads, or their size), one takes it all.
        powers, _ = nnls(system, -change)
        for leaf, power in zip(followed, powers, strict=True):
            _set(config, leaf, round(_get(config, leaf) / 2**power))
    return config, refused


def _editable(config: Any) -> Any:
    """A copy in which no number is in a tuple."""
    if isinstance(config, dict):
        return {key: _editable(value) for key, value in config.items()}
    return [*map(_editable, config)] if isinstance(config, (list, tuple)) else config


def _numbers(config: Any, before: Leaf = ()) -> Iterator[tuple[Leaf, int]]:
    """The whole numbers above 1 in a config, with the keys that lead to them."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from _numbers(value, (*before, key))
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield (*before, key), value


def _get(config: Any, leaf: Leaf) -> Any:
    for key in leaf:
        config = config[key]
    return config


def _set(config: Any, leaf: Leaf, number: int) -> None:
    _get(config, leaf[:-1])[leaf[-1]] = number


def _check_shapes(
    original: keras.Model, before: Shapes, after: Shapes, made: Shapes, refused: list[str]
) -> None:
    tried = (
        f" (Not tried, as the class refuses them: {several(refused, between='; ')}.)"
        if refused
        else ""
    )
    smaller_first = sorted(after.items(), key=lambda item: item[1] == before[item[0]])
    for path, shape in smaller_first:
        if made.get(path) != shape:
            raise ConversionError(
                f"A {type(original).__name__} cannot have the widths of `small`: '{path}' has the "
                f"shape {before[path]} there, {shape} here, and {made.get(path)} at the "
                "hyperparameters that come closest. Blocks that have one number in common must "
                "lose equally much: prune with allocation='uniform', or by `ratios` what has a "
                f"hyperparameter of its own.{tried}"
            )


def _check_outputs(small: keras.Model, new: keras.Model) -> None:
    inputs = keras_models.body(new).inputs if keras_models.is_graph(new) else small.inputs
    known = [tensor.shape[1:] for tensor in keras_models.body(small).inputs]
    sizes = sorted({n for shape in known for n in shape if n is not None})
    kinds = set(map(type, keras_models.all_layers(small)))
    converted = [layer for layer in keras_models.all_layers(new) if type(layer) not in kinds]
    try:
        args = (keras_models.structured_inputs(new, inputs),)
        check_same(small, new, args, {}, sizes, lost=converted)  # their losses are no graph's
    except Exception as error:
        raise ConversionError(
            f"A {type(new).__name__} with the widths of `small` does not give what that gives: "
            f"{reason_of(error)}. (A class may compute something from its hyperparameters, such as "
            "the scale of attention from the number of key channels: leave these as they are.)"
        ) from error
