"""Trials of one layer by numbers: what depends on what, against what its rule says."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import Binding, ChannelMap
from keras_nisp.channels.rule import meaningful
from keras_nisp.errors import RuleError
from keras_nisp.keras_graph import calling
from keras_nisp.keras_graph.rounding import largest_difference
from keras_nisp.testing.multiplications import kernel_multiplications

SAME = 1e-5  # of numbers that should be equal, over their scale
LINEAR = 1e-3


class Trials:
    """Trials of one call of a layer.

    Args:
        channel_map: the traced model.
        call: of the layer in it.
        arguments: what the call is given, with tensors.
        rng: for random numbers.
    """

    def __init__(self, channel_map: ChannelMap, call: Call, arguments: tuple, rng):
        self.map, self.call, self.rng = channel_map, call, rng
        self.arguments = arguments[0], meaningful(arguments[1])
        self.tensors = [x for x in keras.tree.flatten(self.arguments) if tf.is_tensor(x)]
        found = (channel_map.bindings.get(id(weight)) for weight in call.weights)
        self.bindings: list[Binding] = [binding for binding in found if binding is not None]
        self.mixes = call.mixes_channels or call.sums_channels

    def run(self) -> None:
        """Raises `RuleError` for the first thing that is not as the rule says."""
        self.check_bound()
        self.check_absolute()
        self.check_multiplications()
        if not self.mixes:
            self.check_names()
            self.check_owned()
            self.check_read()

    # Variables -----------------------------------------------------------------------

    def check_bound(self) -> None:
        """Each variable must be bound."""
        for weight in self.call.weights:
            if id(weight) not in self.map.bindings and np.prod(weight.shape) > 1:
                raise self.error(
                    "trace",
                    f"does not bind variable '{weight.name}' of shape {tuple(weight.shape)}. Say "
                    "which channels lie along its axes, as in `call.bind(call.layer."
                    f"{_attribute(self.call.layer, weight)}, own={{0: names}})`, or `call.bind` it "
                    "without axes if it has the same size whatever is removed.",
                )

    def check_multiplications(self) -> None:
        """FLOPs must be those that TensorFlow computes, where that can be counted."""
        tensors = [tensor[: traced.batch] for tensor, traced in self._with_traced()]
        counted = kernel_multiplications(lambda *x: self._infer(list(x)), tensors)
        said = sum(int(np.prod(b.variable.shape)) * b.positions for b in self.bindings)
        if counted and counted != said:
            kernels = [b for b in self.bindings if b.read or b.create]
            size = int(np.prod(kernels[0].variable.shape)) if len(kernels) == 1 else 0
            hint = f" It is applied at {counted // size:,} positions." if size else ""
            raise self.error(
                "trace",
                f"counts {said:,} multiplications by kernels for one sample, but TensorFlow "
                f"computes {counted:,}. Give `call.bind` of each kernel its `positions`: how often "
                f"each of its numbers is used.{hint}",
            )

    # Names ---------------------------------------------------------------------------

    def check_names(self) -> None:
        """A channel that no kernel reads may change outputs of its own name only."""
        read = [b.axes[axis] for b in self.bindings for axis in b.read]
        taken = self.map.seen(np.concatenate([np.zeros(0, int), *read]))
        before = self._infer(self.tensors)
        for index, (tensor, traced) in enumerate(self._with_traced()):
            changed = {}
            for unit in np.unique(traced.names) if tensor.dtype.is_floating else ():
                if not taken[unit] and self.map.free[unit]:
                    noise = self._noise(tensor) * self._at(traced.names, unit)
                    moved = [*self.tensors[:index], tensor + noise, *self.tensors[index + 1 :]]
                    changed[unit] = self._changed(before, self._infer(moved))
            for unit, units in changed.items():
                if self._others(units, unit):
                    raise self._misnamed(traced.names, unit, changed)

    def _misnamed(self, names: np.ndarray, unit: int, changed: dict[int, set]) -> RuleError:
        """What is wrong where a channel changes outputs of other names.

        Args:
            names: of the input.
            unit: the channel.
            changed: for each channel the units of the outputs that change with it.
        """
        what = f"a change of channel {_number(names, unit)} of the input"
        given, distinct = self._numbers(changed[unit]), set().union(*changed.values())
        if len(distinct) == len(changed) > 1 and all(len(units) == 1 for units in changed.values()):
            return self.error(
                "trace",
                f"names the channels of the output in another order than the layer gives them: "
                f"{what} changes channel {given} of the output, which has another name. Move "
                "`x.names` as the layer moves values.",
            )
        return self.error(
            "trace",
            "says that each channel of the output depends on the channel of its name alone, but "
            f"{what} changes channels {given} of the output. If the layer takes statistics over "
            "channels, set `mixes_channels = True` and give `masked`; if it adds channels up, "
            "`sums_channels = True`; if a kernel reads them, bind it with `read=`; if it brings "
            "tensors together, `call.join` their names; otherwise `return call.fix_all(reason)`.",
        )

    def check_owned(self) -> None:
        """What belongs to a channel may change outputs of its name only."""
        outputs = self._seen(self.call.outputs)
        inputs = self._seen(self.call.inputs)
        for binding in self.bindings:
            for axis in binding.read:
                if (outputs & ~inputs)[binding.axes[axis]].any():
                    return  # a recurrent layer: what it gives, it reads
        before = self._infer(self.tensors)
        for binding, axis, unit in self._slices(lambda b, axis: axis not in b.read):
            if not outputs[unit] or not self.map.free[unit]:
                continue
            if others := self._others(self._changed_by_slice(before, binding, axis, unit), unit):
                same = [
                    other
                    for other, size in enumerate(binding.variable.shape)
                    if other != axis
                    and size == binding.variable.shape[axis]
                    and self._changed_by_slice(before, binding, other, unit, axis) == {unit}
                ]
                hint = f" They lie along axis {same[0]}." if same else ""
                word = "create" if axis in binding.create else "own"
                number = _number(binding.axes[axis], unit)
                raise self.error(
                    "trace",
                    f"binds axis {axis} of variable '{binding.variable.name}' by `{word}=` to "
                    f"channels of the output, but what lies at {number} along this axis changes "
                    f"channels {self._numbers(others)} of the output.{hint}",
                )

    def check_read(self) -> None:
        """What reads a channel may have no effect while the channel is zero."""
        inputs = self._seen(self.call.inputs)
        for binding, axis, unit in self._slices(lambda b, axis: axis in b.read):
            if not inputs[unit] or not self.map.free[unit]:
                continue
            tensors = [
                tensor * (1 - self._at(traced.names, unit)) if tensor.dtype.is_floating else tensor
                for tensor, traced in self._with_traced()
            ]
            if self._changed_by_slice(self._infer(tensors), binding, axis, unit, tensors=tensors):
                number = _number(binding.axes[axis], unit)
                raise self.error(
                    "trace",
                    f"binds axis {axis} of variable '{binding.variable.name}' by `read=`, but what "
                    f"lies at {number} along this axis changes the output even if the channel that "
                    "it should read is zero.",
                )

    def _slices(self, wanted: Callable) -> Iterator[tuple[Binding, int, int]]:
        for binding in self.bindings:
            for axis, units in binding.axes.items():
                for unit in np.unique(units) if wanted(binding, axis) else ():
                    yield binding, axis, int(unit)

    def _changed_by_slice(self, before, binding, axis, unit, units_of=None, tensors=None) -> set:
        """The units of the outputs that change with a slice of a variable."""
        variable = binding.variable
        units = binding.axes[axis if units_of is None else units_of]
        shape = [-1 if i == axis else 1 for i in range(len(variable.shape))]
        value = tf.convert_to_tensor(variable)
        value += self._noise(value) * tf.cast(np.reshape(units == unit, shape), value.dtype)
        with keras.StatelessScope(state_mapping=[(variable, value)]):
            return self._changed(before, self._infer(self.tensors if tensors is None else tensors))

    # The absolute network -------------------------------------------------------------

    def check_absolute(self) -> None:
        """`absolute` must be linear, and positive for what is positive."""
        samples = self.call.samples
        inputs = [self._positive((t.batch * samples, *t.shape)) for t in self.call.inputs]
        outputs = self._absolute(inputs)
        if not all(np.all(np.asarray(output) >= 0) for output in outputs):
            raise self.error(
                "absolute",
                "gives negative values for an input above zero. Take weights by their absolute "
                "value: `tf.abs(tf.convert_to_tensor(weight))`.",
            )
        if self._size(self._absolute([0 * x for x in inputs])) > 0:
            raise self.error(
                "absolute", "gives something for an input of zeros. Leave out biases and offsets."
            )
        doubled = self._absolute([2 * x for x in inputs])
        if largest_difference([2 * y for y in outputs], doubled).relative > LINEAR:
            factor = self._size(doubled) / self._size(outputs)
            raise self.error(
                "absolute",
                f"is not linear: twice the input gives {factor:.3g} times the output. Leave out "
                "activations, norms and whatever depends on the input.",
            )
        self._check_gradient(inputs, outputs)

    def _check_gradient(self, inputs: list, outputs: list) -> None:
        """Its gradient must be that of a linear map, which gives the output of the input."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            products = [y * self._positive(y.shape) for y in self._absolute(inputs)]
            total = tf.add_n([tf.reduce_sum(product) for product in products])
        gradients = tape.gradient(total, inputs)
        pairs = [(g, x) for g, x in zip(gradients, inputs, strict=True) if g is not None]
        found = sum(float(tf.reduce_sum(g * x)) for g, x in pairs)
        if not pairs and self._size(outputs) > 0:
            raise self.error(
                "absolute",
                "cannot be differentiated: NISP propagates scores back through it. Compute it in "
                "operations of TensorFlow or `keras.ops` on the tensor that comes in.",
            )
        if abs(found - float(total)) > LINEAR * abs(float(total)):
            raise self.error(
                "absolute",
                "is not linear: its gradient is not that of a linear map. Leave out activations, "
                "norms and whatever depends on the input.",
            )
        if len(inputs) == 1 and not self.call.hidden and not self.call.sums_channels:
            other = [self._positive(x.shape) for x in inputs]
            both = self._absolute([x + y for x, y in zip(inputs, other, strict=True)])
            apart = zip(outputs, self._absolute(other), strict=True)
            if largest_difference([x + y for x, y in apart], both).relative > LINEAR:
                raise self.error(
                    "absolute",
                    "is not linear: of a sum of two inputs it does not give the sum of what it "
                    "gives of each. A maximum is not, a sum or mean is.",
                )

    def _absolute(self, tensors: list) -> list:
        args, kwargs = self._filled(tensors)
        outputs = keras.tree.flatten(self.call.ask("absolute", *args, **kwargs))
        wanted = [(t.batch * self.call.samples, *t.shape) for t in self.call.outputs]
        received = [tuple(output.shape) for output in outputs]
        if received != wanted:
            raise self.error(
                "absolute", f"must give tensors of shapes {wanted}. Received: {received}"
            )
        return outputs

    # Help ----------------------------------------------------------------------------

    def error(self, method: str, what: str) -> RuleError:
        return self.call.error(method, what)

    def _with_traced(self) -> list[tuple]:
        return list(zip(self.tensors, self.call.inputs, strict=True))

    def _filled(self, tensors: list) -> tuple[tuple, dict]:
        values = iter(tensors)
        return keras.tree.map_structure(
            lambda x: next(values) if tf.is_tensor(x) else x, self.arguments
        )

    def _infer(self, tensors: list) -> list:
        args, kwargs = self._filled(tensors)
        states = calling.fresh_states(self.call.layer)
        with states if tf.executing_eagerly() else contextlib.nullcontext():
            return keras.tree.flatten(self.call.infer(*args, **kwargs))

    def _noise(self, tensor: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._positive(tensor.shape), tensor.dtype)

    def _positive(self, shape: tuple) -> tf.Tensor:
        return tf.constant(self.rng.uniform(0.5, 1.5, shape), "float32")

    def _at(self, names: np.ndarray, unit: int) -> np.ndarray:
        return (names == unit)[None].astype("float32")

    def _seen(self, traced: list) -> np.ndarray:
        return self.map.seen(np.concatenate([np.zeros(0, int), *(t.names.ravel() for t in traced)]))

    def _changed(self, before: list, after: list) -> set[int]:
        """The units of the outputs that differ."""
        changed: set[int] = set()
        for old, new, traced in zip(before, after, self.call.outputs, strict=True):
            old, new = (np.asarray(x, np.float64) for x in (old, new))
            scale = np.nanmax(np.abs(old), initial=1e-30, where=np.isfinite(old))
            differ = ~np.isclose(old, new, rtol=0, atol=SAME * scale, equal_nan=True)
            names = np.broadcast_to(traced.names, differ.shape[1:])
            changed |= set(names[differ.any(0)].tolist())
        return changed

    def _others(self, units: set[int], unit: int) -> set[int]:
        """Those of the units that are neither this one nor products with it."""
        by_product = self.map.products.by_product
        return {u for u in units if u != unit and unit not in by_product.get(u, ())}

    def _numbers(self, units: set[int]) -> str:
        """Where units lie in the first output that has them, as text."""
        for traced in self.call.outputs:
            line = traced.names.ravel()
            found = np.flatnonzero(np.isin(line, list(units)))
            if len(found):
                more = ", ..." if len(found) > 5 else ""
                return ", ".join(map(str, found[:5])) + more
        return "?"

    @staticmethod
    def _size(outputs: list) -> float:
        return max((float(tf.reduce_max(tf.abs(output))) for output in outputs), default=0.0)


def _number(names: np.ndarray, unit: int) -> int:
    """Where a unit lies first."""
    return int(np.argmax(names.ravel() == unit))


def _attribute(layer: keras.Layer, weight: keras.Variable) -> str:
    """The attribute of a layer that holds a weight."""
    return next((name for name, value in vars(layer).items() if value is weight), weight.name)
