"""Dense layers and embeddings."""

import math

import tensorflow as tf
from keras import layers

from keras_nisp.channels.registry import named_layers, register_rule
from keras_nisp.channels.rule import PlainKernel, Rule, absolute, positions, spread
from keras_nisp.rules.activation import activated
from keras_nisp.rules.products import parse


@register_rule(layers.Dense)
class Dense(Rule):
    """Reads the last axis and creates a new one, at every position of the others."""

    does = "creates"

    def trace(self, call, x):
        layer = call.layer
        inputs, outputs = call.along(x, -1), call.create(layer.units)
        applied = positions(call.output_shape, -1)
        call.bind(layer.kernel, read={0: inputs}, create={1: outputs}, positions=applied)
        call.bind(layer.bias, own={0: outputs})
        return activated(call, spread(outputs, -1, x.rank))

    def resize(self, call, config, width):
        return {**config, "units": width(call.outputs[0].line(-1))}

    def plain_kernels(self, layer):
        return [PlainKernel(layer.kernel, layer.bias)]

    def absolute(self, call, x):
        return tf.tensordot(x, absolute(call.layer.kernel), 1)


@register_rule(layers.EinsumDense)
class EinsumDense(Rule):
    """Creates channels on the last axis that comes from the kernel, and keeps the others whole."""

    does = "creates"

    def trace(self, call, x):
        layer = call.layer
        (tensor, kernel), output = parse(layer.equation, [x.rank + 1, len(layer.kernel.shape)])
        made = [letter for letter in output if letter in kernel and letter not in tensor]
        shared = [c for c in kernel if c in tensor and c in output]
        if not made or tensor[0] != output[0] or tensor[0] in kernel:
            return call.fix_all("whose equation creates no channels")
        if any(x.names.shape[tensor.index(c) - 1] > 1 for c in (*shared, *_passed(tensor, kernel))):
            return call.fix_all("whose equation keeps channels apart")
        names = call.create(layer.kernel.shape[kernel.index(made[-1])])
        read = {
            kernel.index(c): call.along(x, tensor.index(c) - 1)
            for c in kernel
            if c in tensor and c not in output and x.names.shape[tensor.index(c) - 1] > 1
        }
        create = {kernel.index(made[-1]): names}
        sizes = dict(zip(output[1:], call.output_shape, strict=True))
        applied = math.prod(n for c, n in sizes.items() if c not in kernel)
        call.bind(layer.kernel, read=read, create=create, positions=applied)
        call.reads = True
        biased = [output.index(c) for c in layer.bias_axes or ""]
        own = output.index(made[-1])
        call.bind(layer.bias, own={own - min(biased): names} if own in biased else {})
        return activated(call, spread(names, output.index(made[-1]) - 1, len(output) - 1))

    def resize(self, call, config, width):
        output = call.outputs[0]
        shape = list(call.layer.partial_output_shape)
        for axis, size in enumerate(output.names.shape):
            entry = len(shape) - output.rank + axis  # the shape may begin at a later axis
            if size > 1 and entry >= 0 and shape[entry] is not None:
                shape[entry] = width(output.line(axis))
        return {**config, "output_shape": tuple(shape)}

    def plain_kernels(self, layer):
        """A matrix only: one of more axes reads, or creates, several."""
        bias = layer.bias
        if len(layer.kernel.shape) != 2 or (bias is not None and len(bias.shape) != 1):
            return []
        tensor, kernel = layer.equation.split("->")[0].replace(" ", "").split(",")
        return [PlainKernel(layer.kernel, bias, 0 if kernel[0] in tensor else 1)]

    def absolute(self, call, x):
        return tf.einsum(call.layer.equation, x, absolute(call.layer.kernel))


def _passed(tensor: str, kernel: str) -> list[str]:
    """Letters of the input's axes that the kernel does not see, without the batch axis."""
    return [letter for letter in tensor[1:] if letter not in kernel]


@register_rule(layers.Embedding)
class Embedding(Rule):
    """A row for each index; importance spreads evenly over the vocabulary."""

    does = "creates"
    rescales = True

    def trace(self, call, x):
        names = call.create(call.layer.output_dim)
        call.fix(x.names, f"is an index for '{call.path}'")
        call.bind(call.layer.embeddings, create={1: names})
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
