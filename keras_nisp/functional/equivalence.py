"""Does a graph do what a layer does? Both are run, in inference and in training."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np

from keras_nisp.data.random_samples import random_samples
from keras_nisp.errors import reason_of, several
from keras_nisp.functional.batch_first import RESHAPE
from keras_nisp.functional.call_graphs import same
from keras_nisp.functional.moved_batch import NotAGraphError, shape_batch_first, with_batch_at
from keras_nisp.keras_graph import calling, keras_models, walking
from keras_nisp.keras_graph.masks import mask_of, set_mask, with_own_mask
from keras_nisp.keras_graph.rounding import difference

TOLERANCE = 1e-4
COUNT = 2  # samples, where the batch size is open
SIZES = (32, 16, 8, 4, 2, 1)  # of open axes: the first that the layer itself takes


def tensors_of(args, kwargs) -> list[keras.KerasTensor]:
    """The symbolic tensors of a call."""
    flat = keras.tree.flatten((args, kwargs))
    return [x for x in flat if isinstance(x, keras.KerasTensor)]


def masks_of(tensors: list) -> list:
    """The Keras masks that tensors carry."""
    return [mask for mask in map(mask_of, tensors) if mask is not None]


def filled(args, kwargs, values) -> tuple[tuple, dict]:
    """A call's arguments with other values for its tensors."""
    pending = iter(values)
    return keras.tree.map_structure(
        lambda x: next(pending) if isinstance(x, keras.KerasTensor) else x, (args, kwargs)
    )


def check_same(
    model: keras.Model,
    layer: keras.Layer,
    args,
    kwargs,
    sizes=(),
    structure: Any = None,
    batches: Sequence[int] = (),
    takes: Sequence[int] = (),
    lost: Iterable[keras.Layer] = (),
) -> None:
    """Raises unless a model gives what a layer gives, on random samples.

    Outputs, Keras masks, losses and changes of weights, in inference and in training. Neither
    is changed.

    Args:
        model: takes the tensors of the layer's call, and then their masks.
        layer: the original.
        args, kwargs: of its call, symbolic.
        sizes: to be tried first for open axes.
        structure: of what the layer gives, if that is not what the model gives: with constants
            for what depends on no input.
        batches: where the layer has the batch axis of each output; the model has it first.
        takes: the same for the tensors of the call.
        lost: layers whose additions to the loss do not count: the graph leaves them out.
    """
    kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    tensors = tensors_of(args, kwargs)
    takes = takes or [0] * len(tensors)

    def original(training, values):
        given = filled(args, kwargs, map(with_batch_at, values, takes))
        result = calling.call_in_mode(layer, training, *given[0], **given[1])
        if structure is None:
            return result
        pairs = list(zip(keras.tree.flatten(result), keras.tree.flatten(structure), strict=True))
        for value, known in pairs:
            if not isinstance(known, keras.KerasTensor) and not same(value, known):
                raise NotAGraphError("it gives other constants at another batch size")
        return [value for value, known in pairs if isinstance(known, keras.KerasTensor)]

    def written(training, values):
        given = keras_models.structured_inputs(model, values)
        result = calling.call_in_mode(model, training, given)
        if not any(batches):
            return result
        return list(map(with_batch_at, keras.tree.flatten(result), batches))

    shapes = _shapes(model, tensors, takes)
    values, expected = _first_that_fits(model, layer, tensors, shapes, original, sizes)
    _compare(expected, _outcome(layer, written, False, values), "")
    with contextlib.ExitStack() as stack:
        for other in lost:
            stack.enter_context(calling.without_losses(other))
        expected, received = (_outcome(layer, call, True, values) for call in (original, written))
        try:
            _compare(expected, received, " in training")
        except NotAGraphError:
            # Where chance plays a part, draws may come in another order.
            if expected.same_as(_outcome(layer, original, True, values, seed=1)):
                raise


def _first_that_fits(model, layer, tensors, shapes, original: Callable, sizes):
    """Samples that the original takes, and what it gives in inference."""
    is_open = any(None in shape[1:] for shape in shapes)
    reasons: list[Exception] = []
    counts = dict.fromkeys((COUNT, COUNT * _samples_taken_together(model)))
    for count, size in itertools.product(counts, (*sizes, *SIZES) if is_open else SIZES[:1]):
        values = _samples(model, tensors, shapes, size, count)
        try:
            return values, _outcome(layer, original, False, values)
        except Exception as error:  # whatever code of users raises
            reasons.append(error)
    if not is_open:
        raise reasons[0]
    raise NotAGraphError(
        f"sizes of its inputs are open, {[t.shape for t in tensors]}: say which ones it takes by "
        f"`input_shape`. It takes none of {[*dict.fromkeys((*sizes, *SIZES))]} "
        f"({reason_of(reasons[0])})"
    ) from reasons[0]


def _shapes(model: keras.Model, tensors: list, takes: Sequence[int]) -> list[tuple]:
    """Shapes of what a model takes: sizes that it leaves open are those of a call's tensors, and
    the other way round."""
    called_with = [
        shape_batch_first(x.shape, place) for x, place in zip(tensors, takes, strict=True)
    ]
    called_with += [mask.shape for mask in masks_of(tensors)]
    return [
        tuple(n if n is not None else m for n, m in zip(one, other.shape, strict=True))
        for one, other in zip(called_with, keras_models.body(model).inputs, strict=True)
    ]


def _samples_taken_together(model: keras.Model) -> int:
    """What a batch size must be a multiple of: the rows of a batch may be windows of an image, of
    which a layer takes those of one image together."""
    together = 1

    def rows_of(part: keras.Model, inputs: list) -> list[Fraction]:
        """How many rows each output has for a row of the model, given those of the inputs."""
        structure = keras_models.structured_inputs(part, inputs)
        return keras.tree.flatten(walking.replay(part, structure, visit))

    def visit(node, args, kwargs):
        nonlocal together
        if keras_models.is_graph(node.operation):
            return rows_of(node.operation, keras.tree.flatten(args[0]))
        flat = keras.tree.flatten((args, kwargs))
        rows = max(x for x in flat if isinstance(x, Fraction))
        sizes = [x.shape[1:] for x in (*node.input_tensors, *node.outputs)]
        if isinstance(node.operation, RESHAPE) and not any(None in shape for shape in sizes):
            before, after = map(math.prod, sizes)
            rows *= Fraction(before, after)
            together = math.lcm(together, rows.denominator)
        return [rows] * len(node.outputs)

    rows_of(model, [Fraction(1) for _ in keras_models.body(model).inputs])
    return together


def _samples(model: keras.Model, tensors: list, shapes: list[tuple], size: int, count: int) -> list:
    """Random values for the tensors of a call, with masks where these have one."""
    count = next((shape[0] for shape in shapes if shape and shape[0] is not None), count)
    full = [tuple(size if n is None else n for n in shape[1:]) for shape in shapes]
    values, _ = next(random_samples(model, full, count).batches())
    masked = [i for i, tensor in enumerate(tensors) if mask_of(tensor) is not None]
    for position, index in enumerate(masked, start=len(tensors)):
        mask = np.array(values[position])
        mask[:, 0] = True  # Nothing need be right for a sample that is masked as a whole.
        values[position] = keras.ops.convert_to_tensor(mask)
        set_mask(values[index], values[position])
    return values


@dataclasses.dataclass
class _Outcome:
    """All that a call gives and does."""

    outputs: list
    masks: list
    losses: list
    updates: list

    def same_as(self, other: "_Outcome") -> bool:
        try:
            _compare(self, other, "")
        except NotAGraphError:
            return False
        return True


def _outcome(layer, call: Callable, training: bool, values: list, seed: int = 0) -> _Outcome:
    """Runs a call without changing any variable; with other random numbers if a seed is given."""
    weights = layer.weights
    known = {id(weight) for weight in weights}
    seeds = [v for v in layer.variables if id(v) not in known] if seed else []
    state = [(v, keras.ops.convert_to_tensor(v) + keras.ops.cast(seed, v.dtype)) for v in seeds]
    with keras.StatelessScope(state, collect_losses=True) as scope:
        result = call(training, list(map(with_own_mask, values)))
    outputs = [x for x in keras.tree.flatten(result) if keras.ops.is_tensor(x)]
    masks = [mask_of(x) for x in outputs]
    return _Outcome(
        [np.asarray(x) for x in outputs],
        [None if mask is None else np.asarray(mask) for mask in masks],
        [sum(float(loss) for loss in scope.losses)],
        [np.asarray(scope.get_current_value(w)) for w in weights if _changed(scope, w)],
    )


def _changed(scope, weight) -> bool:
    return scope.get_current_value(weight) is not None


def _compare(expected: _Outcome, received: _Outcome, when: str) -> None:
    for what in ("outputs", "losses", "updates"):
        pairs = getattr(expected, what), getattr(received, what)
        shapes = [[np.shape(value) for value in values] for values in pairs]
        if what == "outputs" and shapes[0] != shapes[1]:
            raise NotAGraphError(
                "it does what its graph does not show: outputs have the shapes "
                f"{several(map(str, shapes[0]))}, and {several(map(str, shapes[1]))} there{when}"
            )
        differences = [np.inf if len(pairs[0]) != len(pairs[1]) else 0.0]
        differences += [difference(*pair).relative for pair in zip(*pairs, strict=False)]
        if max(differences) > TOLERANCE:
            named = what if what != "updates" else "changes of its weights"
            raise NotAGraphError(
                f"it does what its graph does not show: {named} differ by "
                f"{max(differences):.1e} of their scale{when}"
            )
    if any(map(_masks_differ, expected.masks, received.masks)):
        raise NotAGraphError(f"it passes on another Keras mask than its graph{when}")


def _masks_differ(want, got) -> bool:
    return (want is None) != (got is None) or (want is not None and not np.array_equal(want, got))
