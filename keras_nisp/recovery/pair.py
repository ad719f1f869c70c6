"""A model and the smaller one that came of it, call by call."""

import dataclasses
import functools
import math

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import Binding, ChannelMap, Traced
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.rule import PlainKernel
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.keras_graph.recording import Step, recorded
from keras_nisp.kernels.reading import input_axis, plain_reads
from keras_nisp.plans.plan_fit import check_result


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A kernel that reads an input of its layer as it comes in.

    Attributes:
        call: in the original.
        twin: in the smaller model.
        plain, made: the kernel of the original, and of the twin.
        binding: of the original's kernel.
        bias: of the original, if one value is added to each output of the kernel.
        bias_binding: of that.
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
    def axis(self) -> int:
        """Of the kernel, along which the input's channels lie."""
        return self.plain.axis % len(self.plain.kernel.shape)

    @property
    def spatial(self) -> int:
        """How many axes of the kernel slide: the first ones."""
        return 0 if self.plain.window is None else len(self.plain.window.size)

    @property
    def units(self) -> np.ndarray:
        """Units along the axis that the kernel reads: of one group of channels."""
        return self.binding.axes[self.axis]

    @property
    def input(self) -> Traced:
        """What it reads."""
        return self.call.inputs[self.plain.argument]

    @property
    def channel_axis(self) -> int | None:
        """Of the input, batch axis counted, along which channels lie; `None` if it has none."""
        return input_axis(self.call, self.plain)

    @property
    def width(self) -> int:
        """How many channels the twin reads, of one group."""
        return self._count(self.units)

    def kernel(self) -> np.ndarray:
        """The original's kernel, at the outputs of the twin: `(taps, channels, outputs)`."""
        value = np.asarray(self._resized(self.binding, but=self.axis))
        value = np.moveaxis(value, self.axis, self.spatial)
        taps = math.prod(value.shape[: self.spatial])
        return value.reshape(taps, value.shape[self.spatial], -1)

    def bias(self) -> np.ndarray | None:
        """The original's bias, in the form of the twin's."""
        return None if self.bias_binding is None else np.asarray(self._resized(self.bias_binding))

    def laid_out(self, kernel: np.ndarray) -> np.ndarray:
        """A matrix `(taps, kept channels, outputs)` in the form of the twin's kernel."""
        shape = [n for i, n in enumerate(self.made.kernel.shape) if i != self.axis]
        shape.insert(self.spatial, kernel.shape[1])
        return np.moveaxis(kernel.reshape(shape), self.spatial, self.axis)

    def _resized(self, binding: Binding, but: int | None = None) -> tf.Tensor:
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
                reads = plain_reads(self.large, call)
                by_kernel = {id(old.kernel): new for old, new in zip(every, made, strict=True)}
                readers += [
                    self._reader(call, twin, plain, by_kernel[id(plain.kernel)]) for plain in reads
                ]
        return readers

    def _reader(self, call: Call, twin: Step, plain: PlainKernel, made: PlainKernel) -> Reader:
        bindings = self.large.bindings
        axis = plain.axis % len(plain.kernel.shape)
        first, bias = 0 if plain.window is None else len(plain.window.size), plain.bias
        outputs = [n for i, n in enumerate(plain.kernel.shape) if i >= first and i != axis]
        if bias is not None and math.prod(bias.shape) != math.prod(outputs):
            bias = None  # that of a GRU has two rows
        bound = None if bias is None else bindings.get(id(bias))
        return Reader(call, twin, plain, made, bindings[id(plain.kernel)], bound, self.unit_map)
