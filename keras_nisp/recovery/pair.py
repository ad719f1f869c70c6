"""A model and the smaller one that came of it, call by call."""

import dataclasses
import functools
import math
from collections import Counter

import keras
import numpy as np

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import Binding, ChannelMap
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.rule import PlainKernel
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.keras_graph.recording import Step, recorded
from keras_nisp.plans.plan_fit import check_result


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """A layer whose one kernel reads the layer's input as it is.

    Attributes:
        call: in the original.
        twin: in the smaller model.
        made: kernel and bias of the twin.
        kernel: the binding of the original's kernel.
        bias: the original's bias, if it has one.
        values: how many values all calls of the layer give for a sample.
    """

    call: Call
    twin: Step
    made: PlainKernel
    kernel: Binding
    bias: keras.Variable | None
    values: int

    @property
    def units(self) -> np.ndarray:
        """Units along the axis that the kernel reads."""
        return self.kernel.axes[next(iter(self.kernel.read))]

    def tap_sums(self) -> np.ndarray:
        """What an input that is 1 at all positions adds to the outputs: `(inputs, outputs)`.

        The mean over positions, where outputs get different taps, as after a transposed
        convolution. Padding is ignored.
        """
        (read,), (create,) = self.kernel.read, self.kernel.create
        weights = np.moveaxis(np.asarray(self.kernel.variable, np.float64), (read, create), (0, 1))
        sums = weights.reshape(*weights.shape[:2], -1).sum(-1)
        return sums * self.kernel.positions * sums.shape[1] / self.values


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
        """All readers, one for each call.

        A layer whose kernel does not read its input directly (depthwise, separable and grouped
        convolutions, recurrent layers, attention) is passed over.
        """
        values: Counter = Counter()
        for call in self.large.calls:
            values[call.layer] += sum(t.batch * math.prod(t.shape) for t in call.outputs)
        readers = []
        for call, twin in zip(self.large.calls, self.twins, strict=True):
            plain, made = (rule_of(op).plain_kernel(op) for op in (call.layer, twin.operation))
            if plain is None or made is None:
                continue
            binding = self.large.bindings.get(id(plain.kernel))  # none for a kernel with LoRA
            if binding is not None and len(binding.read) == len(binding.create) == 1:
                (read,) = binding.read
                if np.array_equal(binding.axes[read], call.inputs[0].names.ravel()):
                    count = values[call.layer]
                    readers.append(Reader(call, twin, made, binding, plain.bias, count))
        return readers
