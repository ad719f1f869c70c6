"""The graphs that a layer's call makes in training and in inference, compared and made one."""

import collections
import dataclasses
import math
import types
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.registry import rule_of
from keras_nisp.functional.batch_first import (
    MATMUL,
    RESHAPE,
    TRANSPOSE,
    BatchFirst,
    keeps,
)
from keras_nisp.functional.held_weights import HeldWeights
from keras_nisp.functional.moved_batch import (
    MovedBatch,
    NotAGraphError,
    moved,
    shape_batch_first,
)
from keras_nisp.keras_graph import calling, copying, keras_layers, symbolic, walking
from keras_nisp.keras_graph.weight_layers import WeightLayers

FOLLOWS, ON, OFF = "as the model is", "in training", "in inference"


@dataclasses.dataclass(frozen=True)
class _Value:
    """Stands for a tensor: equal in both graphs where it is computed equally."""

    call: int
    output: int


@dataclasses.dataclass
class _Call:
    """A call of the graph of inference."""

    operation: keras.Operation
    arguments: tuple
    training: bool
    outputs: list[_Value]


def modes(inference: keras.Function, training: keras.Function) -> dict[int, str]:
    """In which mode each call of a graph is, if both graphs are the same but for that.

    Args:
        inference, training: what a layer's call makes of symbolic inputs in both modes.

    Returns:
        `FOLLOWS`, `ON` or `OFF`, by `id` of each node of the graph of training.

    Raises:
        NotAGraphError: they compute something else.
    """
    inputs = [_Value(-1, index) for index, _ in enumerate(inference.inputs)]
    both = _BothModes()
    expected = walking.replay(inference, inputs, both.note)
    if not same(expected, walking.replay(training, inputs, both.find)):
        raise NotAGraphError("it does something else in training: it gives another result there")
    return both.found


class _BothModes:
    """The calls of a graph of inference, and those of a graph of training that are the same.

    Attributes:
        found: the mode of each node of the graph of training, by `id`.
    """

    def __init__(self) -> None:
        self.calls: dict[type, list[_Call]] = collections.defaultdict(list)
        self.count = 0
        self.found: dict[int, str] = {}

    def _known(self, operation, arguments, on: bool) -> _Call | None:
        for call in self.calls[type(operation)]:
            if (
                call.training == on
                and _same_operation(call.operation, operation)
                and same(call.arguments, arguments)
            ):
                return call
        return None

    def note(self, node, args, kwargs) -> Any:
        """The values of a call in inference."""
        operation, (on, args, kwargs) = node.operation, _apart(node, args, kwargs, False)
        if _is_silent(operation) and not on:
            return args[0] if args else kwargs["inputs"]
        call = self._known(operation, (args, kwargs), on)
        if call is None:
            outputs = [_Value(self.count, index) for index, _ in enumerate(node.outputs)]
            call = _Call(operation, (args, kwargs), on, outputs)
            self.calls[type(operation)].append(call)
            self.count += 1
        return call.outputs

    def find(self, node, args, kwargs) -> Any:
        """The values of a call in training, by the same call in inference, which says the mode."""
        operation, (on, args, kwargs) = node.operation, _apart(node, args, kwargs, True)
        always = self._known(operation, (args, kwargs), True) if on else None
        if _is_silent(operation) and always is None:
            self.found[id(node)] = FOLLOWS if on else OFF
            return args[0] if args else kwargs["inputs"]
        call = self._known(operation, (args, kwargs), False) or always
        if call is None:
            raise NotAGraphError(
                "it does something else in training: there it calls "
                f"{keras_layers.title(operation)} as it does not in inference"
            )
        self.found[id(node)] = ON if call is always else (FOLLOWS if on else OFF)
        return call.outputs


def _is_silent(operation: keras.Operation) -> bool:
    """Whether an operation does something in training alone: elsewhere a call may leave it out."""
    return keras_layers.takes_training(operation) and rule_of(operation).idle


def _apart(node, args, kwargs, default: bool) -> tuple[bool, tuple, dict]:
    """Whether a call is in training, and its other arguments."""
    if not keras_layers.takes_training(node.operation):
        return False, args, {k: v for k, v in kwargs.items() if k != "training"}
    kwargs = dict(kwargs)
    return bool(kwargs.pop("training", default)), args, kwargs


def _same_operation(first: keras.Operation, second: keras.Operation) -> bool:
    if first is second:
        return True
    if isinstance(first, keras.Layer):
        if first.weights or second.weights:
            return False
        # One that is made in the call is another one each time.
        return same(*({**copying.layer_config(x), "name": None} for x in (first, second)))
    return same(*({k: v for k, v in vars(x).items() if k not in _KEPT} for x in (first, second)))


# What an operation keeps for Keras, besides its settings.
_KEPT = frozenset(vars(keras.Operation(name="any"))) | {"_auto_config", "_lock", "_tracker"}


def same(first: Any, second: Any) -> bool:
    """Whether two arguments, settings or results are equal, whatever they are made of."""
    if first is second:
        return True
    if isinstance(first, keras.Operation) and isinstance(second, type(first)):
        return _same_operation(first, second)
    if _is_array(first) and _is_array(second):
        first, second = np.asarray(first), np.asarray(second)
        return first.dtype == second.dtype and np.array_equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and same(list(first.values()), list(second.values()))
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, types.FunctionType):
        parts = [(f.__code__, f.__defaults__, _enclosed(f)) for f in (first, second)]
        return same(*parts)
    return bool(first == second)


def _is_array(value) -> bool:
    return isinstance(value, np.ndarray) or tf.is_tensor(value)


def _enclosed(function) -> list:
    return [cell.cell_contents for cell in function.__closure__ or ()]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights that a layer has itself, which are the last inputs of its traced graphs.

    Attributes:
        own: the weights.
        parts: those of the layers in it that are trained: its code may compute with them, too.
        layers: for them.
        dtype: the policy of the layer.
    """

    own: list[keras.Variable]
    parts: list[keras.Variable]
    layers: WeightLayers
    dtype: Any


def one_graph(
    traced: keras.Function,
    found: dict[int, str],
    batches: list,
    places: list[int],
    probe: int | None,
    weights: Weights,
) -> tuple[list, list]:
    """Replays the graph of training so that each call is in its mode.

    Args:
        traced: the graph of training.
        found: from `modes`.
        batches: batch size of each input, `None` for an open one.
        places: where the batch axis of each of them is; the new inputs have it first.
        probe: the batch size at which the call was traced, if that is to be opened.
        weights: those that are inputs of the traced graph.

    Returns:
        Flat lists of the new inputs, and of the new outputs: each a tensor, or a `MovedBatch`.

    Raises:
        NotAGraphError: Keras does not keep a mode in which a call always is.
    """
    inputs = [
        keras.Input(
            batch_shape=(batch, *shape_batch_first(tensor.shape, place)[1:]), dtype=tensor.dtype
        )
        for batch, place, tensor in zip(batches, places, traced.inputs, strict=False)
    ]
    replay = _Replay(traced, found, inputs[0], probe, weights)
    values = [*map(moved, inputs, places), *map(replay.held.weight, weights.own)]
    return inputs, keras.tree.flatten(walking.replay(traced, values, replay.call))


class _Replay:
    """Makes the calls of a traced graph again, each in its mode and with the batch axis first.

    Args:
        traced, found, probe, weights: as for `one_graph`.
        like: an input of the new graph, which says how many samples there are.
    """

    def __init__(self, traced, found: dict[int, str], like: Any, probe, weights: Weights) -> None:
        self.found, self.probe, self.weights = found, probe, weights
        self.of_parts, self.of_calls = set(map(id, weights.parts)), _weights_of_calls(traced)
        once = _used_once(traced, [*weights.own, *weights.parts], len(weights.own))
        self.held = HeldWeights(like, weights.layers, weights.dtype, once)
        self.batch_first = BatchFirst(self.held, probe)

    def call(self, node, args: tuple, kwargs: dict) -> Any:
        """What a call of the traced graph gives."""
        operation, mode = node.operation, self.found[id(node)]
        if _is_silent(operation) and mode == OFF:
            return args[0] if args else kwargs["inputs"]
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        if keras_layers.takes_training(operation) and mode != FOLLOWS:
            kwargs |= _held_mode(operation, mode)
        if (outputs := self._by_kernel(operation, args)) is not None:
            return outputs
        args, kwargs = keras.tree.map_structure(self._value, (args, kwargs))
        if (outputs := self.batch_first.call(node, args, kwargs)) is not None:
            return outputs
        if isinstance(operation, RESHAPE) and args[0].shape[0] is None:
            return RESHAPE(_open_shape(operation, args[0], node.outputs[0]))(args[0])
        return symbolic.called_for_files(operation, args, kwargs)

    def _by_kernel(self, operation: keras.Operation, args: tuple) -> Any:
        """A product with a weight that a layer for it makes; `None` for all else."""
        if not isinstance(operation, MATMUL) or not _is_kernel(args[1]):
            return None
        if isinstance(args[0], MovedBatch):
            return None
        letters = "abcdefgh"[: len(args[0].shape)]
        product = f"{letters},{letters[-1]}z->{letters[:-1]}z"
        layer = self.weights.layers.product(args[1], product, args[1].dtype)
        return layer(args[0]) if layer else None

    def _value(self, x: Any) -> Any:
        """An argument that is no tensor of the graph: a constant, or a weight of a part."""
        if id(x) not in self.of_parts:
            return _constant(x, self.probe)
        if id(x) in self.of_calls:
            raise NotAGraphError(
                f"it computes with the weight '{x.path.rpartition('/')[2]}' of a layer that it "
                "calls, too"
            )
        return self.held.weight(x)


def _weights_of_calls(traced: keras.Function) -> set[int]:
    """The `id` of the weights of the layers that a graph calls."""
    called = (x for x in traced.operations if isinstance(x, keras.Layer))
    return {id(weight) for layer in called for weight in layer.weights}


def _used_once(traced: keras.Function, weights: list, inputs: int) -> set[int]:
    """The `id` of the weights that a single call uses; the first are the last inputs."""
    uses: collections.Counter[int] = collections.Counter()

    def visit(node, args, kwargs):
        given = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.Variable)]
        if given and (isinstance(node.operation, TRANSPOSE) or keeps(node)):
            return given
        uses.update(map(id, given))
        return [None] * len(node.outputs)

    values = [None] * (len(traced.inputs) - inputs) + weights[:inputs]
    for result in keras.tree.flatten(walking.replay(traced, values, visit)):
        uses[id(result)] += 1
    return {id(weight) for weight in weights if uses[id(weight)] == 1}


def _held_mode(operation: keras.Layer, mode: str) -> dict:
    """The argument that holds a call in a mode."""
    if calling.KEEPS_TRAINING:
        return {"training": mode == ON}
    if mode == OFF and not operation.trainable:
        return {}  # A frozen layer is in inference; what is random in it, a check finds.
    raise NotAGraphError(
        f"it calls {keras_layers.title(operation)} always {mode}, which graphs of Keras "
        "before 3.16 do not keep" + (": freeze it by `trainable = False`" if mode == OFF else "")
    )


def _is_kernel(value: Any) -> bool:
    """Whether what is multiplied by is a weight as a Dense layer has it."""
    return isinstance(value, keras.Variable) and len(value.shape) == 2 and value.trainable


def _constant(value: Any, probe: int | None) -> Any:
    """What stands for an argument: for a variable that no layer holds, the value that it has."""
    if isinstance(value, keras.Variable):
        value = keras.ops.convert_to_numpy(value)
    return value if probe is None else for_any_batch(value, probe)


def for_any_batch(value: Any, probe: int) -> Any:
    """A constant that has the same rows for each sample as one that has a single row."""
    if not _is_array(value) or not value.ndim or value.shape[0] != probe:
        return value
    array = np.asarray(value)
    return array[:1] if (array == array[:1]).all() else value


def _open_shape(reshape, source, target) -> list[int]:
    """The new shape with an open batch axis, if the sizes of all others can be known."""
    given = list(reshape.newshape)
    sizes = [size if size != -1 else n for size, n in zip(given, target.shape, strict=True)][1:]
    if given[0] == -1 and None not in given:
        return given
    if None in sizes and sizes.count(None) == 1 and None not in source.shape[1:]:
        whole = math.prod(source.shape[1:])
        known = math.prod(size for size in sizes if size is not None)
        sizes[sizes.index(None)] = whole // known
    return [-1, *sizes]
