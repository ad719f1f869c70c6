"""Layers and operators that bring tensors together, element by element or side by side."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import register_operations, register_rule
from keras_nisp.channels.rule import Rule, absolute
from keras_nisp.keras_graph import keras_layers
from keras_nisp.keras_graph.wrappers import PairDirections


def join(call, operands):
    """Position by position, the names of broadcast operands become one.

    Args:
        call: the `Call`.
        operands: tensors, constant arrays and numbers, in the order of the arguments.
    """
    tensors = [x for x in operands if isinstance(x, Traced)]
    rank = tensors[0].rank
    if any(tensor.rank != rank for tensor in tensors):
        return call.fix_all("which joins tensors of different ranks")
    names, shape = join_tensors(call, tensors)
    for position, operand in enumerate(operands):
        if isinstance(operand, keras.Variable):
            return call.fix_all("which uses a variable outside of layers")
        if not isinstance(operand, Traced) and np.size(operand) > 1:
            axes = _constant_axes(call, np.shape(operand), call.tracer.traced(names, shape))
            if axes is None:
                return call.fix_all("which holds a constant for each sample")
            if axes:
                call.bind_constant(position, operand, axes)
    return names


def join_tensors(call, tensors):
    """The common names of tensors of the same rank, and their shape."""
    shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    joined = []
    for tensor in tensors:
        others = np.broadcast_shapes(*(t.names.shape for t in tensors if t is not tensor))
        others = (1,) * (tensor.rank - len(others)) + others
        held = [axis for axis in range(tensor.rank) if others[axis] > 1]
        # One value that serves many channels (a spatial gate) is none of them.
        serves = tensor.names.size == 1 and any(tensor.shape[i] == 1 < shape[i] for i in held)
        if serves:
            call.fix(tensor.names, f"serves many channels in '{call.path}'")
        # It may serve heads, and have entries for the channels inside of them.
        if not serves or any(tensor.shape[axis] > 1 for axis in held):
            joined.append(tensor)
    axes = {axis for tensor in joined for axis in tensor.varying}
    if len(axes) > 1 or (len(joined) > 1 and any(tensor.lines for tensor in joined)):
        lines = _join_lines(call, joined, range(len(shape)))
        meet = f"meets in '{call.path}' what holds no channels"
        return call.grid(lines) if lines else call.single(meet), shape
    for tensor in joined[1:]:
        call.join(joined[0].names, tensor.names)
    names = [tensor.names for tensor in joined]
    return (np.broadcast_arrays(*names)[0] if joined else tensors[0].names), shape


def _join_lines(call, tensors, axes) -> dict[int, np.ndarray]:
    """The common names of tensors that meet, along each of these axes where all have some."""
    lines = {}
    for axis in axes:
        full = [t for t in tensors if t.shape[axis] > 1]
        held = [t.line(axis) for t in full if t.varies(axis)]
        if held:
            lines[axis] = held[0]
            for line in held[1:]:
                call.join(held[0], line)
            if len(held) < len(full):
                others = [t for t in full if t.names.shape[axis] == 1]
                call.fix(lines.pop(axis), meets_none(call, others))
    return lines


def meets_none(call, tensors) -> str:
    """Why channels stay that meet none along an axis of these tensors."""
    made = (call.tracer.made.get(id(tensor)) for tensor in tensors)
    stacks = [maker.path for maker in made if maker is not None and type(maker.layer) is STACK]
    if stacks:
        return (
            f"is one for each layer that '{stacks[0]}' stacks, and layers do not go as a whole: "
            "experts in one kernel do, as in EinsumDense"
        )
    return f"meets in '{call.path}' what holds no channels"


def meet(call, x, names: np.ndarray, axis: int, rank: int) -> None:
    """Channels meet what is broadcast against them: they stay if it has an entry for each, unless
    it has the same channels.

    Args:
        call: the call.
        x: a tensor or an array that is added to them, say, or masks them; `None` for nothing.
        names: of the channels.
        axis: along which they lie in a tensor of this rank, the batch axis not counted.
        rank: of that tensor.
    """
    shape = x.shape if isinstance(x, Traced) else np.shape(x)  # an array may have a batch axis
    place = axis - rank  # from the end, as it is broadcast
    if len(shape) < -place or shape[place] == 1:
        return
    if isinstance(x, Traced) and x.varies(place):
        call.join(names, x.line(place))
    else:
        call.fix(names, f"meets in '{call.path}' what holds no channels")


def _constant_axes(call, shape, tensor) -> dict[int, np.ndarray] | None:
    """The names along the axes of a constant of this shape that meets a tensor.

    `None` if the constant has entries for single samples.
    """
    axes, offset = {}, tensor.rank - len(shape)
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if axis + offset < 0:
            return None
        if tensor.shape[axis + offset] == 1:
            if tensor.names.size == 1:
                call.fix(tensor.names, f"serves many channels in '{call.path}'")
        elif tensor.varies(axis + offset):
            axes[axis] = tensor.line(axis + offset)
    return axes


def _sum(tensors):
    """The bound of an element-wise combination: every operand gets the whole score."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


@register_rule(
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
class Joining(Rule):
    """Element by element. A product passes the score to both factors; an average divides it."""

    does = "joins"
    elementwise = True

    def trace(self, call, tensors):
        return join(call, tensors)

    def absolute(self, call, tensors):
        total = _sum(tensors)
        return total / len(tensors) if isinstance(call.layer, layers.Average) else total


@register_rule(keras_layers.CustomScaleLayer)
class ScaledSum(Joining):
    """`x + scale * y`, in InceptionResNetV2."""

    def absolute(self, call, tensors):
        return tensors[0] + abs(call.layer.scale) * tensors[1]


CONSTANTS = (int, float, np.ndarray, np.generic)
ADDITION, SUBTRACTION = map(keras_layers.operation_class, ("add", "subtract"))
PRODUCTS = {keras_layers.operation_class("multiply")}
STACK = keras_layers.operation_class("stack")
CHOICE = keras_layers.operation_class("where")
QUOTIENTS = {
    keras_layers.operation_class(name) for name in ("divide", "true_divide", "divide_no_nan")
}


@register_operations(
    *(
        "divide_no_nan",
        "floor_divide",
        "maximum",
        "minimum",
        "fmax",
        "fmin",
        "power",
        "mod",
        "fmod",
        "arctan2",
        "hypot",
    ),
    *("logaddexp", "logaddexp2", "heaviside", "ldexp", "nextafter", "gcd", "lcm"),
    *("copysign", "float_power", "gammainc"),
    *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal", "isclose"),
    *("logical_and", "logical_or", "logical_xor", "left_shift", "right_shift"),
    *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift"),
    "where",
)
class Operator(Rule):
    """Element by element, with tensors, numbers or constant arrays (which shrink as well).

    Every operand gets the whole score; a constant factor multiplies it.
    """

    does = "joins"
    elementwise = True

    def trace(self, call, *operands, **settings):
        return join(call, operands)

    def absolute(self, call, *operands, **settings):
        tensors = [x for x in operands if tf.is_tensor(x)]
        kind = type(call.layer)
        if kind is CHOICE and len(tensors) > 1 and tensors[0] is operands[0]:
            tensors = tensors[1:]  # the condition is no term
        total = _sum(tensors)
        for constant in (x for x in operands if x is not None and not tf.is_tensor(x)):
            factor = np.abs(np.asarray(constant, np.float32))
            if kind in PRODUCTS:
                total = total * factor
            elif kind in QUOTIENTS and tf.is_tensor(operands[0]):
                total = tf.math.divide_no_nan(total, factor)
        return tf.broadcast_to(total, (total.shape[0], *call.output_shape))


@register_operations("add", "subtract", "multiply", "divide", "true_divide")
class Arithmetic(Operator):
    """Element by element, with tensors, numbers or constant arrays (which shrink as well).

    Every operand gets the whole score; a constant factor multiplies it.
    """

    rescales = True

    def affine(self, layer, args):
        known = [tf.is_tensor(x) or isinstance(x, CONSTANTS) for x in args]
        if len(args) != 2 or sum(known) != 1:
            return None
        first = known[1]
        constant = np.asarray(args[1 if first else 0], np.float64)
        kind = type(layer)
        if kind is ADDITION:
            return 1, constant
        if kind is SUBTRACTION:
            return (1, -constant) if first else (-1, constant)
        if not np.all(constant):
            return None
        if kind in PRODUCTS:
            return constant, 0
        return (1 / constant, 0) if first else None


@register_rule(keras_layers.LayerScale)
class LayerScale(Rule):
    """One learned factor for each channel, in ConvNeXt."""

    def trace(self, call, x):
        call.bind(call.layer.gamma, own={0: call.along(x, -1)})
        return x.names

    def resize(self, call, config, width):
        return {**config, "projection_dim": width(call.outputs[0].line(-1))}

    def absolute(self, call, x):
        return x * absolute(call.layer.gamma)


@register_operations("glu")
class GatedHalves(Rule):
    """A channel of the first half goes with the one of the second half that is its gate."""

    does = "joins"

    def trace(self, call, x):
        axis = x.own_axis(call.layer.axis)
        if axis is None:
            return call.fix_all("which runs along the batch axis")
        if x.names.shape[axis] == 1:
            return x.names
        values, gates = np.split(x.names, 2, axis)
        call.join(values, gates)
        return values

    def absolute(self, call, x):
        return _sum(tf.split(x, 2, call.layer.axis))


@register_rule(PairDirections)
class PairedDirections(Rule):
    """Keras takes both directions of a `Bidirectional` to be equally wide."""

    does = "joins"

    def trace(self, call, forward, backward):
        call.join(forward.names, backward.names)
        return [forward.names, backward.names]

    def absolute(self, call, forward, backward):
        return [forward, backward]


@register_rule(layers.Concatenate)
@register_operations("concatenate")
class Concatenate(Rule):
    """Names are concatenated as the values are. Constants among the tensors keep their size."""

    does = "moves"

    def trace(self, call, tensors):
        tensors = [t if isinstance(t, Traced) else _constant(call, t) for t in tensors]
        rank = tensors[0].rank
        axis = call.layer.axis % (rank + 1) - 1
        if axis < 0:
            return call.fix_all("which joins samples")
        if len({i for tensor in tensors for i in tensor.varying}) > 1:
            return call.grid(self.lines(call, tensors, axis))
        extents = [list(tensor.names.shape) for tensor in tensors]
        for extent, tensor in zip(extents, tensors, strict=True):
            extent[axis] = tensor.shape[axis]
        common = [max(extent[i] for extent in extents) for i in range(rank)]
        parts = [
            np.broadcast_to(t.names, [*common[:axis], t.shape[axis], *common[axis + 1 :]])
            for t in tensors
        ]
        return np.concatenate(parts, axis)

    def lines(self, call, tensors, axis) -> dict[int, np.ndarray]:
        """What lies along each axis, if channels lie along several."""
        lines = _join_lines(call, tensors, [i for i in range(tensors[0].rank) if i != axis])
        if any(tensor.varies(axis) for tensor in tensors):
            reason = f"holds no channels in '{call.path}'"
            lines[axis] = np.concatenate(
                [
                    t.line(axis)
                    if t.varies(axis)
                    else np.repeat(call.fix(call.tracer.fresh(1), reason), t.shape[axis])
                    for t in tensors
                ]
            )
        return lines

    def absolute(self, call, tensors):
        tensors = [tf.cast(tensor, tf.float32) for tensor in tensors]
        return tf.concat(tensors, call.layer.axis)


def _constant(call, array) -> Traced:
    shape = np.shape(array)[1:]
    return Traced(call.fresh(shape, f"is a constant in '{call.path}'"), shape)
