"""The oracle: what a model gives without channels that are removed, and with merged ones equal."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import Binding, ChannelMap
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.rule import meaningful
from keras_nisp.channels.unit_map import DROPPED, UnitMap
from keras_nisp.keras_graph.masks import carry_mask, mask_of, pass_on, set_mask


class Oracle:
    """Runs the calls of the original at its width as if dropped units were not there, and merged
    ones equal.

    Kernel slices that read dropped units are zero; what belongs to merged units has the mean of
    its cluster; statistics over channels are taken over those that are kept.

    Args:
        channel_map: the traced model.
        unit_map: what becomes of its units.
    """

    def __init__(self, channel_map: ChannelMap, unit_map: UnitMap):
        self.map = channel_map
        self.units = unit_map
        self.keep = unit_map.into != DROPPED

    def run(self, call: Call, args: tuple, kwargs: dict) -> Any:
        """The outputs of a call; states of its layer stay as they are."""
        bound = [(w, self.map.bindings.get(id(w))) for w in call.weights]
        changed = [(weight, self._as_if(binding)) for weight, binding in bound if binding]
        statistics = call.mixes_channels or call.sums_channels
        kept = [self.keep[t.names][None] for t in call.mixed if statistics]
        with keras.StatelessScope(state_mapping=changed):
            if all(each.all() for each in kept):
                return call.infer(*args, **kwargs)
            masks = [tf.constant(each, tf.float32) for each in kept]
            outputs = call.ask("masked", masks, *args, **meaningful(kwargs))
        pass_on(call.layer, args, kwargs, keras.tree.flatten(outputs))
        return outputs

    def kept(self, value: tf.Tensor, traced: Traced) -> tf.Tensor:
        """What is kept of a tensor, with its Keras mask; indices count what is kept."""
        for axis, indices in self.selection(traced):
            value = _taken(value, indices, axis)
        if traced.points_at is None:
            return value
        places = tf.constant(self.units.labels(traced.points_at), value.dtype)
        return carry_mask(value, tf.gather(places, tf.cast(value, tf.int32)))

    def selection(self, traced: Traced) -> list[tuple[int, np.ndarray]]:
        """The axes (batch axis included) of a tensor of which only some positions are kept, and
        these."""
        kept = [
            (traced.axis_in_tensor(axis), self.units.keep[traced.line(axis)])
            for axis in traced.varying
        ]
        return [(axis, np.flatnonzero(keep)) for axis, keep in kept if not keep.all()]

    def possible(self, value: tf.Tensor, traced: Traced) -> tf.Tensor:
        """A tensor of any values with merged channels equal."""
        for axis in traced.varying:
            if self.units.merged[traced.line(axis)].any():
                at = traced.axis_in_tensor(axis)
                return self.units.level(value, at, traced.line(axis))
        return value

    def _as_if(self, binding: Binding) -> tf.Tensor:
        """A variable's value."""
        value = tf.convert_to_tensor(binding.variable)
        for axis, units in binding.axes.items():
            if axis not in binding.read and self.units.merged[units].any():
                value = self.units.level(value, axis, units)
        if any(not self.keep[binding.axes[axis]].all() for axis in binding.read):
            value *= read_mask(binding, self.keep)
        return value


def read_mask(binding: Binding, keep: np.ndarray) -> tf.Tensor:
    """0 where a kernel reads a removed unit, 1 elsewhere; broadcasts to the kernel."""
    rank = len(binding.variable.shape)
    mask = np.ones((1,) * rank, np.float32)
    for axis in binding.read:
        shape = [-1 if i == axis else 1 for i in range(rank)]
        mask = mask * keep[binding.axes[axis]].reshape(shape)
    return tf.constant(mask, binding.variable.dtype)


def _taken(value: tf.Tensor, indices: np.ndarray, axis: int) -> tf.Tensor:
    """Some positions of a tensor along an axis, and of its mask, if that tells them apart."""
    taken, mask = carry_mask(value, tf.gather(value, indices, axis=axis)), mask_of(value)
    if mask is not None and len(mask.shape) > axis and mask.shape[axis] == value.shape[axis]:
        set_mask(taken, tf.gather(mask, indices, axis=axis))
    return taken
