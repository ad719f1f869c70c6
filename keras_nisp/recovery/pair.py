"""A model and the smaller one that came of it, call by call."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import Binding, ChannelMap
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.rule import PlainKernel
from keras_nisp.channels.unit_map import DROPPED, UnitMap, segment_sum
from keras_nisp.keras_graph.recording import Step, recorded
from keras_nisp.kernels.reading import inner_reads, is_linear, plain_reads, read_axis
from keras_nisp.plans.plan_fit import check_result


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A kernel that reads an input of its layer as it comes in, or something inside.

    Attributes:
        call: in the original.
        twin: in the smaller model.
        plain, made: the kernel of the original, and of the twin.
        binding: of the original's kernel.
        bias_binding: of the original's bias, if one value is added to each output of the kernel.
        unit_map: what became of the original's units.
    """

    call: Call
    twin: Step
    plain: PlainKernel
    made: PlainKernel
    binding: Binding
    bias_binding: Binding | None
    unit_map: UnitMap

    @property
    def spatial(self) -> int:
        """How many axes of the kernel slide: the first ones."""
        return 0 if self.plain.window is None else len(self.plain.window.size)

    @property
    def units(self) -> np.ndarray:
        """Units along the axis that the kernel reads: of one group of channels."""
        return self.binding.axes[self.plain.axes[0]]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """For each channel that the original reads, which one of the twin's it becomes."""
        labels = np.zeros(1, int)
        for axis in self.plain.axes:
            units = self.binding.axes[axis]
            new = self.unit_map.labels(units)
            gone = (labels[:, None] == DROPPED) | (new == DROPPED)
            labels = np.where(gone, DROPPED, labels[:, None] * self._count(units) + new).ravel()
        return labels

    @property
    def input(self) -> Traced:
        """What it reads, if that is no tensor inside the layer."""
        return self.call.inputs[self.plain.argument]

    def channel_axis(self, rank: int) -> int | None:
        """Of a tensor that it reads, batch axis counted, along which channels lie; `None` if there
        is none."""
        return read_axis(self.call, self.plain, rank)

    @property
    def gives_product(self) -> bool:
        """Whether the call's output is, at each position, the kernel's product with what it reads
        there, and the bias."""
        plain = self.plain
        plainly = plain.gives and plain.window is not None and plain.groups == 1
        return plainly and is_linear(self.call) and (plain.bias is None) == (self.bias is None)

    def product(self, output: tf.Tensor) -> tf.Tensor:
        """What the kernel gives at the outputs of the twin, of what the call gives in the
        original: `(..., outputs)` both."""
        bias = self.bias
        kept = self.unit_map.own(output, len(output.shape) - 1, self.call.outputs[0].names.ravel())
        return kept if bias is None else kept - tf.cast(bias, kept.dtype)

    @property
    def width(self) -> int:
        """How many channels the twin reads, of one group."""
        return math.prod(self._count(self.binding.axes[axis]) for axis in self.plain.axes)

    def kernel(self) -> np.ndarray:
        """The original's kernel, at the outputs of the twin: `(taps, channels, outputs)`."""
        axes, spatial = self.plain.axes, self.spatial
        value = np.asarray(self._resized(self.binding, but=axes))
        value = np.moveaxis(value, axes, range(spatial, spatial + len(axes)))
        return value.reshape(math.prod(value.shape[:spatial]), len(self.labels), -1)

    def kept(self, x: tf.Tensor) -> tf.Tensor:
        """What the twin would read, had the channels that it keeps not changed."""
        if (axis := self.channel_axis(len(x.shape))) is None:
            return x
        return self.unit_map.own(x, axis, np.tile(self.units, self.plain.groups))

    def surgery(self, kernel: np.ndarray) -> np.ndarray:
        """A matrix `(taps, channels, outputs)` at the channels that the twin reads."""
        return np.asarray(segment_sum(tf.constant(kernel), self.labels, self.width, 1))

    @functools.cached_property
    def bias(self) -> np.ndarray | None:
        """The original's bias, in the form of the twin's."""
        return None if self.bias_binding is None else np.asarray(self._resized(self.bias_binding))

    def laid_out(self, kernel: np.ndarray) -> np.ndarray:
        """A matrix `(taps, kept channels, outputs)` in the form of the twin's kernel."""
        axes, made = self.plain.axes, self.made.kernel.shape
        shape = [n for i, n in enumerate(made) if i not in axes]
        first, last = self.spatial, self.spatial + len(axes)
        shape[first:first] = [made[axis] for axis in axes]
        return np.moveaxis(kernel.reshape(shape), range(first, last), axes)

    def _resized(self, binding: Binding, but: Sequence[int] = ()) -> tf.Tensor:
        value = tf.cast(tf.convert_to_tensor(binding.variable), tf.float64)
        value = self.unit_map.resized(binding, value, but)
        return self.call.ask("convert", binding.variable, value, self._count)

    def _count(self, units: np.ndarray) -> int:
        return int(np.count_nonzero(self.unit_map.keep[units]))


class Pair:
    """A traced model, and the smaller one that was made of it.

    Args:
        large: the original.
        unit_map: what became of its units.
        small: the smaller model.

    Raises:
        PlanMismatchError: the smaller model is another one.
    """

    def __init__(self, large: ChannelMap, unit_map: UnitMap, small: keras.Model):
        counts = [len(call.outputs) for call in large.calls]
        self.large, self.unit_map, self.small = large, unit_map, small
        self.twins = recorded(small, counts)
        check_result(self.twins, large, unit_map)

    @functools.cached_property
    def readers(self) -> list[Reader]:
        """All kernels that read an input as it comes in, those of each call."""
        readers = []
        for call, twin in zip(self.large.calls, self.twins, strict=True):
            every = rule_of(call.layer).plain_kernels(call.layer)
            made = rule_of(twin.operation).plain_kernels(twin.operation)
            if len(every) == len(made):
                reads = [*plain_reads(self.large, call), *inner_reads(self.large, call)]
                by_kernel = {id(old.kernel): new for old, new in zip(every, made, strict=True)}
                readers += [
                    self._reader(call, twin, plain, by_kernel[id(plain.kernel)]) for plain in reads
                ]
        return readers

    def _reader(self, call: Call, twin: Step, plain: PlainKernel, made: PlainKernel) -> Reader:
        bindings = self.large.bindings
        first, bias = 0 if plain.window is None else len(plain.window.size), plain.bias
        others = {*range(first), *plain.axes}
        outputs = [n for i, n in enumerate(plain.kernel.shape) if i not in others]
        if bias is not None and math.prod(bias.shape) != math.prod(outputs):
            bias = None  # that of a GRU has two rows
        bound = None if bias is None else bindings.get(id(bias))
        return Reader(call, twin, plain, made, bindings[id(plain.kernel)], bound, self.unit_map)
