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
    """How a layer normalizes each channel in inference, and by which variables.

    Attributes:
        mean, variance: statistics of the layer's inputs in training, a value for each channel.
        scale, offset: factor and summand of the normalized values for each channel, or `None`.
        epsilon: number that is added to the variance.
        axis: axis of the channels, the batch axis counted.
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
        size, strides, dilation: one number for each spatial axis.
        padding: `"valid"`, `"same"` or `"causal"`.
        transposed: whether it is a transposed convolution.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str
    transposed: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class PlainKernel:
    """A kernel that multiplies an unchanged input of its layer, or a tensor inside the layer.

    Attributes:
        kernel: the variable.
        bias: the variable that is added to the product: its shape is that of the kernel without
            the axes that are multiplied or slide. `None` if there is none.
        axis: axis of the kernel along which the channels that it reads lie, or several, in order.
        argument: index of the tensor that it reads among the tensors of the layer's arguments. A
            `source` that the trace gives for the kernel (`Call.bind`) goes first.
        window: how the kernel slides; `None` if each position is multiplied alone.
        groups: number of groups of channels, each of which is multiplied by its own part of the
            kernel's last axis.
        inside: for a kernel that reads no argument: a function from the arguments of a call to the
            tensor that it reads, with the channels along its last axis.
        gives: whether the product, with the bias, is an output of the layer, perhaps after an
            activation.
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
        mixes_channels: whether the layer takes statistics over channels, so that a model without
            some channels differs from one in which they are zero. `masked` must then be defined.
            A trace may decide it for its call: `call.mixes_channels = False`.
        sums_channels: whether the layer adds up channels without a kernel (a dot product), so a
            zeroed channel has the same effect as a removed one. A trace may decide it, likewise.
        warns: whether users are warned that channels stay because a rule is missing.
        idle: whether the layer returns its input unchanged in inference, as dropout does.
        elementwise: whether each output value depends only on input values at the same position.
        rescales: whether the layer rescales its input by constants: a factor, or the rows of a
            table.
        pads: whether the layer only puts zeros around its input.
        convolves: whether the layer slides a kernel over its input; a runtime may fuse a padding
            before it.
        moves_batch: whether `trace` takes tensors whose batch axis is not the first.

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
        """Declares what happens to names.

        Args:
            call: the `Call`; its methods create, join, fix and bind names.

        Returns:
            The array of names of the output, or a list of arrays for several outputs.
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
            "the rule has no `absolute`, by which NISP propagates. Define it, or take an "
            "importance that does not propagate, such as `Magnitude()`."
        )

    def resize(self, call: "Call", config: dict, width: Width) -> dict:
        """The layer's config after a removal.

        Args:
            call: the first `Call` of the layer, with names in `inputs` and `outputs`.
            config: result of `layer.get_config()`; it may be changed.
            width: `width(names)` returns how many of these names remain: the new size of an axis
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
            args, kwargs: the arguments, with symbolic tensors of the new sizes.
            width: as for `resize`.

        Returns:
            The arguments to call the smaller layer with.
        """
        return args, kwargs

    def convert(
        self, call: "Call", variable: keras.Variable, value: tf.Tensor, width: Width
    ) -> tf.Tensor:
        """A variable's new value, for layers that compute with the number of channels.

        Args:
            call: the first `Call` of the layer.
            variable: the original variable.
            value: the variable's value at the new size.
            width: as for `resize`.

        Returns:
            The value to assign.
        """
        return value

    def indices(self, call: "Call") -> int | None:
        """The number of rows of the table that the layer looks up by index: `verify` tries all of
        them. `None` if the layer takes no indices."""
        return None

    # Facts about the layer, for repair, latency, scores and random inputs. ------------------

    def normalisation(self, layer: keras.Operation) -> Normalisation | None:
        """How the layer normalizes each channel by statistics from training; `None` if it does
        not. `recalibrate` renews these statistics."""
        return None

    def plain_kernels(self, layer: keras.Operation) -> list[PlainKernel]:
        """The kernels that read an unchanged input, or a tensor inside that can be computed.
        `recalibrate` lets them make up for removed channels, one after the other."""
        return []

    def clamps(self, layer: keras.Operation) -> bool:
        """Whether the layer only cuts values off (ReLU), which costs a runtime nothing."""
        return False

    def groups(self, layer: keras.Operation) -> int:
        """The number of groups of channels that a convolution keeps apart; whole groups can be
        removed (`whole_groups`)."""
        return 1

    def affine(self, layer: keras.Operation, args: tuple) -> tuple[Any, Any] | None:
        """`(factor, offset)` of a call that computes `factor * x + offset` from its one tensor,
        perhaps moved to other positions; `None` if it does something else.

        Args:
            layer: the layer or operation.
            args: arguments of the call: numbers, arrays, and some other object for the tensor.
        """
        return None

    def input_statistics(self, layer: keras.Operation, rank: int) -> tuple | None:
        """Mean and variance of the layer's inputs in training, as arrays that broadcast to an
        input of this rank (batch axis counted); `None` if they are not known."""
        return None

    def masked(
        self, call: "Call", keep: list[tf.Tensor], *args: Any, **kwargs: Any
    ) -> tf.Tensor | list[tf.Tensor]:
        """Runs the layer at its original width, with removed channels left out of statistics.

        Only for rules with `mixes_channels` or `sums_channels`. If no channel is removed, it must
        return exactly what the layer returns. By default it sets the removed channels to zero.

        Args:
            keep: for each input a float tensor of 0 and 1 that broadcasts to it. For a layer that
                ends with a softmax (`Activated`), one tensor for its output.

        Returns:
            The output tensor, or a list of them.
        """
        masks = iter(keep)
        args, kwargs = keras.tree.map_structure(
            lambda x: zeroed(x, next(masks)) if tf.is_tensor(x) else x, (args, kwargs)
        )
        return call.infer(*args, **kwargs)


class PassThrough(Rule):
    """Names pass unchanged: element-wise layers, dropout, noise.

    Register it in one line for a custom layer without weights that keeps shapes, and in which each
    output channel depends only on the same input channel.

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
    """For layers without a rule, or fixed on purpose: all channels that enter or leave stay.

    Args:
        reason: why.
        warns: whether users are told that channels stay for want of a rule.
        multiplies: whether it makes products that FLOPs do not count.
    """

    does = "fixes"

    def __init__(
        self, reason: str = WITHOUT_RULE, warns: bool = False, multiplies: bool = False
    ) -> None:
        self.reason, self.warns, self.multiplies = reason, warns, multiplies or warns

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
