"""Calls on weights, and on tensors whose batch axis is not the first, with the batch axis first.

Code in a layer's `call` may work on weights before they meet any sample (reshape them, look rows
up), and may put the batch axis elsewhere (experts first). Rules know tensors whose first axis is
that of samples alone. So each call of the traced graph becomes one of the same operation on such
tensors: weights get a row for each sample, and axes among the settings are counted again.
"""

import string
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
    batch_of,
    is_tensor,
    moved,
    moved_axis,
    rank_of,
    reshaped,
    tensor_of,
)
from keras_nisp.keras_graph import copying, keras_layers, symbolic
from keras_nisp.rules.products import parse


def _operations(*names: str) -> tuple:
    return tuple(filter(None, map(keras_layers.operation_class, names)))


(
    EINSUM,
    MATMUL,
    TRANSPOSE,
    GET_ITEM,
    RESHAPE,
    EXPAND,
    SQUEEZE,
    BROADCAST,
    TILE,
    REPEAT,
    TAKE,
    CAST,
    CONVERT,
) = _operations(
    *("einsum", "matmul", "transpose", "get_item", "reshape", "expand_dims", "squeeze"),
    *("broadcast_to", "tile", "repeat", "take", "cast", "convert_to_tensor"),
)
ALONG_AXIS = _operations(
    *("sum", "mean", "max", "min", "any", "all", "prod", "std", "var", "softmax", "log_softmax"),
    *("cumsum", "split", "flip", "take", "repeat", "argmax", "argmin", "logsumexp"),
)
(DEPTHWISE,) = _operations("depthwise_conv")
SIDE_BY_SIDE = _operations("concatenate", "stack")


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
            if isinstance(operation, SIDE_BY_SIDE[1]) and operation.axis == 0:
                return self._side_by_side(operation, args[0], node.outputs[0].shape)
            if isinstance(operation, BROADCAST):
                return self._broadcast(node, args[0])
            moves = isinstance(operation, (TRANSPOSE, EINSUM, EXPAND, GET_ITEM))
            return self._moved(operation, args) if moves else None
        try:
            if isinstance(operation, keras.Layer):
                return self._layer(operation, args, kwargs)
            return self._operation(node, operation, args, kwargs)
        except UnsupportedLayoutError:
            return self._as_it_is(operation, args, kwargs)

    def _broadcast(self, node, x: Any) -> Any:
        """A tensor whose other axes are repeated, if its new shape would hold a batch size."""
        shape = node.outputs[0].shape
        samples = node.input_tensors[0].shape[0]
        known = (
            self.probe in (samples, shape[0]) and samples == shape[0] and len(x.shape) == len(shape)
        )
        return self._repeated(x, shape[1:]) if self.probe and known else None

    def _moved(self, operation, args: tuple) -> MovedBatch | None:
        """What a call gives that puts the batch axis elsewhere."""
        ranks = [rank_of(x) for x in args]
        if isinstance(operation, TRANSPOSE):
            axes = _axes(operation, ranks[0])
            return self._transposed(operation, MovedBatch(args[0], 0)) if axes[0] else None
        if isinstance(operation, EXPAND):
            moves = 0 in _listed(operation.axis, ranks[0] + np.size(operation.axis))
            return self._expanded(operation, MovedBatch(args[0], 0)) if moves else None
        if isinstance(operation, GET_ITEM):
            moves = isinstance(args[1], tuple) and args[1][:1] == (None,)
            return self._item(operation, MovedBatch(args[0], 0), args[1]) if moves else None
        if "->" not in operation.subscripts:
            return None
        terms, output = parse(operation.subscripts, ranks)
        first = {term[0] for x, term in zip(args, terms, strict=True) if is_tensor(x)}
        if len(first) > 1 or output[:1] in first or not first & set(output):
            return None
        return self.weights.product(args, terms, output)

    def _operation(self, node, operation, args: tuple, kwargs: dict) -> Any:
        x: Any = args[0] if args else None
        if isinstance(operation, EINSUM) and "->" in operation.subscripts:
            return self.weights.product(
                args, *parse(operation.subscripts, [rank_of(x) for x in args])
            )
        if isinstance(operation, MATMUL):
            return self.weights.product(args, *_matmul(args))
        looks_up = isinstance(operation, TAKE) and operation.axis in (0, -2)
        rows = self.weights.rows(x, args[1]) if looks_up and isinstance(x, Weight) else None
        if rows is not None:
            return rows
        if looks_up and batch_of(x) is None and is_tensor(args[1]):
            return self._looked_up(x, args[1], operation.axis)
        if keeps(node) and isinstance(x, Weight):
            return x
        if isinstance(operation, SIDE_BY_SIDE):
            return self._side_by_side(operation, x, node.outputs[0].shape)
        if rule_of(operation).elementwise and not kwargs:
            return self._elementwise(operation, args, node.outputs[0].shape)
        if isinstance(operation, DEPTHWISE):
            return self._depthwise(operation, args[0], args[1], node.outputs[0].shape)
        if len(args) > 1 and not isinstance(operation, (GET_ITEM, TAKE)):
            raise UnsupportedLayoutError
        for kinds, make in (
            (TRANSPOSE, self._transposed),
            (GET_ITEM, lambda operation, x: self._item(operation, x, args[1])),
            (EXPAND, self._expanded),
            ((RESHAPE, SQUEEZE), lambda operation, x: self._reshaped(x, node.outputs[0].shape)),
        ):
            if isinstance(operation, kinds):
                return make(operation, x)
        if isinstance(operation, (BROADCAST, TILE, REPEAT)) and x.batch is None:
            shape = node.outputs[0].shape
            if shape and self._may_be_samples(shape[0]):
                return self._for_each_sample(x, shape)
            if not isinstance(operation, REPEAT):
                return MovedBatch(self._repeated(x.tensor, shape), None)
        if isinstance(operation, ALONG_AXIS):
            return self._along_axis(operation, x, args[1:], len(node.outputs[0].shape))
        raise UnsupportedLayoutError

    def _elementwise(self, operation, args: tuple, shape: tuple) -> Any:
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

    def _transposed(self, operation, x: MovedBatch) -> Any:
        axes = _axes(operation, x.rank)
        if isinstance(x, Weight):
            return Weight(x.variable, tuple(x.axes[axis] for axis in axes), x.as_table)
        place = None if x.batch is None else axes.index(x.batch)
        order = [0, *(x.axis(axis) for axis in axes if axis != x.batch)]
        if order == sorted(order):
            return moved(x.tensor, place)
        return moved(keras.ops.transpose(x.tensor, order), place)

    def _item(self, operation, x: MovedBatch, key: Any) -> Any:
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
        item = symbolic.called(operation, (x.tensor, (slice(None), *rest)), {})
        return moved(item, None if place is None else lead)

    def _expanded(self, operation, x: MovedBatch) -> Any:
        for axis in _listed(operation.axis, x.rank + np.size(operation.axis)):
            place = x.batch if x.batch is None or x.batch < axis else x.batch + 1
            inner = axis + (1 if place is None or place > axis else 0)
            x = MovedBatch(keras.ops.expand_dims(x.tensor, inner), place)
        return moved(x.tensor, x.batch)

    def _reshaped(self, x: MovedBatch, shape: tuple) -> Any:
        if x.batch is None and None not in shape:
            return MovedBatch(reshaped(x.tensor, list(shape)), None)
        raise UnsupportedLayoutError

    def _looked_up(self, x: MovedBatch, indices: Any, axis: int) -> Any:
        """Rows of what follows from weights, at the indices of each sample."""
        if x.rank != 2 or axis not in (0, -2) or len(indices.shape) != 2:
            raise UnsupportedLayoutError
        return keras.ops.take_along_axis(x.tensor, keras.ops.expand_dims(indices, -1), axis=1)

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

    def _along_axis(self, operation, x: MovedBatch, others: tuple, rank: int) -> Any:
        given = operation.axis
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

    def _side_by_side(self, operation, tensors: list, shape: tuple) -> Any:
        rank = max(map(rank_of, tensors))
        places = {batch_of(x) for x in tensors if isinstance(x, MovedBatch) or is_tensor(x)}
        if len(places) > 1 or any(rank_of(x) != rank for x in tensors):
            raise UnsupportedLayoutError
        before = place = places.pop()
        stacks = isinstance(operation, SIDE_BY_SIDE[1])
        axis = operation.axis % (rank + stacks)
        if place is not None and stacks:
            place += axis <= place
        if place == axis:
            raise UnsupportedLayoutError
        made = copying.copy_layer(operation, axis=moved_axis(axis, place))
        rows = None if place is None else shape[place]
        parts = [self._aligned(x, rank, before, rows) for x in tensors]
        return moved(symbolic.called(made, (parts,), {}), place)

    def _depthwise(self, operation, x: Any, kernel: Any, shape: tuple) -> Any:
        """A convolution of each channel alone: its taps one by one, each times the input."""
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
                    f"it gives {keras_layers.title(operation)} what it computes from its weights, "
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
    if not isinstance(node.operation, (CAST, CONVERT)):
        return False
    return node.outputs[0].dtype == node.input_tensors[0].dtype


def _matmul(operands: tuple) -> tuple[list[str], str]:
    """The letters of a product of matrices."""
    ranks = [rank_of(x) for x in operands]
    lead = string.ascii_lowercase[: max(max(ranks) - 2, 0)]
    first = "k" if ranks[0] == 1 else lead[len(lead) - ranks[0] + 2 :] + "yk"
    second = "k" if ranks[1] == 1 else lead[len(lead) - ranks[1] + 2 :] + "kz"
    output = lead + "y" * (ranks[0] > 1) + "z" * (ranks[1] > 1)
    return [first, second], output
