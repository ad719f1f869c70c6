"""Masks: removed channels are as good as gone while a model trains."""

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.data.random_samples import random_samples
from keras_nisp.errors import several, warn
from keras_nisp.keras_graph import keras_models, keras_training, rounding
from keras_nisp.surgery.masked_calls import MaskedCalls, plain_calls
from keras_nisp.surgery.oracle import Oracle, read_mask

# An average of weights keeps so much of a slice that was masked meanwhile, and more is no rest.
REST = 0.05


class Masks:
    """Holds kernel slices that read removed channels at zero, by variable constraints.

    Layers that mix or add up channels leave them out (`MaskedCalls`).

    Args:
        channel_map: the traced model; what it computes is masked from now on.
    """

    def __init__(self, channel_map: ChannelMap):
        self.map = channel_map
        self.bindings = [
            b
            for b in channel_map.bindings.values()
            if any(channel_map.free[b.axes[axis]].any() for axis in b.read)
        ]
        self.removed = np.zeros(channel_map.count, bool)
        self.steps_ignore: bool | None = None  # constraints: unknown until a step was taken
        everything = ~self.removed
        with keras_training.strategy_of(channel_map.model).scope():
            self.calls = MaskedCalls(channel_map)
            self.masks = [
                keras.Variable(read_mask(b, everything), trainable=False, dtype=b.variable.dtype)
                for b in self.bindings
            ]
        self.originals = [_own_constraint(b.variable) for b in self.bindings]
        for binding, mask, own in zip(self.bindings, self.masks, self.originals, strict=True):
            binding.variable.constraint = _MaskConstraint(mask, own)
        keras_training.forget_functions(channel_map.model)

    def update(self, removed: np.ndarray) -> None:
        """Masks what is removed, at once and in the steps to come."""
        for binding, mask in zip(self.bindings, self.masks, strict=True):
            mask.assign(read_mask(binding, ~removed))
        self.calls.update(removed)
        self.apply()
        self.removed, self.steps_ignore = removed, None

    def apply_if_trained_again(self) -> None:
        """Applies masks after a step that does not apply the constraints of variables itself."""
        if self.steps_ignore is None:  # the first step since masks have changed tells
            self.steps_ignore = bool(trained_again(self.map, self.removed))
        if self.steps_ignore:
            self.apply()

    def apply(self) -> None:
        """Zeroes what reads removed channels, in the weights and in averages of them."""
        averages = keras_training.weight_averages(self.map.model)
        for binding, mask in zip(self.bindings, self.masks, strict=True):
            average = averages.get(id(binding.variable))
            for variable in (binding.variable, average):
                if variable is not None:
                    variable.assign(variable * mask)

    def check_finite(self, step: int) -> None:
        """Raises if training has diverged by a step."""
        for binding in self.map.bindings.values():
            if not np.isfinite(np.asarray(binding.variable, np.float32)).all():
                raise ValueError(
                    f"Training has diverged by step {step}: '{binding.layer}' has weights that are "
                    "not finite, and channels cannot be chosen by them. Train at a smaller "
                    "learning rate."
                )

    def change(self, removed: np.ndarray) -> float:
        """How far outputs of the masked model are from those of a model without the removed
        channels, over their scale, on random samples."""
        model = self.map.model
        inputs, _ = next(random_samples(model, self.map.input_shapes).batches())
        received = keras.tree.flatten(
            model(keras_models.structured_inputs(model, inputs), training=False)
        )
        oracle = Oracle(self.map, UnitMap.removing(removed))
        with plain_calls():
            expected = keras.tree.flatten(self.map.walk(inputs, oracle.run))
        return rounding.relative_difference(expected, received)

    def say_what_is_not_held(self, removed: np.ndarray, verbose: int) -> None:
        """Warns of layers in which removed channels still count, and by how much; prints a line
        about those in which only this model in memory leaves them out."""
        found = self.calls.held(removed), self.calls.not_held(removed)
        held, not_held = (list(dict.fromkeys(paths)) for paths in found)  # each of several calls
        if not_held:
            one, many = "Layer {} mixes channels and is", "Layers {} mix channels and are"
            begin = (many if len(not_held) > 1 else one).format(several(map(repr, not_held)))
            warn(
                f"{begin} called on different ones, so that it "
                "could not leave out what is removed while training. The outputs of "
                f"`pruned_model` differ by {self.change(removed):.1e} of their scale from what "
                "was trained: fine-tune it, or use a layer of its own at each place."
            )
        if held and verbose:
            print(
                several(map(repr, held), what="layers")
                + (" leave" if len(held) > 1 else " leaves")
                + " removed channels out of statistics, in this model as in `pruned_model`. "
                "A saved file of this model does not: save `pruned_model`."
            )

    def end(self) -> None:
        """Gives variables their own constraints back. Layers still leave removed channels out, so
        that the model is still what was trained."""
        for binding, constraint in zip(self.bindings, self.originals, strict=True):
            binding.variable.constraint = constraint
        keras_training.forget_functions(self.map.model)

    def remove(self) -> None:
        """Gives variables their own constraints, and layers their own calls, back."""
        self.calls.remove()
        self.end()


def trained_again(channel_map: ChannelMap, removed: np.ndarray) -> list[str]:
    """Layers whose kernels read removed channels with weights that are not zero."""
    averaged = keras_training.weight_averages(channel_map.model)
    layers = []
    for binding in channel_map.bindings.values():
        if any(removed[binding.axes[axis]].any() for axis in binding.read):
            value = np.abs(np.asarray(tf.cast(binding.variable, tf.float32)))
            gone = value * (1 - np.asarray(tf.cast(read_mask(binding, ~removed), tf.float32)))
            rest = REST * value.max() if id(binding.variable) in averaged else 0
            if gone.max() > rest:
                layers.append(binding.layer)
    return list(dict.fromkeys(layers))


def warn_of_other_weights(channel_map: ChannelMap, removed: np.ndarray, epoch: int) -> None:
    """Warns if the model's weights are not those that pruning left.

    Args:
        channel_map: the traced model.
        removed: boolean per unit.
        epoch: the one in which channels were removed last.
    """
    layers = trained_again(channel_map, removed)
    if layers:
        warn(
            "The weights are not those that pruning left: what reads removed channels is not zero "
            f"in {len(layers)} layers, such as '{layers[0]}'. A callback has restored weights from "
            "before the last pruning step, or they were trained on without the pruner. "
            "`pruned_model` leaves out the removed channels all the same, but it was not trained "
            "without them: fine-tune it, or exclude epochs before the last pruning step with "
            f"`EarlyStopping(start_from_epoch={epoch})`."
        )


class _MaskConstraint(keras.constraints.Constraint):
    """The user's own constraint, then the mask."""

    def __init__(self, mask: keras.Variable, inner):
        self.mask = mask
        self.inner = inner

    def __call__(self, w):
        w = w if self.inner is None else self.inner(w)
        return w * self.mask


def _own_constraint(variable: keras.Variable):
    """The user's constraint, without a mask that an interrupted `fit` left behind."""
    constraint = variable.constraint
    return constraint.inner if isinstance(constraint, _MaskConstraint) else constraint
