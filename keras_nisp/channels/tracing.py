"""`trace(model)`: walks the graph once and gives every channel a name."""

import fnmatch
import math
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import Binding, ChannelMap, Traced, compact
from keras_nisp.channels.rule import Barrier, Rule, is_registered, meaningful, rule_for, rule_of
from keras_nisp.errors import RuleError, UnknownLayerWarning, warn
from keras_nisp.keras_graph import keras_models, walking
from keras_nisp.keras_graph.keras_layers import check_shared

MOST_NAMED = 8  # layers in a warning
# For axes whose size the model leaves open, by the rank of a sample: of sequences, images, volumes.
ASSUMED_SIZES = {1: 128, 2: 128, 3: 224, 4: 32}

# Arguments that many functions take: the shape of one sample without the batch axis, or a list of
# them for several inputs; names or patterns of grouped convolutions, or indices of their calls;
# names, patterns or objects of layers.
InputShape = Sequence[int | None] | Sequence[Sequence[int | None]]
WholeGroups = str | Iterable[str | int]
Layers = str | keras.Layer | Iterable[str | keras.Layer]


class Tracer:
    """Collects names, joins, fixed names and bindings during the walk."""

    def __init__(self, samples: int = 1):
        self.samples = samples
        self.count = 0
        self.first: list[np.ndarray] = []
        self.second: list[np.ndarray] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.unknown: dict[str, str] = {}  # reasons for want of a rule, and for what it is wanted
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

    def couple(self, first: Traced, second: Traced, reason: str) -> None:
        """Joins the names of two tensors that come to the same place.

        Args:
            first, second: the tensors.
            reason: why their channels are fixed if their shapes are too different for that.
        """
        try:
            self.join(first.names, second.names)
        except ValueError:
            self.fixed += [(np.unique(tensor.names), reason) for tensor in (first, second)]

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
        for axis, names in axes.items():
            if np.shape(names) != (variable.shape[axis],):
                raise ValueError(
                    f"Expected {variable.shape[axis]} names along axis {axis} of variable "
                    f"'{variable.path}'. Received: names of shape {np.shape(names)}"
                )
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
        for axis in {**known.axes, **axes}:
            both = [part[axis] for part in (known.axes, axes) if axis in part]
            if len(both) == 1:  # in one call the axis holds channels, in the other positions
                reason = f"'{call.path}' is also called where these are no channels"
                self.fixed.append((np.unique(both), reason))
            elif both[0] is not both[1]:
                self.join(*both)

    def call(self, site: walking.Site, args: tuple, kwargs: dict, whole_groups=None) -> Call:
        """Names what one call gives.

        Args:
            site, args, kwargs: from the walk.
            whole_groups: whether a call loses whole groups.
        """
        kwargs = meaningful(kwargs)
        flat = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Traced)]
        shapes = walking.output_shapes(site, args, kwargs, _shape_of)
        rule = rule_for(site.operation, args, kwargs)
        call = Call(site.operation, site.path, rule, flat, shapes, self, node=site.place)
        call.samples = self.samples
        call.whole_groups = whole_groups is not None and whole_groups(call)
        names = _trace_call(call, args, kwargs)
        call.outputs = [
            Traced(self.boxed(n), shape, call.batch) for n, shape in zip(names, shapes, strict=True)
        ]
        return call

    def follow(self, model: keras.Model, inputs: list[Traced]) -> tuple[list[Traced], list[Call]]:
        """The outputs of a graph that a layer holds inside, and its calls."""
        calls: list[Call] = []

        def visit(site, args, kwargs):
            calls.append(self.call(site, args, kwargs))
            return calls[-1].outputs

        return keras.tree.flatten(walking.walk(model, inputs, visit)), calls

    def units(self) -> np.ndarray:
        """The unit of every name."""
        if not self.first:
            return np.arange(self.count)
        first, second = np.concatenate(self.first), np.concatenate(self.second)
        ones = np.ones(len(first), bool)
        pairs = coo_array((ones, (first, second)), (self.count, self.count))
        return connected_components(pairs, directed=False)[1]


def trace(
    model: keras.Model,
    input_shape: InputShape | None = None,
    whole_groups: WholeGroups = (),
) -> ChannelMap:
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
    channel_map = trace_quietly(model, input_shape, whole_groups)
    _warn_of_unknown(channel_map)
    return channel_map


def trace_quietly(
    model: keras.Model,
    input_shape: InputShape | None = None,
    whole_groups: WholeGroups = (),
) -> ChannelMap:
    """`trace` without the warning of layers that have no rule, for what comes after a plan."""
    keras_models.check_model(model)
    tracer = Tracer(keras_models.batch_size(model) or 1)
    calls: list[Call] = []
    model_inputs: dict[int, list[Traced]] = {}
    wanted = (whole_groups,) if isinstance(whole_groups, str) else tuple(whole_groups)
    inputs, assumed = _traced_inputs(model, input_shape, tracer)

    def whole(call):
        return any(_is_grouped(call, len(calls), entry) for entry in wanted)

    def visit(site, args, kwargs):
        calls.append(tracer.call(site, args, kwargs, whole))
        return calls[-1].outputs

    def enter(nested, values):
        if id(nested) not in model_inputs:
            model_inputs[id(nested)] = values
            return
        for known, value in zip(model_inputs[id(nested)], values, strict=True):
            tracer.couple(known, value, f"enters '{nested.name}', which is called at other sizes")

    try:
        outputs = keras.tree.flatten(walking.walk(model, inputs, visit, enter))
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        if not assumed or isinstance(error, RuleError):
            raise
        raise ValueError(
            f"Model '{model.name}' leaves the size of its inputs open, and does not take the "
            f"assumed {', '.join(assumed)}. Pass `input_shape=`, the shape of one sample, or data "
            f"of that shape. ({type(error).__name__}: {error})"
        ) from error
    for tensor, name in zip(outputs, keras_models.output_names(model), strict=True):
        tracer.fixed.append((np.unique(tensor.names), f"model output '{name}'"))
    check_shared([call.layer for call in calls])
    _fix_what_is_called_otherwise(calls, tracer)
    _check_grouped(model, calls, wanted)
    channel_map = ChannelMap(model, tracer, calls, inputs, outputs, model_inputs)
    channel_map.assumed = assumed
    return channel_map


def _is_grouped(call: Call, index: int, entry: str | int) -> bool:
    """Whether a call is one of a grouped convolution that a name, pattern or index stands for."""
    if rule_of(call.layer).groups(call.layer) == 1:
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


def _traced_inputs(model, input_shape, tracer) -> tuple[list[Traced], tuple[str, ...]]:
    """The inputs, and what was assumed of those whose size is open."""
    tensors = keras_models.body(model).inputs
    shapes = [None] * len(tensors)
    if input_shape is not None:
        several = len(tensors) > 1 or isinstance(input_shape[0], (tuple, list))
        shapes = list(input_shape) if several else [input_shape]
        if len(shapes) != len(tensors):
            raise ValueError(
                f"Expected `input_shape` to give {len(tensors)} shapes, one for each "
                f"input of model '{model.name}'. Received: input_shape={input_shape}"
            )
    traced, assumed = [], []
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
        size = ASSUMED_SIZES[min(max(len(shape), 1), max(ASSUMED_SIZES))]
        full = tuple(size if n is None else int(n) for n in shape)
        if None in shape:
            assumed.append(f"{full} for input '{tensor.name}'")
        shape = full
        names = tracer.fresh_last(shape)
        tracer.fixed.append((names, f"model input '{tensor.name}'"))
        traced.append(Traced(names, shape))
    return traced, tuple(assumed)


def _shape_of(value) -> tuple | None:
    return value.shape if isinstance(value, Traced) else None


def _trace_call(call: Call, args, kwargs) -> list[np.ndarray]:
    """The names of a call's outputs, by its rule; fixed where the rule does not reach."""
    try:
        names = _named_by_rule(call, args, kwargs)
    except RuleError:
        if is_registered(type(call.layer)):
            raise
        # A subclass that builds other variables than its base, say.
        names = call.fix_all("whose class is not what the rule of its base expects", unknown=True)
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


def _named_by_rule(call: Call, args, kwargs) -> list[np.ndarray]:
    """What the rule says of the names of a call's outputs, if it can be."""
    names = call.ask("trace", *args, **kwargs)
    names = list(names) if isinstance(names, (list, tuple)) else [names]
    names = [np.asarray(array) for array in names]
    fitting = len(names) == len(call.output_shapes) and all(
        array.dtype.kind == "i" and array.ndim == len(shape) and _broadcasts(array.shape, shape)
        for array, shape in zip(names, call.output_shapes, strict=True)
    )
    if not fitting:
        received = ", ".join(f"{array.dtype} {array.shape}" for array in names)
        raise call.error(
            "trace",
            "must give an array of integers for each output that broadcasts to its shape without "
            f"the batch axis: {call.output_shapes}. Received: {received or 'none'}",
        )
    return names


def _broadcasts(names: tuple, shape: tuple) -> bool:
    return all(count in (1, size) for count, size in zip(names, shape, strict=True))


def _fix_what_is_called_otherwise(calls: list[Call], tracer: Tracer) -> None:
    """Fixes the channels of layers that rules follow in some of their calls only.

    A layer without weights, whose config holds a number of channels, must have the same in all.
    """
    first: dict[int, Call] = {}
    for call in calls:
        known = first.setdefault(id(call.layer), call)
        if known is call:
            continue
        reason = f"'{call.path}' is also called in a way that no rule follows"
        if isinstance(call.rule, Barrier) or isinstance(known.rule, Barrier):
            held = [tracer.bindings.get(id(weight)) for weight in call.weights]
            lines = [names for b in held if b is not None for names in b.axes.values()]
            lines += [t.names for c in (known, call) for t in (*c.inputs, *c.outputs)]
            tracer.fixed += [(np.unique(names), reason) for names in lines]
        elif type(call.rule).resize is not Rule.resize and not call.weights:
            reason = f"'{call.path}' is also called with other channels"
            for one, other in zip(
                (*known.inputs, *known.outputs), (*call.inputs, *call.outputs), strict=True
            ):
                tracer.couple(one, other, reason)


def _warn_of_unknown(channel_map: ChannelMap) -> None:
    """Names what holds channels for want of a rule that could be removed otherwise."""
    created = np.zeros(channel_map.count, bool)
    for creator in channel_map.creators:
        created[creator.units] = True
    holding: set[str] = set()
    for unit in np.flatnonzero(created & ~channel_map.free).tolist():
        reasons = channel_map.reasons[unit]
        if all(reason in channel_map.unknown for reason in reasons):
            holding.update(channel_map.unknown[reason] for reason in reasons)
    if not holding:
        return
    named = [title for title in dict.fromkeys(channel_map.unknown.values()) if title in holding]
    more = f" and {len(named) - MOST_NAMED} more layers" if len(named) > MOST_NAMED else ""
    kinds = [title.partition("(")[2].rstrip(")") for title in named if title.endswith(")")]
    advice = "Write activations in operations of `keras.ops`, or give layers such as `LeakyReLU()`."
    if kinds:
        advice = (
            "Write the model out in layers and operations of Keras with "
            "`keras_nisp.as_functional`, or register a rule with "
            f"`@keras_nisp.register_rule({kinds[0]})`."
        )
    warn(
        f"No rule follows channels through {', '.join(named[:MOST_NAMED])}{more}: what enters and "
        f"leaves stays as it is. {advice}",
        UnknownLayerWarning,
    )
