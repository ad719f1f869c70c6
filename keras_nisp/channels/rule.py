"""What a rule is, and the barrier for what has none."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.keras_graph.masks import carry_mask

if TYPE_CHECKING:
    from keras_nisp.channels.call import Call
    from keras_nisp.channels.named_tensor import Traced

WITHOUT_RULE = "a layer without a rule"
Width = Callable[[np.ndarray], int]


@dataclasses.dataclass(frozen=True, eq=False)
class Normalisation:
    """How a layer normalises each channel in inference, and by which variables.

    Attributes:
        mean, variance: of what the layer took in training, a value for each channel.
        scale, offset: by which the result is multiplied, and what is added; may be `None`.
        epsilon: added to the variance.
        axis: of the channels, the batch axis counted.
    """

    mean: keras.Variable
    variance: keras.Variable
    scale: keras.Variable | None
    offset: keras.Variable | None
    epsilon: float
    axis: int


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel slides over the spatial axes of its input, which are the kernel's first axes.

    Attributes:
        size, strides, dilation: for each spatial axis.
        padding: `"valid"`, `"same"` or `"causal"`.
        transposed: whether it is a transposed convolution, from outputs to inputs.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str
    transposed: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class PlainKernel:
    """A kernel that multiplies an input of its layer as it comes in, or something inside.

    Attributes:
        kernel: the variable.
        bias: what is added to the product, of its shape without axes that are multiplied or slide;
            `None` if nothing is.
        axis: of the kernel, along which the channels that it reads lie; or several, in order.
        argument: which tensor among the layer's arguments it reads, unless the trace says of the
            kernel from which `source` it reads.
        window: how it slides; `None` where each position is multiplied by itself.
        groups: how many parts of the channels are multiplied apart, each by its part of the
            kernel's last axis.
        inside: where it reads no argument, what it reads instead, of the arguments of a call: a
            tensor with the channels along its last axis.
        gives: whether the product, with the bias, leaves the layer, perhaps through an activation.
    """

    kernel: keras.Variable
    bias: keras.Variable | None
    axis: int | tuple[int, ...] = 0
    argument: int = 0
    window: Window | None = None
    groups: int = 1
    inside: Callable | None = None
    gives: bool = True

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes of the kernel along which the channels that it reads lie."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(axis % len(self.kernel.shape) for axis in axes)


class Rule:
    """All that the library knows about one family of layers.

    Subclass it and register it with `register_rule`. Arguments `*args, **kwargs` are
    those of the layer's own call (`training` and `None` left out), with a `Traced` (in
    `trace`) or a `tf.Tensor` (elsewhere) for each tensor.

    Attributes:
        does: what happens to names: `"creates"`, `"passes"`, `"moves"`, `"joins"` or
            `"fixes"`. For docs/coverage.md.
        mixes_channels: whether statistics over the channels make a model from which
            channels are removed differ from one in which they are zero; `masked` must
            then be given. A trace may decide it for its call: `call.mixes_channels = False`.
        sums_channels: whether channels are added up without a kernel (a dot product): they
            are removed if they are zero. A trace may decide it, likewise.
        warns: whether users are told that channels stay, for want of a rule.
        idle: whether the layer gives in inference what it is given, as dropout does.
        elementwise: whether each number that it gives depends on those at the same position.
        rescales: whether constants bring what comes in into a range of their own: a factor, the
            rows of a table.
        pads: whether the layer puts zeros around its input and does nothing else.
        convolves: whether it slides a kernel over its input, which a runtime may pad meanwhile.
        moves_batch: whether `trace` takes tensors whose batch axis is not their first.

    Example: a custom layer that scales every channel.

    >>> class ChannelScale(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")
    ...     def call(self, x):
    ...         return x * self.scale
    >>> @register_rule(ChannelScale)
    ... class ChannelScaleRule(Rule):
    ...     def trace(self, call, x):
    ...         call.bind(call.layer.scale, own={0: call.along(x, -1)})
    ...         return x.names
    ...     def absolute(self, call, x):
    ...         return x * tf.abs(tf.convert_to_tensor(call.layer.scale))
    """

    does = "passes"
    mixes_channels = False
    sums_channels = False
    warns = False
    idle = False
    elementwise = False
    rescales = False
    pads = False
    convolves = False
    moves_batch = False

    def trace(self, call: "Call", *args: Any, **kwargs: Any) -> np.ndarray | list[np.ndarray]:
        """Says what happens to names.

        Args:
            call: the `Call`; its methods create, join, fix and bind names.

        Returns:
            The array of names of the output, or a list of them for several outputs.
        """
        raise NotImplementedError("the rule has no `trace`, which says what becomes of channels.")

    def absolute(self, call: "Call", *args: Any, **kwargs: Any) -> tf.Tensor | list[tf.Tensor]:
        """The layer in the absolute network, in which NISP propagates.

        Weights count with their absolute value, biases as 0, activations as identity;
        the result must be linear in the tensors.

        Returns:
            The output tensor, or a list of them.
        """
        raise NotImplementedError(
            "the rule has no `absolute`, which NISP propagates by. Define it, or take an "
            "importance that does not propagate, such as `Magnitude()`."
        )

    def resize(self, call: "Call", config: dict, width: Width) -> dict:
        """The layer's config after a removal.

        Args:
            call: the first `Call` of the layer, with names in `inputs` and `outputs`.
            config: from `layer.get_config()`; may be changed.
            width: `width(names)` gives how many of these names remain: the new size of an axis
                along which they lie.

        Returns:
            The config for `layer.from_config`.
        """
        return config

    def arguments(
        self, call: "Call", args: tuple, kwargs: dict, width: Width
    ) -> tuple[tuple, dict]:
        """The arguments of a call after a removal, for operations that take sizes there.

        Args:
            call: the `Call`.
            args, kwargs: with symbolic tensors of the new sizes.
            width: as for `resize`.
        """
        return args, kwargs

    def convert(
        self, call: "Call", variable: keras.Variable, value: tf.Tensor, width: Width
    ) -> tf.Tensor:
        """A variable's new value, for layers that compute with the number of channels.

        Args:
            call: the first `Call` of the layer.
            variable: the original variable.
            value: its value at the new size.
            width: as for `resize`.
        """
        return value

    def indices(self, call: "Call") -> int | None:
        """How many rows of a table the layer looks up by what it takes in: `verify` tries all of
        them. `None` if it takes no indices."""
        return None

    # Facts about the layer, for those who repair, time, score or feed a network. -----------

    def normalisation(self, layer: keras.Operation) -> Normalisation | None:
        """How the layer normalises each channel by statistics from training; `None` if it does
        not. `recalibrate` renews these statistics."""
        return None

    def plain_kernels(self, layer: keras.Operation) -> list[PlainKernel]:
        """The kernels that read an input as it comes in, or something inside that can be had.
        `recalibrate` lets them make up for removed channels, one after the other."""
        return []

    def clamps(self, layer: keras.Operation) -> bool:
        """Whether the layer only cuts values off (ReLU), which costs a runtime nothing."""
        return False

    def groups(self, layer: keras.Operation) -> int:
        """How many groups of channels a convolution keeps apart, which can go as a whole."""
        return 1

    def affine(self, layer: keras.Operation, args: tuple) -> tuple[Any, Any] | None:
        """The constants of a call that gives `factor * x + offset` of its one tensor, perhaps at
        other positions; `None` if it does something else.

        Args:
            layer: the layer or operation.
            args: of the call: numbers, arrays, and something else for the tensor.
        """
        return None

    def input_statistics(self, layer: keras.Operation, rank: int) -> tuple | None:
        """Mean and variance of what the layer took in training, as arrays that broadcast to an
        input of this rank (batch axis counted); `None` if it does not tell."""
        return None

    def masked(
        self, call: "Call", keep: list[tf.Tensor], *args: Any, **kwargs: Any
    ) -> tf.Tensor | list[tf.Tensor]:
        """The layer on the original width, with removed channels left out of statistics.

        Only for rules with `mixes_channels` or `sums_channels`. Where no channel is removed it
        must give exactly what the layer gives. By default the removed channels are zero.

        Args:
            keep: for each input a float tensor of 0 and 1 that broadcasts to it; where the call
                is of a layer that ends with a softmax (`Activated`), for its output.
        """
        masks = iter(keep)
        args, kwargs = keras.tree.map_structure(
            lambda x: zeroed(x, next(masks)) if tf.is_tensor(x) else x, (args, kwargs)
        )
        return call.infer(*args, **kwargs)


class PassThrough(Rule):
    """Names pass unchanged: element-wise layers, dropout, noise.

    It is registered in one line for a custom layer without weights that keeps shapes, and whose
    output channels each depend on the same input channel alone.

    Example:

    >>> class Square(keras.layers.Layer):
    ...     def call(self, x):
    ...         return x * x
    >>> rule = register_rule(Square)(PassThrough)
    """

    def trace(self, call: "Call", x: "Traced") -> np.ndarray:
        return x.names

    def absolute(self, call: "Call", x: tf.Tensor) -> tf.Tensor:
        return x


class Barrier(Rule):
    """What has no rule, or none on purpose: nothing that enters or leaves may be removed."""

    does = "fixes"

    def __init__(self, reason: str = WITHOUT_RULE, warns: bool = False) -> None:
        self.reason = reason
        self.warns = warns

    def trace(self, call: "Call", *args: Any, **kwargs: Any) -> list[np.ndarray]:
        reason = f", {self.reason}" if self.reason != WITHOUT_RULE else ""
        kind = f"{type(call.layer).__name__}{reason}"
        unknown = f"'{call.path}' ({kind})" if self.warns else None
        for tensor in call.inputs:
            call.fix(tensor.names, f"enters '{call.path}', {self.reason}", unknown)
        reason = f"leaves '{call.path}', {self.reason}"
        outputs = [call.tracer.fresh_last(shape) for shape in call.output_shapes]
        return [call.fix(names, reason, unknown) for names in outputs]

    def absolute(self, call: "Call", *args: Any, **kwargs: Any) -> list[tf.Tensor]:
        # Nothing is known of where importance comes from: spread it evenly.
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if tf.is_tensor(x)]
        mean = tf.add_n([tf.reduce_mean(x) for x in tensors])
        shapes = [out.with_batch(out.batch * call.samples) for out in call.outputs]
        return [tf.fill(shape, mean) for shape in shapes]


BARRIER = Barrier(warns=True)


def meaningful(kwargs: dict) -> dict:
    """Keyword arguments without those that say nothing about tensors."""
    return {k: v for k, v in kwargs.items() if v is not None and k != "training"}


# Helpers for rules. ---------------------------------------------------------------


def channel_axis(layer, rank: int) -> int:
    """The channel axis of a layer with a `data_format`, batch axis not counted."""
    return 0 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def spread(names: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """1-D names laid along one axis of an array of the given rank."""
    shape = [1] * rank
    shape[axis] = -1
    return np.reshape(names, shape)


def positions(shape: tuple[int, ...], axis: int) -> int:
    """How many positions a feature map has, its channel axis apart."""
    return int(np.prod([size for i, size in enumerate(shape) if i != axis % len(shape)], initial=1))


def zeroed(x: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """A tensor with zeros where `keep` is 0; time steps that are masked stay so."""
    return carry_mask(x, x * tf.cast(keep, x.dtype))


def absolute(variable) -> tf.Tensor:
    """A variable's absolute value in float32."""
    return tf.abs(tf.cast(tf.convert_to_tensor(variable), tf.float32))
