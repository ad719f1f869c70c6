"""Dense layers and embeddings."""

import math

import tensorflow as tf
from keras import layers

from keras_nisp.channels.registry import named_layers, register_rule
from keras_nisp.channels.rule import PlainKernel, Rule, absolute, positions, spread
from keras_nisp.rules.activation import Activated, activated
from keras_nisp.rules.products import parse


@register_rule(layers.Dense)
class Dense(Activated):
    """Reads the last axis and creates a new one, at every position of the other axes.

    These may hold channels, too: the kernel is applied to each of them, as in an MLP-Mixer.
    """

    does = "creates"

    def trace(self, call, x):
        layer = call.layer
        others = [axis for axis in x.varying if axis < x.rank - 1]
        lines = {i: x.line(i) for i in others if not call.tracer.is_fixed(x.line(i))}
        holds = x.varies(-1) or not lines
        read = {0: x.line(-1) if lines else call.along(x, -1)} if holds else {}
        outputs = call.create(layer.units)
        applied = positions(call.output_shape, -1)
        create, passed = {1: outputs}, lines.values()
        call.bind(layer.kernel, None, read, create, positions=applied, passed=passed)
        call.bind(layer.bias, own={0: outputs})
        return activated(call, call.grid({**lines, x.rank - 1: outputs}))

    def resize(self, call, config, width):
        output = call.outputs[0]
        if output.names.shape[-1] == 1:  # what lies along it stays as a whole
            return config
        return {**config, "units": width(output.line(-1))}

    def plain_kernels(self, layer):
        return [PlainKernel(layer.kernel, layer.bias)]

    def absolute(self, call, x):
        return tf.tensordot(x, absolute(call.layer.kernel), 1)


@register_rule(layers.EinsumDense)
class EinsumDense(Activated):
    """Creates channels on each axis that comes from the kernel: heads, and channels inside heads.

    Axes that kernel and output share with the input hold the same channels in all of them.
    """

    does = "creates"

    def trace(self, call, x):
        layer = call.layer
        (tensor, kernel), output = parse(layer.equation, [x.rank + 1, len(layer.kernel.shape)])
        made = [letter for letter in output if letter in kernel and letter not in tensor]
        held = {c: x.line(i) for i, c in enumerate(tensor[1:]) if x.varies(i)}
        if not made or tensor[0] != output[0] or tensor[0] in kernel:
            return call.fix_all("whose equation creates no channels")
        if any(c not in kernel and c not in output for c in held):
            return call.fix_all("whose equation adds up channels without its kernel")
        for number, letter in enumerate(reversed(made)):
            size = layer.kernel.shape[kernel.index(letter)]
            held[letter] = call.create(size, _label(number))
        bound = {kernel.index(c): names for c, names in held.items() if c in kernel}
        create = {i: names for i, names in bound.items() if kernel[i] in made}
        read = {i: names for i, names in bound.items() if kernel[i] not in output}
        own = {i: names for i, names in bound.items() if i not in create and i not in read}
        sizes = dict(zip(output[1:], call.output_shape, strict=True))
        applied = math.prod(n for c, n in sizes.items() if c not in kernel)
        passed = [names for c, names in held.items() if c in output and c not in kernel]
        call.bind(layer.kernel, own, read, create, positions=applied, passed=passed)
        call.reads = True
        lines = {output.index(c): names for c, names in held.items() if c in output}
        biased = [output.index(c) for c in layer.bias_axes or ""]
        own = {axis - min(biased): names for axis, names in lines.items() if axis in biased}
        call.bind(layer.bias, own=own)
        return activated(call, call.grid({axis - 1: names for axis, names in lines.items()}))

    def resize(self, call, config, width):
        output = call.outputs[0]
        shape = list(call.layer.partial_output_shape)
        for axis in output.varying:
            entry = len(shape) - output.rank + axis  # the shape may begin at a later axis
            if entry >= 0 and shape[entry] is not None:
                shape[entry] = width(output.line(axis))
        return {**config, "output_shape": tuple(shape)}

    def plain_kernels(self, layer):
        """A kernel whose axes that it reads are all added up: not one that each head has alone."""
        inputs, output = layer.equation.replace(" ", "").split("->")
        tensor, kernel = inputs.split(",")
        read = "".join(letter for letter in kernel if letter in tensor)
        made = [letter for letter in kernel if letter not in tensor]
        biased = [letter for letter in output if letter in (layer.bias_axes or "")]
        if (
            not read
            or any(letter in output for letter in read)
            or (layer.bias is not None and biased != made)
        ):
            return []
        axes = tuple(kernel.index(letter) for letter in read)
        if len(axes) == 1:
            return [PlainKernel(layer.kernel, layer.bias, axes[0], gives=len(made) == 1)]
        others = "".join(letter for letter in tensor if letter not in read)

        def flat(x, training=None):
            x = tf.einsum(f"{tensor}->{others}{read}", x)
            return tf.reshape(x, (*x.shape[: -len(axes)], -1))

        return [PlainKernel(layer.kernel, layer.bias, axes, inside=flat, gives=False)]

    def absolute(self, call, x):
        return tf.einsum(call.layer.equation, x, absolute(call.layer.kernel))


def _label(number: int) -> str:
    """What the channels along an axis are called, the last axis first."""
    return ("", ":heads")[number] if number < 2 else f":heads{number}"


@register_rule(layers.Embedding)
class Embedding(Rule):
    """A row for each index; importance spreads evenly over the vocabulary."""

    does = "creates"
    rescales = True

    def trace(self, call, x):
        names = call.create(call.layer.output_dim)
        call.fix(x.names, f"is an index for '{call.path}'")
        call.bind(call.layer.embeddings, create={1: names})
        call.multiply(call.output_shape, [names])
        return spread(names, -1, x.rank + 1)

    def resize(self, call, config, width):
        return {**config, "output_dim": width(call.outputs[0].line(-1))}

    def indices(self, call):
        looked_up = call.outputs[0].rank > call.inputs[0].rank
        return call.layer.input_dim if looked_up else None

    def absolute(self, call, x):
        return x[..., None] * tf.reduce_mean(absolute(call.layer.embeddings), 0)


@register_rule(*named_layers("ReversibleEmbedding"))
class ReversibleEmbedding(Embedding):
    """An embedding; backwards, a dense layer with the same weights onto the vocabulary."""

    def trace(self, call, x, reverse=False):
        layer = call.layer
        names = call.hidden["embedding"] = call.create(layer.output_dim)
        other = getattr(layer, "reverse_embeddings", None)
        applied = positions(x.shape, -1) if reverse else 0
        call.bind(layer.embeddings, create={1: names}, positions=applied if other is None else 0)
        call.bind(other, read={0: names}, positions=applied)
        if not reverse:
            call.fix(x.names, f"is an index for '{call.path}'")
            call.multiply(call.output_shape, [names])
            return spread(names, -1, x.rank + 1)
        call.join(names, call.along(x, -1))
        call.sums_channels = call.reads = True
        return call.single(f"'{call.path}' gives one value for each index")

    def resize(self, call, config, width):
        return {**config, "output_dim": width(call.hidden["embedding"])}

    def absolute(self, call, x, reverse=False):
        if not reverse:
            return super().absolute(call, x)
        kernel = getattr(call.layer, "reverse_embeddings", None)
        kernel = (
            tf.transpose(absolute(call.layer.embeddings)) if kernel is None else absolute(kernel)
        )
        return tf.tensordot(x, kernel, 1)
