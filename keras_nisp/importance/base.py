"""The base class of importances, and how they read a model."""

import copy
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.data.calibration import Calibration
from keras_nisp.data.samples import Samples
from keras_nisp.keras_graph import keras_models
from keras_nisp.keras_graph.masks import carry_mask, take_off_alike

# Gives the boolean array of units that a budget would remove, by their scores.
Select = Callable[[np.ndarray], np.ndarray]


class Importance:
    """Scores units: the larger the score, the more a unit matters.

    Subclasses define `__call__`, which takes a `ChannelMap` and returns one score per unit. Scores
    are compared within a coupled group; `allocation="global"` divides them by the group's mean
    first. NaN means that a unit cannot be scored: its group then stays as it is. Score all channels
    of a layer, or none.

    A plan records those arguments of the constructor that are attributes of the same names.

    Example: the first channels of each layer matter most.

    >>> class First(Importance):
    ...     def __call__(self, channel_map):
    ...         return -np.arange(channel_map.count, dtype=float)
    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan_pruning(model, First(), ratio=0.5).creators[0].removed
    (4, 5, 6, 7)
    """

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        """Scores a traced model.

        Args:
            channel_map: from `keras_nisp.trace`.

        Returns:
            Float64 array of shape `(channel_map.count,)`.
        """
        raise NotImplementedError

    def scores(self, channel_map: ChannelMap, select: Select) -> np.ndarray:
        """Scores that may depend on which units are removed.

        Args:
            channel_map: the model, from `keras_nisp.trace`.
            select: `select(scores)` returns the boolean array of units that the budget would
                remove.
        """
        return self(channel_map)

    def known_samples(self, model: keras.Model) -> Samples | None:
        """The calibration samples that the importance has read for a model, if there are any."""
        held = (value for value in vars(self).values() if isinstance(value, Calibration))
        return next(filter(None, (calibration.known(model) for calibration in held)), None)

    def input_shapes(self, model: keras.Model) -> list[tuple[int, ...]] | None:
        """Sizes of its samples, for models with open input sizes; `None` if it has none."""
        calibration = getattr(self, "calibration", None)
        if not isinstance(calibration, Calibration) or calibration.data is None:
            return None
        return calibration.samples(model).shapes if keras_models.is_open(model) else None

    @property
    def source(self) -> Any:
        """The object that scores: the importance itself, or the function that it wraps."""
        return self

    @property
    def name(self) -> str:
        return getattr(self.source, "__name__", type(self.source).__name__)


class Custom(Importance):
    """A plain callable as an importance."""

    def __init__(self, function: Callable[[ChannelMap], Any]) -> None:
        self.function = function

    def __call__(self, channel_map: ChannelMap) -> np.ndarray:
        return self.function(channel_map)

    @property
    def source(self) -> Any:
        return self.function


def as_importance(importance: Any) -> Importance:
    """An `Importance` from one, or from a callable that takes a `ChannelMap`."""
    if isinstance(importance, type):
        raise TypeError(
            f"Expected `importance` to be an instance. Received the class "
            f"{importance.__name__}: call it, as in `{importance.__name__}(...)`."
        )
    if isinstance(importance, Importance):
        return importance
    if callable(importance):
        return Custom(importance)
    raise TypeError(
        "Expected `importance` to be a keras_nisp importance such as NISP(calibration), or a "
        f"callable that takes a ChannelMap. Received: {importance!r}"
    )


def without_data(importance: Importance) -> dict[str, Calibration]:
    """What an importance holds for calibration data that it was not given, by attribute."""
    held = vars(importance).items()
    return {k: v for k, v in held if isinstance(v, Calibration) and v.data is None}


def supplied(importance: Importance, calibration: Any, verbose: int = 0) -> Importance:
    """An importance that has all the data that it looks at.

    Args:
        importance: the importance. It is not changed.
        calibration: what it gets if it was given none; may be `None`.
        verbose: 1 shows a progress bar while it looks at them.

    Raises:
        ValueError: it looks at data, and there are none.
    """
    waiting = without_data(importance).items()
    given = {name: value.on(calibration, verbose) for name, value in waiting}
    if not given:
        return importance
    other = copy.copy(importance)
    vars(other).update(given)
    return other


def check_setting(name: str, value: Any, kind: type, what: str) -> None:
    """Raises unless the first argument of an importance that takes no data is what it is to be:
    of others it is calibration data."""
    if not isinstance(value, kind):
        raise TypeError(
            f"Expected `{name}` to be {what}. Received: {name}={type(value).__name__}. This "
            "importance takes no calibration data: pass them to `prune` or `plan_pruning` "
            "(`calibration=`)."
        )


def checked_scores(scores: Any, channel_map: ChannelMap, name: str) -> np.ndarray:
    """Scores as a float64 array, of the right shape and not infinite."""
    scores = np.asarray(scores, np.float64)
    if scores.shape != (channel_map.count,):
        raise ValueError(
            f"Expected importance '{name}' to give one score per unit, shape "
            f"({channel_map.count},). Received: shape {scores.shape}"
        )
    if np.isinf(scores).any():
        where = _creator_of(channel_map, int(np.argmax(np.isinf(scores))))
        raise ValueError(
            f"Expected importance '{name}' to give finite scores. Received infinity for channels "
            f"of {where}."
        )
    scores = channel_map.products.scores_of_factors(scores)
    _check_scored(scores, channel_map, name)
    return scores


def _check_scored(scores: np.ndarray, channel_map: ChannelMap, name: str) -> None:
    """Raises where scores are NaN although nothing tells channels apart from their neighbors."""
    unknown = np.isnan(scores)
    for group in channel_map.groups:
        for units in channel_map.blocks(group):
            if unknown[units].any() and not unknown[units].all():
                where = _creator_of(channel_map, int(units[np.argmax(unknown[units])]))
                raise ValueError(
                    f"Expected importance '{name}' to score all channels of a layer, or none. "
                    f"Received NaN for {int(unknown[units].sum())} of {len(units)} channels of "
                    f"{where}."
                )
    if all(unknown[group.units].all() for group in channel_map.groups):
        raise ValueError(
            f"Expected importance '{name}' to score channels that may be removed. Received NaN "
            f"for all of them, in model '{channel_map.model.name}': use another importance."
        )
    if not np.any(scores[~unknown]):
        raise ValueError(
            f"Expected importance '{name}' to tell channels apart. All of model "
            f"'{channel_map.model.name}' score 0, so chance would choose: the calibration samples "
            "or the weights are all alike, or the network is dead."
        )


def _creator_of(channel_map: ChannelMap, unit: int) -> str:
    names = [repr(c.layer) for c in channel_map.creators if unit in c.units]
    return ", ".join(names) or "an input"


def scored_where(channel_map: ChannelMap, totals: np.ndarray, units: list) -> np.ndarray:
    """Scores of the units that were seen, NaN for the others."""
    seen = np.zeros(channel_map.count, bool)
    for array in units:
        seen[array] = True
    return np.where(seen, totals, np.nan)


def run(channel_map: ChannelMap, inputs: list, on_read: Callable | None = None):
    """Runs the real layers in inference mode.

    Args:
        channel_map: the traced model.
        inputs: tensors for the model's inputs, flat.
        on_read: `on_read(call, index, tensor)` sees each tensor that a kernel reads
            (a consumption edge) and returns what the layer is to get.

    Returns:
        The model's outputs, as calling the model gives them.
    """

    def visit(call: Call, args, kwargs):
        if not call.reads or on_read is None:
            return call.infer(*args, **kwargs)
        used = map_tensors(
            lambda index, tensor: (
                on_read(call, index, tensor)
                if tensor.dtype.is_floating  # a mask has no responses
                else tensor
            ),
            args,
            kwargs,
        )
        outputs = call.infer(*used[0], **used[1])
        take_off_alike((args, kwargs), used)
        return outputs

    outputs = channel_map.walk(inputs, visit)
    single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
    return outputs[0] if single else outputs


def map_tensors(function: Callable, args: tuple, kwargs: dict, kind: Callable = tf.is_tensor):
    """Applies `function(index, tensor)` to the tensors among a call's arguments."""
    counter = iter(range(len(keras.tree.flatten((args, kwargs)))))
    return keras.tree.map_structure(
        lambda x: carry_mask(x, function(next(counter), x)) if kind(x) else x, (args, kwargs)
    )


def spatial_axes(names: np.ndarray) -> list[int]:
    """Axes of a batched tensor along which its names do not vary."""
    return [axis + 1 for axis, size in enumerate(names.shape) if size == 1]


def per_unit(tensor: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values summed over the positions of each unit.

    Args:
        tensor: array `(samples, ...)`.
        names: units, an array that broadcasts to one sample.

    Returns:
        The distinct units and an array `(samples, units)`.
    """
    if tf.as_dtype(tensor.dtype).size < 4:  # sums of half precision would overflow
        tensor = tf.cast(tensor, tf.float32)
    summed = np.asarray(tf.reduce_sum(tensor, spatial_axes(names)))
    columns = summed.reshape(len(summed), -1)
    units, inverse = np.unique(names.ravel(), return_inverse=True)
    if len(units) == len(inverse):
        return units, columns[:, np.argsort(inverse)]
    sums = np.zeros((len(units), len(summed)), columns.dtype)
    np.add.at(sums, inverse, columns.T)
    return units, sums.T
