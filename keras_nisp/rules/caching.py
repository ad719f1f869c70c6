"""What attention made of tensors keeps for each position while a decoder generates.

Where it is one layer or operation, its rule says which tensors are keys and values. Where it is
made of products, as in blocks of models that were converted, they are known by a softmax between
two products: scores are products of queries and keys, and values are weighted by their softmax.
"""

import math

from keras_nisp.channels.call import Call
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.tracer import Tracer
from keras_nisp.keras_graph.output_kinds import OutputKind, probabilities

Operand = tuple[Traced, int]  # keys or values, and the axis of their positions, batch not counted


def cache_tensors(call: Call, *operands: Operand) -> None:
    """Says that a call keeps tensors, each of them once however often it is used.

    Args:
        call: the call that uses them.
        operands: keys and values.
    """
    for x, axis in operands:
        single = _before_repetition(call.tracer, x)
        if id(single) in call.tracer.cached:
            continue
        call.tracer.cached[id(single)] = single
        positions = axis if single is x else None  # else no channels are known to lie there
        along = [axis for axis in single.varying if axis != positions]
        count = math.prod(single.shape) // max(x.shape[axis], 1)
        call.cache([count], [single.line(i) for i in along], single.dtype)


def _before_repetition(tracer: Tracer, x: Traced) -> Traced:
    """The smallest tensor of which movements alone make this one: a head of keys and values may be
    repeated, for each head of queries that reads it."""
    smallest = x
    while (source := tracer.made.get(id(x))) is not None and source.rule.does == "moves":
        if len(source.inputs) != 1:
            break  # several tensors were put together
        if math.prod(source.inputs[0].shape) > math.prod(x.shape):
            break  # one was taken apart
        x = source.inputs[0]
        if math.prod(x.shape) < math.prod(smallest.shape):
            smallest = x
    return smallest


def cache_attention(call: Call) -> None:
    """Says what is kept where a product of two tensors weights values by a softmax of scores.

    Args:
        call: a product, with its `letters`.
    """
    if call.letters is None or len(call.letters[0]) != 2:
        return
    terms, output = call.letters
    for i, j in ((0, 1), (1, 0)):
        weights, letter = call.inputs[i], terms[i][-1]
        if letter in terms[j] and letter not in output and (keys := _keys(call.tracer, weights)):
            cache_tensors(call, *keys, (call.inputs[j], terms[j].index(letter) - 1))


def _keys(tracer: Tracer, weights: Traced) -> list[Operand]:
    """The keys of the scores of which a tensor is the softmax along its last axis.

    The way back leads through what keeps positions where they are: factors, masks, what caps the
    scores, and what is appended to them for the softmax and taken away behind it.
    """
    keys, ways, gone = [], [(weights, False)], set()
    while ways:
        x, softmaxed = ways.pop()
        call = tracer.made.get(id(x))
        if call is None or call.weights or (call, softmaxed) in gone:
            continue
        gone.add((call, softmaxed))
        if call.letters is None:
            softmaxed |= _is_softmax(call)
            ways += [(y, softmaxed) for y in call.inputs if y.shape[:-1] == x.shape[:-1]]
        elif softmaxed and len(call.letters[0]) == 2:
            terms, output = call.letters
            keys += [
                (y, term.index(output[-1]) - 1)
                for y, term in zip(call.inputs, terms, strict=True)
                if output[-1] in term
            ]
    return keys


def _is_softmax(call: Call) -> bool:
    """Whether a call takes a softmax along the last axis."""
    return probabilities(call.layer, call.outputs[0].rank + 1) == OutputKind("softmax")
