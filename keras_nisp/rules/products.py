"""Products of tensors that add up over channels: `Dot`, matmul, einsum, attention without weights.

Both factors lose the same channels. In the absolute network the other factor stands for the
weights, at a mean of 1: a product passes the score to both.
"""

import string

import numpy as np
import tensorflow as tf
from keras import layers
from opt_einsum.parser import parse_einsum_input

from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import register_operations, register_rule
from keras_nisp.channels.rule import Rule, spread, zeroed
from keras_nisp.rules.caching import cache_attention, cache_tensors
from keras_nisp.rules.combining import meet, meets_none


def parse(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand's axes and of the result's, ellipses expanded.

    Args:
        equation: an einsum equation.
        ranks: of the operands, batch axis counted.
    """
    terms, output, _ = parse_einsum_input((equation, *(np.ones((1,) * rank) for rank in ranks)))
    return terms.split(","), output


def as_weights(x):
    """A factor as weights of the other one: no gradient, and a mean of 1."""
    return tf.stop_gradient(tf.math.divide_no_nan(x, tf.reduce_mean(x)))


def trace_product(call, operands, equation: str):
    """Names through an einsum of tensors and constants."""
    ranks = [x.rank + 1 if isinstance(x, Traced) else np.ndim(x) for x in operands]
    terms, output = parse(equation, ranks)
    tensors = [(x, t) for x, t in zip(operands, terms, strict=True) if isinstance(x, Traced)]
    call.letters = [term for _, term in tensors], output
    cache_attention(call)
    sizes: dict[str, set] = {}
    for x, term in zip(operands, terms, strict=True):
        shape = (1, *x.shape) if isinstance(x, Traced) else np.shape(x)
        for letter, size in zip(term, shape, strict=True):
            sizes.setdefault(letter, set()).add(size)
    multiplied = [max(found) for found in sizes.values()] if len(operands) > 1 else [0]
    if reason := _not_followed(equation, tensors, output, sizes):
        names = call.fix_all(reason)
        call.multiply(multiplied)
        return names
    lines = _join_letters(call, tensors)
    varying = set(lines)
    for letter, names in lines.items():
        if letter in output and sum(letter in term for _, term in tensors) > 1:
            call.tracer.grids.heads.append(names)
    for position, (x, term) in enumerate(zip(operands, terms, strict=True)):
        held = {term.index(c): lines[c] for c in varying if c in term}
        if held and not isinstance(x, Traced):
            call.bind_constant(position, x, held)
    call.multiply(multiplied, lines.values())
    summed = [c for c in varying if c not in output]
    call.sums_channels = call.reads = bool(summed)
    through = {output.index(c) - 1: lines[c] for c in output if c in varying}
    return call.grid(through) if through else call.single(f"comes from a product, '{call.path}'")


def _not_followed(equation: str, tensors: list, output: str, sizes: dict[str, set]) -> str:
    """Why channels cannot be followed through an einsum; empty where they can."""
    if "->" not in equation:  # Keras takes the result to have another shape than it has
        return "whose equation does not say what its result is"
    if any(term[:1] != output[:1] or len(set(term)) < len(term) for _, term in tensors):
        return "which sums over samples or takes a diagonal"
    if any(len(found) > 1 for letter, found in sizes.items() if letter != output[0]):
        return "which repeats entries in a product"
    return ""


def _join_letters(call, tensors) -> dict[str, np.ndarray]:
    """The names along each axis of an einsum that holds channels, by its letter.

    Args:
        call: the `Call`.
        tensors: pairs of a tensor and the letters of its axes, batch axis counted.
    """
    lines: dict[str, np.ndarray] = {}
    for x, term in tensors:
        for axis, (letter, size) in enumerate(zip(term[1:], x.names.shape, strict=True)):
            if size > 1:
                call.join(lines.setdefault(letter, x.line(axis)), x.line(axis))
    for x, term in tensors:
        for axis, letter in enumerate(term[1:]):
            if letter in lines and x.names.shape[axis] == 1 < x.shape[axis]:
                call.fix(lines[letter], meets_none(call, [x]))
    return lines


class _Product(Rule):
    does = "joins"
    sums_channels = True

    def equation(self, call, ranks: list[int]) -> str:
        """What the operation does as an einsum equation.

        Args:
            ranks: of the operands, batch axis counted.
        """
        raise NotImplementedError

    def trace(self, call, *operands):
        ranks = [x.rank + 1 if isinstance(x, Traced) else np.ndim(x) for x in operands]
        return trace_product(call, operands, self.equation(call, ranks))

    def absolute(self, call, *operands):
        equation = self.equation(call, [np.ndim(x) for x in operands])
        if sum(map(tf.is_tensor, operands)) == 1:
            factors = [x if tf.is_tensor(x) else np.abs(x).astype("float32") for x in operands]
            return tf.einsum(equation, *factors)
        return sum(
            tf.einsum(equation, *(x if i == j else as_weights(x) for j, x in enumerate(operands)))
            for i in range(len(operands))
        )


@register_operations("einsum")
class Einsum(_Product):
    def equation(self, call, ranks):
        return call.layer.subscripts


def matmul_equation(ranks: list[int]) -> str:
    """A product of matrices, or of vectors with them, as an einsum equation.

    Args:
        ranks: of both operands, batch axis counted.
    """
    first, second = ranks
    lead = string.ascii_lowercase[: max(max(ranks) - 2, 0)]
    one = "k" if first == 1 else lead[len(lead) - first + 2 :] + "yk"
    other = "k" if second == 1 else lead[len(lead) - second + 2 :] + "kz"
    return f"{one},{other}->{lead}{'y' * (first > 1)}{'z' * (second > 1)}"


@register_operations("matmul")
class Matmul(_Product):
    """Batches of matrices, or a matrix that is a constant."""

    def equation(self, call, ranks):
        return matmul_equation(ranks)


@register_rule(layers.Dot)
class Dot(_Product):
    """Along one axis of each tensor. A norm over the kept channels equals that with zeros."""

    def trace(self, call, tensors):
        names = super().trace(call, *tensors)
        call.mixes_channels = call.sums_channels and call.layer.normalize
        return names

    def equation(self, call, ranks):
        axes = call.layer.axes
        axes = (axes, axes) if isinstance(axes, int) else axes
        letters = iter(string.ascii_lowercase[1:])
        first = ["a", *(next(letters) for _ in range(ranks[0] - 1))]
        second = ["a", *(next(letters) for _ in range(ranks[1] - 1))]
        second[axes[1] % ranks[1]] = first[axes[0] % ranks[0]]
        summed = first[axes[0] % ranks[0]]
        output = "".join(c for c in (*first, *second[1:]) if c != summed)
        return f"{''.join(first)},{''.join(second)}->{output}"

    def absolute(self, call, tensors):
        y = super().absolute(call, *tensors)
        # Two vectors for each sample give one value, on an axis of its own.
        return tf.reshape(y, [-1, *call.output_shape])


def attend(query, key, value):
    """The bound of an attention in the absolute network.

    Values are averaged over their positions, as by even attention; the products of queries
    and keys pass their scores to both, and the softmax counts as the identity.

    Args:
        query, key: tensors `(..., positions, channels)`.
        value: a tensor of the same rank.

    Returns:
        A tensor `(..., 1, channels of value)`.
    """
    query, key, value = (tf.reduce_mean(x, -2, keepdims=True) for x in (query, key, value))
    product = tf.reduce_sum(query * as_weights(key) + as_weights(query) * key, -1, keepdims=True)
    return value + product * as_weights(value)


@register_operations("dot_product_attention")
class DotProductAttention(Rule):
    """Heads are joined with those that they meet. Queries and keys lose the same channels if the
    scale is given."""

    does = "joins"
    sums_channels = True

    def trace(self, call, query, key, value, bias=None, mask=None, scale=None, **settings):
        tensors = [query, key, value]
        # Products of queries and keys, and of what comes of them and values.
        positions = key.shape[0] if isinstance(key, Traced) else np.shape(key)[1]
        multiplied = (2, *call.output_shape, positions)
        if not all(isinstance(x, Traced) and x.rank == 3 for x in tensors):
            names = call.fix_all("whose operands are no feature maps of heads")
            call.multiply(multiplied)
            return names
        cache_tensors(call, (key, 0), (value, 0))
        if any(x.varies(0) for x in tensors):
            names = call.fix_all("whose positions are channels")
            call.multiply(multiplied)
            return names
        lines = {}
        for axis in (1, 2):  # Keras takes all three to be equally wide
            held = [_heads(x, axis, query.shape) for x in tensors if x.varies(axis)]
            for line in held[1:]:
                call.join(held[0], line)
            if held:
                lines[axis] = held[0]
            if 0 < len(held) < 3:
                call.fix(held[0], f"meets in '{call.path}' what holds no channels")
        if 1 in lines:
            call.tracer.grids.heads.append(lines[1])
            for x in (bias, mask):
                meet(call, x, lines[1], axis=0, rank=3)
        if scale is None and getattr(call.layer, "scale", None) is None and 2 in lines:
            call.fix(lines[2], f"'{call.path}' scales by the number of these channels")
        call.multiply(multiplied, lines.values())
        call.sums_channels, call.reads = 2 in lines, bool(lines)
        return call.grid(lines) if lines else call.single(f"comes from a product, '{call.path}'")

    def absolute(self, call, query, key, value, bias=None, mask=None, scale=None, **settings):
        heads = (tf.transpose(x, [0, 2, 1, 3]) for x in (query, key, value))
        y = tf.transpose(attend(*heads), [0, 2, 1, 3])
        return tf.broadcast_to(y, (query.shape[0], *call.output_shape))

    def masked(self, call, keep, query, key, value, *others, **settings):
        tensors = [zeroed(x, k) for x, k in zip((query, key, value), keep, strict=False)]
        return call.infer(*tensors, *others, **settings)


def _heads(x, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """The names along an axis, for each query head where several read one of keys and values."""
    line = x.line(axis)
    return np.repeat(line, shape[axis] // len(line))


@register_rule(layers.Attention)
class Attention(Rule):
    """Queries and keys lose the same channels; the output has those of the values."""

    does = "joins"
    sums_channels = True

    def trace(self, call, tensors, mask=None, return_attention_scores=False, use_causal_mask=False):
        query, value, key = (*tensors, tensors[1])[:3]
        names = call.along(query, -1)
        call.join(names, call.along(key, -1))
        self.bind_scale(call, names)
        for x, line in ((key, names), (value, call.along(value, -1))):
            call.multiply((query.shape[-2], *x.shape[-2:]), [line])
        cache_tensors(call, (key, key.rank - 2), (value, value.rank - 2))
        call.sums_channels = call.reads = True
        outputs = [spread(call.along(value, -1), -1, value.rank)]
        if return_attention_scores:
            outputs.append(call.single(f"is a weight of '{call.path}'"))
        return outputs

    def bind_scale(self, call, names):
        call.bind(call.layer.scale)
        call.bind(getattr(call.layer, "concat_score_weight", None))

    def absolute(self, call, tensors, mask=None, **settings):
        query, value, key = (*tensors, tensors[1])[:3]
        y = tf.broadcast_to(attend(query, key, value), (query.shape[0], *call.output_shape))
        others = [tf.zeros((query.shape[0], *out.shape)) for out in call.outputs[1:]]
        return [y, *others]

    def masked(self, call, keep, tensors, **settings):
        tensors = [zeroed(x, k) for x, k in zip(tensors, keep, strict=False)]
        return call.infer(tensors, **settings)


@register_rule(layers.AdditiveAttention)
class AdditiveAttention(Attention):
    """A sum over channels with a weight for each; tanh of removed ones is zero."""

    def bind_scale(self, call, names):
        call.bind(call.layer.scale, read={0: names})
