"""Layers and operations that move values: names make the same movement."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import register_operations, register_rule
from keras_nisp.channels.rule import PassThrough, Rule
from keras_nisp.keras_graph import wrappers
from keras_nisp.rules.pooling import _Pooling


@register_rule(layers.Flatten, layers.Permute, layers.RepeatVector)
@register_operations(
    *("transpose", "moveaxis", "swapaxes", "squeeze", "expand_dims", "flip", "rot90", "ravel"),
    *("fliplr", "flipud", "hstack", "vstack", "dstack", "column_stack", "append", "tile"),
    *("depth_to_space", "space_to_depth"),
)
class Movement(Rule):
    """Names move like the values: the operation itself is run on the array of names."""

    does = "moves"
    moves_batch = True

    def trace(self, call, *args, **kwargs):
        if not all(isinstance(x, Traced) for x in keras.tree.flatten((args, kwargs))):
            return call.fix_all("which puts constants beside tensors (`concatenate` is followed)")
        return move(call, args, kwargs)

    def affine(self, layer, args):
        return 1, 0

    def absolute(self, call, *args, **kwargs):
        return _as_float(call.infer(*args, **kwargs))


def move(call, args, kwargs) -> list[np.ndarray]:
    """The names of the outputs of an operation that moves values."""
    if len(call.inputs) == 1:
        call.points_at = [call.inputs[0].points_at] * len(call.output_shapes)
    if not any(tensor.batch_axis for tensor in call.inputs):
        outputs = _moved(call, args, kwargs, call.samples, 0)
        if outputs is not None and all(
            len(output) and len(output) % call.samples == 0 and (output == output[:1]).all()
            for output in outputs
        ):
            call.batch = len(outputs[0]) // call.samples
            call.batch_axes = [0] * len(outputs)
            call.output_shapes = [output.shape[1:] for output in outputs]
            return [output[0] for output in outputs]
    return _move_batch_axis(call, args, kwargs)


def _move_batch_axis(call, args, kwargs) -> list[np.ndarray]:
    """The same where the batch axis of an input is not the first, or that of an output.

    It is found by the names of a second sample, which are others.
    """
    count, samples = call.tracer.count, 2 * call.samples
    outputs = _moved(call, args, kwargs, samples, count)
    if outputs is None:
        return call.fix_all("which takes batches of one size alone, or mixes samples")
    axes = [_batch_axis(output // count, samples) for output in outputs]
    if None in axes or call.batch != 1:
        if [output.shape[1:] for output in outputs] == call.output_shapes:
            # None are left where a layer without a rule gave more rows than it took.
            call.batch = max(1, len(outputs[0]) // samples)
        return call.fix_all(_why_not(call, axes))
    names = [output.take(0, axis) for output, axis in zip(outputs, axes, strict=True)]
    call.batch_axes, call.output_shapes = axes, [array.shape for array in names]
    return names


def _why_not(call, axes: list[int | None]) -> str:
    """Why channels cannot be followed through a movement whose outputs have these batch axes."""
    if None not in axes:
        return "which moves a batch axis that holds positions"
    if any(x.names.size > 1 for x in call.inputs):
        return "which moves channels into the batch axis"
    return "which mixes samples with positions"


def _moved(call, args, kwargs, samples: int, step: int) -> list[np.ndarray] | None:
    """What the operation gives of arrays of names; `None` if it does not take them.

    Args:
        call, args, kwargs: of the operation.
        samples: how many.
        step: by how much the names of a sample differ from those of the one before.
    """

    def laid_out(x):
        if not isinstance(x, Traced):
            return x
        at, count = x.batch_axis, x.batch * samples
        names = np.broadcast_to(np.expand_dims(x.names, at), x.with_batch(count))
        shape = [count if axis == at else 1 for axis in range(x.rank + 1)]
        return tf.constant(names + step * np.arange(count).reshape(shape), tf.int32)

    try:
        moved = call.infer(*keras.tree.map_structure(laid_out, args), **kwargs)
    except (ValueError, tf.errors.InvalidArgumentError):  # a size that no batch axis has
        return None
    return [np.asarray(output) for output in keras.tree.flatten(moved)]


def _batch_axis(numbers: np.ndarray, samples: int) -> int | None:
    """The axis along which the numbers of samples lie, if it is one."""
    for axis, size in enumerate(numbers.shape):
        row = np.arange(samples).reshape([-1 if i == axis else 1 for i in range(numbers.ndim)])
        if size == samples and (numbers == row).all():
            return axis
    return None


def _as_float(outputs):
    return keras.tree.map_structure(lambda x: tf.cast(x, tf.float32), outputs)


def channels_along(x: Traced, axis: int) -> np.ndarray | None:
    """The names along an axis of a tensor (batch axis counted), if they differ there."""
    own = x.own_axis(axis)
    return None if own is None or x.names.shape[own] == 1 else x.line(own)


def varies(x: Traced, axis: int) -> bool:
    """Whether names differ along an axis of a tensor (batch axis counted)."""
    return channels_along(x, axis) is not None


@register_operations("repeat")
class Repeat(Movement):
    """Every channel is repeated equally often."""

    def trace(self, call, x):
        if np.size(call.layer.repeats) > 1:
            return call.fix_all("which repeats entries unequally")
        return move(call, (x,), {})


@register_operations("stack")
class Stack(Movement):
    """The stacked tensors have the same channels, so the new axis holds none."""

    moves_batch = False

    def trace(self, call, tensors):
        if not all(isinstance(x, Traced) for x in tensors):
            return call.fix_all("which stacks constants")
        names, shape = tensors[0].names, tensors[0].shape
        for other in tensors[1:]:
            call.join(names, other.names)
        axis = call.layer.axis % (len(shape) + 2)
        at = max(axis - 1, 0)
        call.batch_axes = [0 if axis else 1]
        call.output_shapes = [(*shape[:at], len(tensors), *shape[at:])]
        return np.expand_dims(names, at)


@register_rule(layers.Reshape)
@register_operations("reshape", "broadcast_to")
class Reshape(Movement):
    """The new target shape is counted: axes with channels get the number of kept channels."""

    moves_batch = False

    def resize(self, call, config, width):
        (key,) = {"target_shape", "newshape", "shape"} & set(config)
        output, target = call.outputs[0], list(config[key])
        batch = len(target) - output.rank  # operations count the batch axis
        for axis in output.varying:
            if target[axis + batch] not in (-1, None):
                target[axis + batch] = width(output.line(axis))
        return {**config, key: tuple(target)}


@register_operations("split", "array_split")
class Split(Movement):
    """If channels are split, the split points are counted again and given one by one."""

    def resize(self, call, config, width):
        x, axis = call.inputs[0], config["axis"]
        if (names := channels_along(x, axis)) is None:
            return config
        ends = np.cumsum([out.shape[x.own_axis(axis)] for out in call.outputs])[:-1]
        return {**config, "indices_or_sections": [width(names[:end]) for end in ends]}


@register_operations("unstack")
class Unstack(Movement):
    """Along an axis without channels, or one of several axes with channels; those then stay."""

    def trace(self, call, x):
        if (names := channels_along(x, call.layer.axis)) is not None:
            if not x.lines:
                return call.fix_all("which takes channels apart")
            call.fix(names, f"is taken apart by '{call.path}'")
        return move(call, (x,), {})


@register_operations("roll")
class Roll(Movement):
    """Only along axes without channels."""

    moves_batch = False

    def trace(self, call, x):
        axes = call.layer.axis
        if axes is None or any(varies(x, axis) for axis in np.ravel(axes)):
            return call.fix_all("which rolls channels")
        return x.names


@register_operations("take")
class Take(Movement):
    """Takes channels at constant indices, which are counted again."""

    def trace(self, call, x, indices):
        if not isinstance(x, Traced) or isinstance(indices, Traced) or call.layer.axis is None:
            return call.fix_all("which looks values up")
        names = channels_along(x, call.layer.axis)
        if np.ndim(indices) > 1 and names is not None:
            return call.fix_all("which takes channels into several axes")
        if np.ndim(indices) == 0 and names is not None:
            call.fix(names[indices], f"is taken alone by '{call.path}'")
        return move(call, (x, indices), {})

    def arguments(self, call, args, kwargs, width):
        x, indices = args
        if (names := channels_along(call.inputs[0], call.layer.axis)) is None:
            return args, kwargs
        indices = np.asarray(indices) % len(names)
        starts = np.cumsum([0, *(width(names[i : i + 1]) for i in range(len(names)))])
        new = [np.arange(starts[i], starts[i + 1]) for i in np.ravel(indices)]
        return (x, int(new[0][0]) if indices.ndim == 0 else np.concatenate(new)), kwargs


@register_operations("get_item")
class GetItem(Movement):
    """`x[..., a:b]`: if channels are sliced, the bounds are counted again. `x[..., ::2]` couples
    neighboring channels in pairs."""

    def trace(self, call, x, key):
        for axis, entry in _entries(key, x.rank + 1):
            if not isinstance(entry, (int, slice, np.integer)):
                return call.fix_all("which is indexed by an array")
            if (names := channels_along(x, axis)) is None:
                continue
            if not isinstance(entry, slice):
                call.fix(names[entry], f"is taken alone by '{call.path}'")
            elif _in_turn(entry, len(names)):
                rows = names.reshape(-1, entry.step)
                call.join(rows[:, :1], rows)
            elif entry.step not in (None, 1) and entry != slice(None, None, -1):
                return call.fix_all("which takes channels in steps")
        return move(call, (x, key), {})

    def arguments(self, call, args, kwargs, width):
        x, key = args
        traced, changed = call.inputs[0], list(_key(key))
        for index, (axis, entry) in zip(
            _taking_axes(key), _entries(key, traced.rank + 1), strict=True
        ):
            names = channels_along(traced, axis)
            whole = entry in (slice(None), slice(None, None, -1))
            if names is not None and not whole and not _in_turn(entry, len(names)):
                if isinstance(entry, slice):
                    start, stop, _ = entry.indices(len(names))
                    changed[index] = slice(width(names[:start]), width(names[:stop]))
                else:
                    changed[index] = width(names[: entry % len(names)])
        return (x, tuple(changed)), kwargs


def _in_turn(entry, size: int) -> bool:
    """Whether one of every few positions is taken, from the first few to the end: those that lie
    side by side are one channel then, and the index stays."""
    if not isinstance(entry, slice) or entry.step is None or entry.step < 2 or size % entry.step:
        return False
    return (entry.start or 0) in range(entry.step) and entry.stop in (None, size)


def _key(given) -> tuple:
    """The entries of an index; where a model was read from a file, it is a list."""
    return tuple(given) if isinstance(given, (tuple, list)) else (given,)


def _taking_axes(key) -> list[int]:
    """Which entries of an index take an axis of the tensor."""
    return [i for i, e in enumerate(_key(key)) if e is not Ellipsis and e is not None]


def _entries(key, rank: int) -> list[tuple]:
    """Axis and entry for each of `_taking_axes`."""
    key, taking, found = _key(key), _taking_axes(key), []
    for count, index in enumerate(taking):
        after = any(entry is Ellipsis for entry in key[:index])
        found.append((rank - len(taking) + count if after else count, key[index]))
    return found


@register_operations("pad")
class Pad(Movement):
    """Channels of zeros hold nothing: they are removed with the channels that they meet."""

    moves_batch = False

    def trace(self, call, x, constant_values=None):
        lines = {i: x.line(i) for i in x.varying}
        for axis, (before, after) in enumerate(_pad_widths(call.layer.pad_width, x.rank + 1)):
            if (before or after) and axis == 0:
                return call.fix_all("which pads the batch axis")
            if (before or after) and varies(x, axis):
                if call.layer.mode != "constant":
                    return call.fix_all("which pads channels with others")
                ends = [call.tracer.fresh(count) for count in (before, after)]
                lines[axis - 1] = np.concatenate([ends[0], lines[axis - 1], ends[1]])
        return call.grid(lines) if lines else x.names

    def resize(self, call, config, width):
        output = call.outputs[0]
        widths = _pad_widths(config["pad_width"], output.rank + 1)
        for axis, (before, after) in enumerate(widths):
            if (before or after) and varies(output, axis):
                row = output.line(axis - 1)
                widths[axis] = [width(row[:before]), width(row[len(row) - after :])]
        return {**config, "pad_width": widths}

    def absolute(self, call, x, constant_values=None):
        if call.layer.mode != "constant":
            return super().absolute(call, x)
        return tf.pad(x, _pad_widths(call.layer.pad_width, len(x.shape)))


def _pad_widths(given, rank: int) -> list[list[int]]:
    """Padding before and after, for each axis."""
    return np.broadcast_to(given, (rank, 2)).tolist()


@register_rule(
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
)
class Spatial(_Pooling):
    """Pads, crops, scales or repeats positions; channels stay where they are."""

    def absolute(self, call, x):
        return _as_float(call.infer(x))

    def affine(self, layer, args):
        return 1, 0


@register_rule(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
class ZeroPadding(Spatial):
    """Pads positions; channels stay where they are."""

    pads = True


@register_rule(wrappers.FoldTime)
class Fold(Rule):
    """Time steps become entries of the batch: the same channels in all of them."""

    does = "moves"

    def trace(self, call, x, mask=None):
        call.join(x.names[:1], x.names)
        call.batch = x.batch * x.shape[0]
        return x.names[0]

    def absolute(self, call, x, mask=None):
        return call.infer(x)


@register_rule(wrappers.UnfoldTime)
class Unfold(Rule):
    does = "moves"

    def trace(self, call, x, like):
        call.batch = like.batch
        return x.names[None]

    def absolute(self, call, x, like):
        return call.infer(x, like)


@register_rule(wrappers.FlipTime)
class Flip(PassThrough):
    def trace(self, call, x):
        call.join(x.names[:1], x.names)
        return x.names[:1]
