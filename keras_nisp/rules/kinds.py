"""Kinds of layers that are recognized by what they compute, whatever their class.

`recognised` runs layers with weights of their own on random tensors of the shapes on which they are
called. It knows two kinds: a norm over the last axis, whose scale and offset are vectors, and a
layer that treats each channel alone (a scale, a table that is added by position). Users may
register a class as one of them: `register_rule(MyNorm)(ChannelNorm)`. A layer without weights that
returns its input unchanged in inference (stochastic depth, say) is idle.
"""

import contextlib
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import register_kinds
from keras_nisp.channels.rule import Rule, Width
from keras_nisp.keras_graph import calling, copying, keras_layers
from keras_nisp.rules.activation import Idle

LENGTH = 5  # of axes that are open
SAME, SAME_HALF = 1e-4, 3e-2


class _LastAxis(Rule):
    """Weights lie along the last axis of the input, which is that of the output, too."""

    def trace(self, call: Call, x: Traced, **settings: Any) -> list[np.ndarray] | np.ndarray:
        if any(isinstance(value, Traced) for value in keras.tree.flatten(settings)):
            return call.fix_all("which is called with several tensors")
        held = x.varies(-1)
        if any(len(variable.shape) > 1 for variable in call.weights):
            call.along(x, -1)  # in tables positions are no channels
        for variable in call.weights:
            axis = len(variable.shape) - 1
            call.bind(variable, own={axis: x.line(-1)} if held else {})
        return x.names

    def resize(self, call: Call, config: dict, width: Width) -> dict:
        x = call.inputs[0]
        key = _width_key(call.layer) if x.varies(-1) else None
        return {**config, key: width(x.line(-1))} if key else config


class ChannelWise(_LastAxis):
    """The rule of layers that treat each channel of the last axis alone, with weights along it.

    A scale and an offset, say, or a table that is added by position. Importance is multiplied by
    the absolute values of the layer's factors. Most such layers are recognized by running them on
    random values; register this rule for a class that is not.

    Example:

    >>> class Shift(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.shift = self.add_weight(shape=(input_shape[-1],), name="shift")
    ...     def call(self, x):
    ...         return x + self.shift
    >>> rule = register_rule(Shift)(ChannelWise)
    """

    def absolute(self, call: Call, x: tf.Tensor, **settings: Any) -> tf.Tensor:
        zero, one, two = (call.infer(n * tf.ones_like(x), **settings) for n in (0, 1, 2))
        affine = np.allclose(two - zero, 2 * (one - zero), rtol=1e-4, atol=1e-6)
        return x * tf.cast(tf.abs(one - zero), x.dtype) if affine else x


class ChannelNorm(_LastAxis):
    """The rule of norms over the last axis, times a vector, perhaps with an offset.

    Each position is divided by its standard deviation or by its root mean square. Statistics are
    taken over the channels that are kept; importance is multiplied by the absolute values of the
    vector. Most such layers are recognized by running them on random values; register this rule
    for a class that is not.

    Example:

    >>> class Norm(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")
    ...     def call(self, x):
    ...         return keras.ops.rms_normalization(x, self.scale)
    >>> rule = register_rule(Norm)(ChannelNorm)
    """

    mixes_channels = True

    def trace(self, call: Call, x: Traced, **settings: Any) -> list[np.ndarray] | np.ndarray:
        call.mixes_channels = x.varies(-1)
        _norm(call.layer)  # while numbers can be looked at
        return super().trace(call, x, **settings)

    def absolute(self, call: Call, x: tf.Tensor, **settings: Any) -> tf.Tensor:
        _, scale, _ = _norm(call.layer)
        return x * np.abs(scale).astype("float32")

    def masked(self, call: Call, keep: list[tf.Tensor], x: tf.Tensor, **settings: Any) -> tf.Tensor:
        """Runs the layer on a tensor with the same statistics, but over all channels."""
        centred = _norm(call.layer)[0]
        dtype, x = x.dtype, tf.cast(x, tf.float32)
        kept = tf.cast(keep[0], tf.float32) * tf.ones_like(x[:1])
        share = tf.reduce_mean(kept, -1, keepdims=True)
        if centred:
            mean = tf.reduce_mean(x * kept, -1, keepdims=True)
            x -= tf.math.divide_no_nan(mean, share)
        root = tf.sqrt(share)
        x = tf.math.divide_no_nan(x * kept, root)
        whole, offset = (
            tf.cast(call.infer(tf.cast(value, dtype), **settings), tf.float32)
            for value in (x, tf.zeros_like(x))
        )
        return tf.cast((whole - offset) * root + offset, dtype)


Shape = tuple[int, ...]
_KINDS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_WIDTH_KEYS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_CENTRED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@register_kinds
def recognised(layer: keras.Layer) -> Rule | None:
    """The rule of a layer that computes what one of these kinds does; `None` if it does not."""
    if keras_layers.parts(layer) or not keras_layers.is_called_plainly(layer):
        return None  # the trials would be of other calls
    if not (shapes := _shapes(layer)):
        return None
    known = _KINDS.setdefault(layer, {})
    for shape in shapes:
        if shape not in known:
            known[shape] = _kind(layer, shape) if layer.weights else _idle(layer, shape)
    kinds = {known[shape] for shape in shapes}
    kind = kinds.pop()
    return kind() if kind is not None and not kinds else None


def _shapes(layer: keras.Layer) -> list[Shape]:
    """Of what a layer is called on, with sizes for open axes."""
    shapes = keras_layers.called_on(layer)
    if not shapes and layer.weights:
        shapes = [(None, LENGTH, layer.weights[0].shape[-1])]
    return [(shape[0] or 2, *(LENGTH if n is None else n for n in shape[1:])) for shape in shapes]


def _idle(layer: keras.Layer, shape: Shape) -> type[Idle] | None:
    """Whether a layer gives in inference what it is given, and takes fewer channels as well."""
    with contextlib.suppress(Exception), warnings.catch_warnings(), tf.init_scope():
        warnings.simplefilter("ignore")
        rng, copy = np.random.default_rng(0), copying.copy_layer(layer)
        for size in (shape, (*shape[:-1], max(shape[-1] - 1, 1))):
            x = tf.constant(100 * rng.standard_normal(size), layer.compute_dtype)
            if not np.array_equal(calling.infer(copy, x), x):
                return None
            if calling.call_in_mode(copy, True, x).shape != size:
                return None
        return Idle
    return None


def _kind(layer: keras.Layer, shape: Shape) -> type[_LastAxis] | None:
    if not _alike(layer.weights):
        return None
    with contextlib.suppress(Exception), warnings.catch_warnings():  # whatever users' code raises
        warnings.simplefilter("ignore")
        trial = _Trial(layer, shape)
        if not trial.weights_are_alone() or _width_key(layer) is None:
            return None
        if trial.is_channel_wise():
            return ChannelWise
        if trial.is_norm():
            return ChannelNorm
    return None


def _alike(weights: list) -> bool:
    """Whether all weights are as long along their last axis, and have numbers in it."""
    widths = {variable.shape[-1] if len(variable.shape) else 0 for variable in weights}
    return len(widths) == 1 and widths.pop() > 1 and all("float" in w.dtype for w in weights)


class _Trial:
    """A layer, tried by numbers on a tensor of this shape."""

    def __init__(self, layer: keras.Layer, shape: Shape) -> None:
        self.layer, self.rng = layer, np.random.default_rng(0)
        self.width = layer.weights[0].shape[-1]
        self.same = SAME_HALF if "16" in layer.compute_dtype else SAME
        self.x = self.rng.standard_normal(shape).astype("float32")
        self.y = self.run(self.x)
        if self.y.shape != self.x.shape or not np.isfinite(self.y).all():
            raise ValueError("its output has another shape than its input")

    def run(self, x: np.ndarray, changed: Sequence = ()) -> np.ndarray:
        """What the layer gives in inference, perhaps with other weights."""
        with keras.StatelessScope(state_mapping=list(changed)):
            y = calling.infer(self.layer, tf.constant(x, self.layer.compute_dtype))
        return np.asarray(tf.cast(y, tf.float32))

    def is_same(self, one: np.ndarray, other: np.ndarray) -> bool:
        scale = np.abs(other).max() or 1.0
        return one.shape == other.shape and np.abs(one - other).max() <= self.same * scale

    def some(self) -> np.ndarray:
        """Some of the channels, as a boolean for each: not all, nor none."""
        return self.rng.permutation(self.width) < max(self.width // 2, 1)

    def weights_are_alone(self) -> bool:
        """Whether what lies along the last axis of weights changes its own channels only."""
        told = False
        for weight in self.layer.weights:
            chosen, value = self.some(), tf.convert_to_tensor(weight)
            moved = value + tf.constant(0.5 * chosen, value.dtype)
            y = self.run(self.x, [(weight, moved)])
            if not self.is_same(y[..., ~chosen], self.y[..., ~chosen]):
                return False
            told |= not self.is_same(y, self.y)
        return told

    def is_channel_wise(self) -> bool:
        for _ in range(4):
            chosen = self.some()
            y = self.run(self.x + chosen * self.rng.standard_normal(self.x.shape))
            if not self.is_same(y[..., ~chosen], self.y[..., ~chosen]):
                return False
        return True

    def is_norm(self) -> bool:
        """Whether it gives a multiple of what is normalized that depends on its size alone."""
        centred, scale, offset = _norm(self.layer)
        if np.abs(scale).max() == 0:
            return False
        large, small = (self.run(factor * self.x) for factor in (100, 0.01))
        wanted = _normalised(self.x, centred) * scale
        if not self.is_same(large - offset, wanted):
            return False
        told = np.abs(wanted) > 0.1 * np.abs(wanted).max()
        factors = np.divide(small - offset, wanted, out=np.ones_like(wanted), where=told)
        flat = (values.reshape(-1, self.width) for values in (factors, told))
        each = [row[seen] for row, seen in zip(*flat, strict=True)]
        return all(self.is_same(row, np.full_like(row, row.mean())) for row in each if len(row))


def _normalised(x: np.ndarray, centred: bool) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True) if centred else x
    return x / np.sqrt((x * x).mean(-1, keepdims=True))


def _norm(layer: keras.Layer) -> tuple[bool, np.ndarray, np.ndarray]:
    """Whether a norm takes the mean off, by what it multiplies, and what it adds."""
    width, dtype, shape = layer.weights[0].shape[-1], layer.compute_dtype, _shapes(layer)[0]

    def run(x):
        y = calling.infer(layer, tf.constant(np.broadcast_to(x, shape), dtype))
        return np.asarray(tf.cast(y, tf.float32)).reshape(-1, width)[0]

    with tf.init_scope():
        if layer not in _CENTRED:
            x = 100 * np.random.default_rng(1).standard_normal(width)
            one, other, offset = run(x), run(x + 100), run(0 * x)
            size = np.abs(one - offset).max()
            _CENTRED[layer] = bool(np.abs(one - other).max() <= 0.03 * size)
        centred = _CENTRED[layer]
        signs = np.where(np.arange(width) % 2, -1.0, 1.0)  # as large as their deviation
        probe = _normalised(signs, centred)
        offset = run(0 * probe)
        return centred, (run(100 * probe) - offset) / probe, offset


def _width_key(layer: keras.Layer) -> str | None:
    """Which setting of a layer holds its width; empty if it goes by its input, `None` if no layer
    of another width can be made."""
    if layer not in _WIDTH_KEYS:
        _WIDTH_KEYS[layer] = _find_width_key(layer)
    return _WIDTH_KEYS[layer]


def _find_width_key(layer: keras.Layer) -> str | None:
    width, shape = layer.weights[0].shape[-1], _shapes(layer)[0]
    wanted = [(*variable.shape[:-1], 2 * width) for variable in layer.weights]
    config = copying.layer_config(layer)
    keys = [key for key, value in config.items() if value == width and type(value) is int]
    for key in ("", *keys):
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy = copying.copy_layer(layer, **({key: 2 * width} if key else {}))
            calling.infer(copy, tf.zeros((*shape[:-1], 2 * width), layer.compute_dtype))
            shapes = [tuple(variable.shape) for variable in copy.weights]
            if shapes == wanted and _does_the_same(copy, layer, shape):
                return key
    return None


def _does_the_same(copy: keras.Layer, layer: keras.Layer, shape: Shape) -> bool:
    """Whether a layer that is twice as wide does twice what another does: it may compute with its
    width."""
    weights = [
        (twice, tf.concat([tf.convert_to_tensor(once)] * 2, -1))
        for twice, once in zip(copy.weights, layer.weights, strict=True)
    ]
    x = np.random.default_rng(0).standard_normal(shape)
    with keras.StatelessScope(state_mapping=weights):  # nothing is assigned while calls are traced
        one, both = (
            np.asarray(tf.cast(calling.infer(each, tf.constant(x, each.compute_dtype)), tf.float32))
            for each, x in ((layer, x), (copy, np.concatenate([x, x], -1)))
        )
    scale = SAME_HALF if "16" in layer.compute_dtype else SAME
    return bool(np.abs(both - np.concatenate([one, one], -1)).max() <= scale * np.abs(one).max())
