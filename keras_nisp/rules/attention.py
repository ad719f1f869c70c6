"""Attention with weights of its own: heads, and key and value channels, can be removed."""

import math

import numpy as np
import tensorflow as tf
from keras import layers

from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import register_rule
from keras_nisp.channels.rule import PlainKernel, Rule, absolute, positions, spread
from keras_nisp.keras_graph import calling
from keras_nisp.keras_graph.keras_layers import attended_axes, projection
from keras_nisp.rules.combining import meet
from keras_nisp.rules.products import attend


class _Projected(Rule):
    """Kernels `(inputs, heads, channels)` make queries, keys and values; one reads the result.

    Removing a key channel means that the queries do not read it, so the query's kernel reads
    what the key's kernel creates. Scores by products of queries and keys are divided by the
    root of the number of key channels: queries are multiplied to make up for a change of it.
    """

    does = "creates"

    def trace(
        self,
        call,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        use_causal_mask=False,
    ):
        layer = call.layer
        if len(projection(layer, "output").kernel.shape) != 3:
            return call.fix_all("whose output has several axes")
        query_line, value_line = call.along(query, -1), call.along(value, -1)
        key_line = value_line if key is None else call.along(key, -1)
        heads, pairs, keys, values = self.hide(call)
        steps, others = positions(query.shape, -1), positions(value.shape, -1)
        asking, looked_up = (query, query_line, steps), (value, value_line, others)
        keyed = (value if key is None else key, key_line, others)
        self._project(call, "query", *asking, read={2: keys}, create={1: heads})
        self._project(call, "key", *keyed, create={1: pairs, 2: keys})
        self._project(call, "value", *looked_up, create={1: pairs, 2: values})
        if projection(layer, "gate") is not None:
            self._project(call, "gate", *asking, create={1: heads}, own={2: values})
        attended = attended_axes(layer)
        apart = [size for i, size in enumerate(query.shape[:-1]) if i not in attended]
        rank = len(apart) + 1 + 2 * len(attended)  # of scores
        if _rank(attention_mask) == rank:  # a smaller one gets an axis for all heads
            meet(call, attention_mask, heads, len(apart), rank)
        attending = [x.shape[axis] for x in (query, value) for axis in attended]
        for channels in (keys, values):  # products of queries and keys, and weighted values
            call.multiply((*apart, *attending, len(heads), len(channels)), [heads, channels])
            call.cache((len(pairs), len(channels)), [pairs, channels])
        output = projection(layer, "output")
        names = call.create(output.kernel.shape[-1])
        read, create = {0: heads, 1: values}, {2: names}
        call.bind(output.kernel, read=read, create=create, positions=steps)
        call.bind(output.bias, own={0: names})
        self.couple(call, query_line, value_line, names)
        outputs = [spread(names, -1, len(call.output_shapes[0]))]
        if return_attention_scores:
            outputs.append(spread(heads, 0, len(call.output_shapes[1])))
        return outputs

    def _project(self, call, which, source, inputs, steps, read=None, own=None, create=None):
        """Binds the kernel and bias that make queries, keys, values or gates."""
        dense, read, own = projection(call.layer, which), read or {}, own or {}
        reads = {0: inputs, **read}
        call.bind(dense.kernel, own, reads, create, positions=steps, source=source)
        own = {axis - 1: names for axis, names in {**own, **create}.items()}
        call.bind(dense.bias, own=own, read={axis - 1: names for axis, names in read.items()})

    def plain_kernels(self, layer):
        makers = [projection(layer, word) for word in ("query", "key", "value", "gate")]
        plains = [PlainKernel(d.kernel, d.bias, gives=False) for d in makers if d is not None]
        output = projection(layer, "output")

        def heads(*args, **kwargs):
            read = calling.entering(output, layer, *args, **kwargs)
            return tf.reshape(read, (*read.shape[:-2], -1))

        if len(output.kernel.shape) == 3:
            plains.append(PlainKernel(output.kernel, output.bias, (0, 1), inside=heads))
        return plains

    def hide(self, call):
        """Names of query heads, of key and value heads, of key channels and of value channels."""
        raise NotImplementedError

    def couple(self, call, query, value, output) -> None:
        """What holds between the channels of query, value and output."""

    def convert(self, call, variable, value, width):
        dense, keys = projection(call.layer, "query"), call.hidden["key"]
        if not any(variable is weight for weight in dense.weights):
            return value
        if variable is getattr(dense, "lora_kernel_b", None):
            return value  # a factor of a product whose other factor is multiplied
        return value * math.sqrt(width(keys) / len(keys))

    def absolute(self, call, query, value, key=None, return_attention_scores=False, **settings):
        key = value if key is None else key
        tensors = {"query": query, "key": key, "value": value}
        query, key, value = (self._mean(call, word, x) for word, x in tensors.items())
        key = call.tap("key", key, -1)
        y = attend(*(x[..., None, :] for x in (query, key, value)))[..., 0, :]
        y = call.tap("value", call.tap("heads", y, -2), -1)
        y = tf.einsum("bhv,hvo->bo", y, absolute(projection(call.layer, "output").kernel))
        shape = call.outputs[0].shape
        y = tf.reshape(y, [-1, *(1 for _ in shape[:-1]), y.shape[-1]])
        outputs = [tf.broadcast_to(y, (y.shape[0], *shape))]
        return outputs + [tf.ones((y.shape[0], *out.shape)) for out in call.outputs[1:]]

    def _mean(self, call, word, x):
        """The mean over positions of a projection, one for each query head."""
        x = tf.reduce_mean(x, list(range(1, len(x.shape) - 1)))
        return tf.einsum("bi,ihc->bhc", x, absolute(projection(call.layer, word).kernel))


def _rank(x) -> int:
    """How many axes a tensor or an array has, besides the batch axis."""
    return x.rank if isinstance(x, Traced) else np.ndim(x) - 1


@register_rule(layers.MultiHeadAttention)
class MultiHeadAttention(_Projected):
    """Heads, key channels and value channels, the same in each head; outputs are created.

    In the absolute network attention is even; queries and keys get scores through their product.
    """

    def hide(self, call):
        layer = call.layer
        heads = call.hide(layer.num_heads, "heads")
        return heads, heads, call.hide(layer.key_dim, "key"), call.hide(layer.value_dim, "value")

    def resize(self, call, config, width):
        config["num_heads"] = width(call.hidden["heads"])
        config["key_dim"] = width(call.hidden["key"])
        config["value_dim"] = width(call.hidden["value"])
        return {**config, "output_shape": (width(call.outputs[0].line(-1)),)}


@register_rule(layers.GroupQueryAttention)
class GroupQueryAttention(_Projected):
    """Key-value heads with all their query heads, and channels of heads. Query, value and output
    are equally wide."""

    def hide(self, call):
        layer = call.layer
        pairs = call.hide(layer.num_key_value_heads, "heads")
        channels = call.hidden["value"] = call.hide(layer.head_dim, "key")
        return np.repeat(pairs, layer.num_repeats), pairs, channels, channels

    def couple(self, call, query, value, output):
        call.join(query, value)
        call.join(query, output)

    def resize(self, call, config, width):
        heads = width(call.hidden["heads"])
        config["num_query_heads"] = heads * call.layer.num_repeats
        return {**config, "num_key_value_heads": heads, "head_dim": width(call.hidden["key"])}

    def _mean(self, call, word, x):
        x = super()._mean(call, word, x)
        return x if word == "query" else tf.repeat(x, call.layer.num_repeats, axis=1)
