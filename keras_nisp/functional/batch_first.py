"""Calls on weights, and on tensors whose batch axis is not the first, with the batch axis first.

Code in a layer's `call` may work on weights before they meet any sample (reshape them, look rows
up), and may put the batch axis elsewhere (experts first). Rules know tensors whose first axis is
that of samples alone. So each call of the traced graph becomes one of the same operation on such
tensors: weights get a row for each sample, and axes among the settings are counted again.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.registry import rule_of
from keras_nisp.functional.held_weights import HeldWeights
from keras_nisp.functional.moved_batch import (
    MovedBatch,
    NotAGraphError,
    UnsupportedLayoutError,
    Weight,
    as_moved,
    batch_of,
    is_tensor,
    moved,
    moved_axis,
    rank_of,
    reshaped,
    tensor_of,
)
from keras_nisp.keras_graph import copying, symbolic
from keras_nisp.keras_graph.keras_layers import operation_class, title
from keras_nisp.rules.products import matmul_equation, parse

EINSUM, MATMUL = operation_class("einsum"), operation_class("matmul")
RESHAPE, BROADCAST = operation_class("reshape"), operation_class("broadcast_to")
TRANSPOSE, EXPAND = operation_class("transpose"), operation_class("expand_dims")
GET_ITEM, STACK = operation_class("get_item"), operation_class("stack")
COPIES = operation_class("cast"), operation_class("convert_to_tensor")
HANDLERS: dict[type, Callable] = {}  # the method of `BatchFirst` for each class of operations


def _handles(*names: str) -> Callable:
    """Registers a method for operations by their names in `keras.ops`."""

    def register(method):
        kinds = filter(None, map(operation_class, names))
        HANDLERS.update(dict.fromkeys(kinds, method))
        return method

    return register


class BatchFirst:
    """Makes the calls of a graph.

    Args:
        weights: those among what is called with.
        probe: the size of the batch axis where the call was traced at one.
    """

    def __init__(self, weights: HeldWeights, probe: int | None) -> None:
        self.weights, self.probe = weights, probe

    def call(self, node, args: tuple, kwargs: dict) -> Any:
        """What a call of the traced graph gives.

        Returns:
            For each of its outputs a tensor or a `MovedBatch`; `None` if the call may be made as it
            is.
        """
        operation, flat = node.operation, keras.tree.flatten((args, kwargs))
        if not any(isinstance(x, MovedBatch) for x in flat):
            return self._moved(node, args)
        try:
            if isinstance(operation, keras.Layer):
                return self._layer(operation, args, kwargs)
            if type(operation) in HANDLERS and not kwargs:
                return HANDLERS[type(operation)](self, node, *args)
            if rule_of(operation).elementwise and not kwargs:
                return self._elementwise(node, *args)
        except UnsupportedLayoutError:
            pass
        return self._as_it_is(operation, args, kwargs)

    def _moved(self, node, args: tuple) -> Any:
        """What a call gives that puts the batch axis elsewhere, or holds its size; `None` for all
        others."""
        operation = node.operation
        if isinstance(operation, TRANSPOSE):
            moves = _axes(operation, rank_of(args[0]))[0] != 0
        elif isinstance(operation, EXPAND):
            rank = rank_of(args[0]) + np.size(operation.axis)
            moves = 0 in _listed(operation.axis, rank)
        elif isinstance(operation, GET_ITEM):
            moves = isinstance(args[1], tuple) and args[1][:1] == (None,)
        elif isinstance(operation, STACK):
            moves = operation.axis == 0
        elif isinstance(operation, EINSUM):
            moves = self._is_moving_product(operation, args)
        elif isinstance(operation, BROADCAST):
            samples, shape = node.input_tensors[0].shape[0], node.outputs[0].shape
            moves = self.probe is not None and self.probe == samples == shape[0]
            moves = moves and len(args[0].shape) == len(shape)
        else:
            return None
        return HANDLERS[type(operation)](self, node, *args) if moves else None

    @staticmethod
    def _is_moving_product(operation, args: tuple) -> bool:
        """Whether samples that come first are elsewhere, or gone, in what an einsum gives."""
        if "->" not in operation.subscripts:
            return False
        terms, output = parse(operation.subscripts, list(map(rank_of, args)))
        first = {term[0] for x, term in zip(args, terms, strict=True) if is_tensor(x)}
        return len(first) == 1 and output[:1] not in first and bool(first & set(output))

    @_handles("einsum")
    def _product(self, node, *args: Any) -> Any:
        if "->" not in node.operation.subscripts:
            raise UnsupportedLayoutError
        terms, output = parse(node.operation.subscripts, list(map(rank_of, args)))
        return self.weights.product(args, terms, output)

    @_handles("matmul")
    def _matrix_product(self, node, *args: Any) -> Any:
        ranks = list(map(rank_of, args))
        return self.weights.product(args, *parse(matmul_equation(ranks), ranks))

    @_handles("cast", "convert_to_tensor")
    def _cast(self, node, x: Any) -> Any:
        return x if isinstance(x, Weight) and keeps(node) else self._elementwise(node, x)

    def _elementwise(self, node, *args: Any) -> Any:
        operation, shape = node.operation, node.outputs[0].shape
        args = keras.tree.map_structure(lambda x: x.numpy() if tf.is_tensor(x) else x, args)
        rank = max(map(rank_of, args))
        places = {batch_of(x) + rank - rank_of(x) for x in args if batch_of(x) is not None}
        place = places.pop() if places else None
        if places:
            raise UnsupportedLayoutError
        rows = None if place is None else shape[place]
        given = tuple(self._aligned(x, rank, place, rows) for x in args)
        return moved(symbolic.called(operation, given, {}), place)

    def _may_be_samples(self, rows: int | None) -> bool:
        """Whether an axis of the traced graph may be that of samples, or of parts of them."""
        return rows is None or bool(self.probe and not rows % self.probe)

    def _for_each_part(self, tensor: Any, rows: int | None) -> Any:
        """What has a row for each sample, where the traced graph has more: samples are in parts
        there, such as windows, side by side."""
        if not self.probe or rows in (None, self.probe):
            return tensor
        if not self._may_be_samples(rows):
            raise UnsupportedLayoutError
        return keras.ops.repeat(tensor, rows // self.probe, axis=0)

    def _aligned(self, x: Any, rank: int, place: int | None, rows: int | None) -> Any:
        """An operand with the axes of a result of this rank, whose batch axis has this place and,
        where it was traced, so many rows."""
        if not rank_of(x):
            return tensor_of(x)
        missing = rank - rank_of(x)
        if isinstance(x, MovedBatch) and x.batch is None:
            sizes = [*[1] * missing, *x.shape]
            if place is not None and sizes.pop(place) != 1:
                raise UnsupportedLayoutError
            return self._for_each_part(reshaped(x.tensor, sizes), rows)
        if isinstance(x, MovedBatch) or is_tensor(x):
            axes = tuple(range(1, 1 + missing))
            return keras.ops.expand_dims(tensor_of(x), axes) if axes else tensor_of(x)
        array = np.reshape(x, (*[1] * missing, *x.shape))
        if place is None:
            return array[None]
        if array.shape[place] != 1:
            raise UnsupportedLayoutError
        return np.moveaxis(array, place, 0)

    @_handles("transpose")
    def _transposed(self, node, x: Any) -> Any:
        x = as_moved(x)
        axes = _axes(node.operation, x.rank)
        if isinstance(x, Weight):
            return Weight(x.variable, tuple(x.axes[axis] for axis in axes), x.as_table)
        place = None if x.batch is None else axes.index(x.batch)
        order = [0, *(x.axis(axis) for axis in axes if axis != x.batch)]
        if order == sorted(order):
            return moved(x.tensor, place)
        return moved(keras.ops.transpose(x.tensor, order), place)

    @_handles("get_item")
    def _item(self, node, x: Any, key: Any) -> Any:
        x = as_moved(x)
        key = list(key) if isinstance(key, (tuple, list)) else [key]
        taken = sum(entry is not None and entry is not Ellipsis for entry in key)
        dots = [i for i, entry in enumerate(key) if entry is Ellipsis] or [len(key)]
        key[dots[0] : dots[0] + 1] = [slice(None)] * (x.rank - taken)
        place, axis = None, 0
        for index, entry in enumerate(key):
            if entry is None:
                continue
            if axis == x.batch:
                if entry != slice(None):
                    raise UnsupportedLayoutError
                place = index
            axis += 1
        lead = 0 if place is None else sum(isinstance(e, (slice, type(None))) for e in key[:place])
        rest = [entry for index, entry in enumerate(key) if index != place]
        item = symbolic.called(node.operation, (x.tensor, (slice(None), *rest)), {})
        return moved(item, None if place is None else lead)

    @_handles("expand_dims")
    def _expanded(self, node, x: Any) -> Any:
        x, given = as_moved(x), node.operation.axis
        for axis in _listed(given, x.rank + np.size(given)):
            place = x.batch if x.batch is None or x.batch < axis else x.batch + 1
            inner = axis + (1 if place is None or place > axis else 0)
            x = MovedBatch(keras.ops.expand_dims(x.tensor, inner), place)
        return moved(x.tensor, x.batch)

    @_handles("reshape", "squeeze")
    def _reshaped(self, node, x: MovedBatch) -> Any:
        shape = node.outputs[0].shape
        if x.batch is None and None not in shape:
            return MovedBatch(reshaped(x.tensor, list(shape)), None)
        raise UnsupportedLayoutError

    @_handles("take")
    def _taken(self, node, x: Any, indices: Any) -> Any:
        if node.operation.axis not in (0, -2):
            return self._along_axis(node, x, indices)
        if isinstance(x, Weight) and (rows := self.weights.rows(x, indices)) is not None:
            return rows
        if batch_of(x) is None and is_tensor(indices):
            return self._looked_up(x, indices)
        return self._along_axis(node, x, indices)

    def _looked_up(self, x: Any, indices: Any) -> Any:
        """Rows of what follows from weights, at the indices of each sample."""
        if rank_of(x) != 2 or len(indices.shape) != 2:
            raise UnsupportedLayoutError
        return keras.ops.take_along_axis(x.tensor, keras.ops.expand_dims(indices, -1), axis=1)

    @_handles("broadcast_to", "tile")
    def _broadcast(self, node, x: Any) -> Any:
        shape = node.outputs[0].shape
        if is_tensor(x):
            return self._repeated(x, shape[1:])
        if x.batch is not None:
            raise UnsupportedLayoutError
        if self._may_be_samples(shape[0]):
            return self._for_each_sample(x, shape)
        return MovedBatch(self._repeated(x.tensor, shape), None)

    @_handles("repeat")
    def _repeats(self, node, x: MovedBatch) -> Any:
        shape = node.outputs[0].shape
        if x.batch is None and shape and self._may_be_samples(shape[0]):
            return self._for_each_sample(x, shape)
        return self._along_axis(node, x)

    def _for_each_sample(self, x: MovedBatch, shape: tuple) -> Any:
        """A weight that is repeated for each sample."""
        sizes = [*[1] * (len(shape) - x.rank), *x.shape]
        if sizes[0] != 1:
            raise UnsupportedLayoutError
        repeated = self._repeated(reshaped(x.tensor, sizes[1:]), shape[1:])
        return self._for_each_part(repeated, shape[0])

    def _repeated(self, tensor: Any, shape: tuple) -> Any:
        """A tensor with this shape behind the batch axis, in which axes of size 1 are repeated."""
        sizes = [*[1] * (len(shape) + 1 - len(tensor.shape)), *tensor.shape[1:]]
        tensor = reshaped(tensor, sizes)
        for axis, (own, wanted) in enumerate(zip(sizes, shape, strict=True), start=1):
            if own != wanted:
                if own != 1 or wanted is None:
                    raise UnsupportedLayoutError
                tensor = keras.ops.repeat(tensor, wanted, axis=axis)
        return tensor

    @_handles(
        *("sum", "mean", "max", "min", "any", "all", "prod", "std", "var", "softmax"),
        *("log_softmax", "cumsum", "split", "flip", "argmax", "argmin", "logsumexp"),
    )
    def _along_axis(self, node, x: Any, *others: Any) -> Any:
        operation, rank = node.operation, len(node.outputs[0].shape)
        x, given = as_moved(x), operation.axis
        if given is None and x.batch is not None:
            raise UnsupportedLayoutError
        axes = _listed(range(x.rank) if given is None else given, x.rank)
        if x.batch in axes or any(
            isinstance(other, MovedBatch) or is_tensor(other) for other in others
        ):
            raise UnsupportedLayoutError
        inner = tuple(x.axis(axis) for axis in axes)
        single = given is not None and not np.ndim(given)
        made = copying.copy_layer(operation, axis=inner[0] if single else inner)
        outputs = symbolic.called(made, (x.tensor, *others), {})
        place = x.batch
        if place is not None and rank != x.rank:
            before = sum(axis < place for axis in axes)
            place += before * (rank - x.rank if rank > x.rank else -1)
        return keras.tree.map_structure(lambda y: moved(y, place), outputs)

    @_handles("concatenate", "stack")
    def _side_by_side(self, node, tensors: list) -> Any:
        operation, shape = node.operation, node.outputs[0].shape
        rank = max(map(rank_of, tensors))
        places = {batch_of(x) for x in tensors if isinstance(x, MovedBatch) or is_tensor(x)}
        if len(places) > 1 or any(rank_of(x) != rank for x in tensors):
            raise UnsupportedLayoutError
        before = place = places.pop()
        stacks = isinstance(operation, STACK)
        axis = operation.axis % (rank + stacks)
        if place is not None and stacks:
            place += axis <= place
        if place == axis:
            raise UnsupportedLayoutError
        made = copying.copy_layer(operation, axis=moved_axis(axis, place))
        rows = None if place is None else shape[place]
        parts = [self._aligned(x, rank, before, rows) for x in tensors]
        return moved(symbolic.called(made, (parts,), {}), place)

    @_handles("depthwise_conv")
    def _depthwise(self, node, x: Any, kernel: Any) -> Any:
        """A convolution of each channel alone: its taps one by one, each times the input."""
        operation, shape = node.operation, node.outputs[0].shape
        settings = (operation.padding, operation.strides, operation.dilation_rate)
        plain = settings == ("valid", 1, 1) and operation.data_format != "channels_first"
        lies = batch_of(x) == 0 and batch_of(kernel) is None and isinstance(kernel, MovedBatch)
        if not plain or not lies or kernel.rank != 3 or kernel.shape[2] != 1 or shape[1] is None:
            raise UnsupportedLayoutError
        taps = kernel.tensor[..., 0]
        y = x[:, : shape[1]] * taps[:, :1]
        for i in range(1, kernel.shape[0]):
            y += x[:, i : i + shape[1]] * taps[:, i : i + 1]
        return y

    def _layer(self, layer: keras.Layer, args: tuple, kwargs: dict) -> Any:
        """What a layer gives for weights: it is called on those of each sample."""
        (x, *others) = [
            y
            for y in keras.tree.flatten((args, kwargs))
            if isinstance(y, MovedBatch) or is_tensor(y)
        ]
        if others or not args or args[0] is not x or x.batch is not None:
            raise UnsupportedLayoutError
        single = x.shape[:1] == (1,)
        tensor = reshaped(x.tensor, list(x.shape[1:])) if single else x.tensor
        outputs = symbolic.called_for_files(layer, (tensor, *args[1:]), kwargs)
        return keras.tree.map_structure(
            lambda y: MovedBatch(keras.ops.expand_dims(y, 1) if single else y, None), outputs
        )

    def _as_it_is(self, operation, args: tuple, kwargs: dict) -> Any:
        """The call on tensors as they were traced; of weights one for each sample."""

        def restored(x):
            if not isinstance(x, MovedBatch):
                return x
            if x.batch is not None:
                return keras.ops.moveaxis(x.tensor, 0, x.batch)
            if x.shape[:1] != (1,):
                raise NotAGraphError(
                    f"it gives {title(operation)} what it computes from its weights, "
                    "which no layer of Keras does"
                )
            return reshaped(x.tensor, list(x.shape[1:]))

        args, kwargs = keras.tree.map_structure(restored, (args, kwargs))
        return symbolic.called_for_files(operation, args, kwargs)


def _axes(operation, rank: int) -> list[int]:
    """The order into which an operation brings axes."""
    if operation.axes is None:
        return list(range(rank))[::-1]
    return [axis % rank for axis in operation.axes]


def _listed(axes: Any, rank: int) -> list[int]:
    return sorted(int(axis) % rank for axis in np.ravel(list(axes) if np.ndim(axes) else axes))


def keeps(node) -> bool:
    """Whether a call gives what it gets, in the same form."""
    if not isinstance(node.operation, COPIES):
        return False
    return node.outputs[0].dtype == node.input_tensors[0].dtype
