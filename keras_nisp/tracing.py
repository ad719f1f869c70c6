"""`trace(model)`: walks the graph once and gives every channel a name."""

import fnmatch
import math
import warnings

import keras
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from keras_nisp import graph
from keras_nisp.call import Call
from keras_nisp.channels import Binding, ChannelMap, Traced, compact
from keras_nisp.errors import UnknownLayerWarning
from keras_nisp.rules.base import Barrier, meaningful, rule_for

MOST_NAMED = 8  # layers in a warning
ASSUMED_SIZE = 224  # for input axes whose size the model leaves open


class Tracer:
    """Collects names, joins, fixed names and bindings during the walk."""

    def __init__(self):
        self.count = 0
        self.first: list[np.ndarray] = []
        self.second: list[np.ndarray] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.bindings: dict[int, Binding] = {}
        self.created: dict[tuple[int, str], np.ndarray] = {}
        self.creators: list[tuple[str, np.ndarray]] = []

    def fresh(self, count: int) -> np.ndarray:
        names = np.arange(self.count, self.count + count)
        self.count += count
        return names

    def fresh_last(self, shape: tuple[int, ...]) -> np.ndarray:
        """Fresh names along the last axis of a tensor."""
        names = self.fresh(shape[-1] if shape else 1)
        return names.reshape((1,) * (len(shape) - 1) + (-1,) if shape else ())

    def create(self, call: Call, count: int, label: str) -> np.ndarray:
        key = (id(call.layer), label)
        if key not in self.created:
            self.created[key] = self.fresh(count)
            self.creators.append((call.path + label, self.created[key]))
        return self.created[key]

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        first, second = np.broadcast_arrays(first, second)
        self.first.append(first.ravel())
        self.second.append(second.ravel())

    def boxed(self, names: np.ndarray) -> np.ndarray:
        """Names that vary along one axis at most, so that a tensor is a box after any removal.

        Names that vary along several (a Dense layer reshaped to a feature map) would leave
        holes: positions that share the last of these axes become one channel.
        """
        names = compact(names)
        varying = [axis for axis, size in enumerate(names.shape) if size > 1]
        if len(varying) < 2:
            return names
        rows = np.moveaxis(names, varying[-1], -1)
        shape = [-1 if axis == varying[-1] else 1 for axis in range(names.ndim)]
        rows = rows.reshape(-1, rows.shape[-1])
        self.join(rows[:1], rows[1:])
        return rows[0].reshape(shape)

    def bind(self, call, variable, own, read, create, positions) -> None:
        rank = len(variable.shape)
        axes = {axis % rank: names for part in (own, read, create) for axis, names in part.items()}
        known = self.bindings.get(id(variable))
        if known is None:
            self.bindings[id(variable)] = Binding(
                variable,
                call.path,
                axes,
                frozenset(axis % rank for axis in read),
                frozenset(axis % rank for axis in create),
                positions,
            )
            return
        known.positions += positions
        for axis, names in axes.items():
            if known.axes[axis] is not names:
                self.join(known.axes[axis], names)

    def units(self) -> np.ndarray:
        """The unit of every name."""
        if not self.first:
            return np.arange(self.count)
        first, second = np.concatenate(self.first), np.concatenate(self.second)
        ones = np.ones(len(first), bool)
        pairs = coo_array((ones, (first, second)), (self.count, self.count))
        return connected_components(pairs, directed=False)[1]


def trace(model: keras.Model, input_shape=None, whole_groups=()) -> ChannelMap:
    """Names every channel of a model.

    Args:
        model: a functional or Sequential model. It is not changed.
        input_shape: shape of one sample (or a list of shapes, for several inputs), for
            models that leave their input size open; FLOPs are counted for it.
        whole_groups: names or patterns of grouped convolutions whose groups are removed as a
            whole, with the channels that enter them; by default every group loses as many
            channels.

    Returns:
        A `ChannelMap`.

    Raises:
        TypeError: the model is not a functional or Sequential model.
        ValueError: the model is not built, `input_shape` does not fit it, or `whole_groups` names
            no grouped convolution.

    Example:

    >>> inputs = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    >>> x = keras.layers.GlobalAveragePooling2D()(x)
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    >>> [creator.layer for creator in trace(model).creators]
    ['conv', 'head']
    """
    graph.check_model(model)
    tracer, calls, model_inputs = Tracer(), [], {}
    samples = graph.batch_size(model) or 1
    wanted = (whole_groups,) if isinstance(whole_groups, str) else tuple(whole_groups)
    inputs = _traced_inputs(model, input_shape, tracer)

    def visit(site, args, kwargs):
        kwargs = meaningful(kwargs)
        flat = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Traced)]
        shapes = graph.output_shapes(site, args, kwargs, _shape_of)
        rule = rule_for(site.operation, args, kwargs)
        call = Call(site.operation, site.path, rule, flat, shapes, tracer, place=site.place)
        call.samples = samples
        call.whole_groups = any(_is_grouped(call, len(calls), entry) for entry in wanted)
        names = _trace_call(call, args, kwargs)
        call.outputs = [
            Traced(tracer.boxed(np.asarray(n)), shape, call.batch)
            for n, shape in zip(names, shapes, strict=True)
        ]
        calls.append(call)
        return call.outputs

    def enter(nested, values):
        if id(nested) not in model_inputs:
            model_inputs[id(nested)] = values
            return
        for known, value in zip(model_inputs[id(nested)], values, strict=True):
            tracer.join(known.names, value.names)

    outputs = keras.tree.flatten(graph.walk(model, inputs, visit, enter))
    for tensor, name in zip(outputs, graph.output_names(model), strict=True):
        tracer.fixed.append((np.unique(tensor.names), f"model output '{name}'"))
    for call in calls:
        call.tracer = None
    _check_grouped(model, calls, wanted)
    channel_map = ChannelMap(model, tracer, calls, inputs, outputs, model_inputs)
    _warn_of_barriers(channel_map)
    return channel_map


def _is_grouped(call: Call, index: int, entry: str | int) -> bool:
    """Whether a call is one of a grouped convolution that a name, pattern or index stands for."""
    if getattr(call.layer, "groups", 1) == 1 or not hasattr(call.layer, "filters"):
        return False
    if not isinstance(entry, str):
        return entry == index
    return fnmatch.fnmatchcase(call.path, entry) or fnmatch.fnmatchcase(call.layer.name, entry)


def _check_grouped(model, calls: list[Call], wanted: tuple) -> None:
    for entry in wanted:
        if not any(_is_grouped(call, index, entry) for index, call in enumerate(calls)):
            raise ValueError(
                f"Expected every entry of `whole_groups` to match a grouped convolution of model "
                f"'{model.name}'. Received: {entry!r}, which matches none."
            )


def _traced_inputs(model, input_shape, tracer) -> list[Traced]:
    tensors = graph.body(model).inputs
    shapes = [None] * len(tensors)
    if input_shape is not None:
        several = len(tensors) > 1 or isinstance(input_shape[0], (tuple, list))
        shapes = list(input_shape) if several else [input_shape]
        if len(shapes) != len(tensors):
            raise ValueError(
                f"Expected `input_shape` to give {len(tensors)} shapes, one for each "
                f"input of model '{model.name}'. Received: input_shape={input_shape}"
            )
    traced = []
    for tensor, given in zip(tensors, shapes, strict=True):
        declared = tuple(tensor.shape[1:])
        shape = tuple(given) if given is not None else declared
        if len(shape) != len(declared) or any(
            d not in (None, s) for d, s in zip(declared, shape, strict=True)
        ):
            raise ValueError(
                f"Expected `input_shape` to fit input '{tensor.name}' of shape {declared} "
                f"(without the batch axis). Received: {shape}"
            )
        shape = tuple(ASSUMED_SIZE if size is None else int(size) for size in shape)
        names = tracer.fresh_last(shape)
        tracer.fixed.append((names, f"model input '{tensor.name}'"))
        traced.append(Traced(names, shape))
    return traced


def _shape_of(value) -> tuple | None:
    return value.shape if isinstance(value, Traced) else None


def _trace_call(call: Call, args, kwargs) -> list[np.ndarray]:
    """The names of a call's outputs, by its rule; fixed where the rule does not reach."""
    names = call.rule.trace(call, *args, **kwargs)
    names = list(names) if isinstance(names, (list, tuple)) else [names]
    if isinstance(call.rule, Barrier):
        return names
    unbound = [
        weight.path
        for weight in call.weights
        if id(weight) not in call.tracer.bindings and math.prod(weight.shape) > 1
    ]
    if unbound:
        reason = f"no rule says what the axes of '{unbound[0]}' mean"
        for array in [tensor.names for tensor in call.inputs] + names:
            call.fix(array, reason)
    return names


def _warn_of_barriers(channel_map: ChannelMap) -> None:
    """Names the layers without a rule that hold channels which could be removed otherwise."""
    created = np.zeros(channel_map.count, bool)
    for creator in channel_map.creators:
        created[creator.units] = True
    barriers = [call for call in channel_map.calls if getattr(call.rule, "warns", False)]
    endings = tuple({call.rule.reason for call in barriers})
    holding = {}
    for call in barriers:
        held = f"enters '{call.path}', {call.rule.reason}"
        units = np.concatenate([tensor.names.ravel() for tensor in call.inputs])
        units = np.unique(units[created[units] & ~channel_map.free[units]]).tolist()
        reasons = [channel_map.reasons[unit] for unit in units]
        if any(held in r and all(reason.endswith(endings) for reason in r) for r in reasons):
            holding[call.path] = type(call.layer).__name__
    if holding:
        named = [f"'{path}' ({kind})" for path, kind in list(holding.items())[:MOST_NAMED]]
        more = len(holding) - len(named)
        warnings.warn(
            f"No rule follows channels through {', '.join(named)}"
            + (f" and {more} more layers" if more else "")
            + ": what enters and leaves stays as it is. Write the model out in layers and "
            "operations of Keras with `keras_nisp.as_functional`, or register a rule with "
            f"`@keras_nisp.register_rule({next(iter(holding.values()))})`.",
            UnknownLayerWarning,
            stacklevel=3,
        )
