"""`trace(model)`: walks the graph once and gives every channel a name."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.rule import Barrier, Rule
from keras_nisp.channels.tracer import Place, Tracer
from keras_nisp.errors import RuleError, UnknownLayerWarning, several, warn
from keras_nisp.keras_graph import keras_models, walking
from keras_nisp.keras_graph.keras_layers import check_shared

MOST_NAMED = 8  # layers in a warning
# For axes whose size the model leaves open, by the rank of a sample: of sequences, images, volumes.
ASSUMED_SIZES = {1: 128, 2: 128, 3: 224, 4: 32}

# Arguments that many functions take: the shape of one sample without the batch axis, or a list of
# them for several inputs, or a dict by the inputs' names; names or patterns of grouped
# convolutions, or indices of their calls; names, patterns or objects of layers.
InputShape = (
    Sequence[int | None] | Sequence[Sequence[int | None]] | Mapping[str, Sequence[int | None]]
)
WholeGroups = str | Iterable[str | int]
Layers = str | keras.Layer | Iterable[str | keras.Layer]


def trace(
    model: keras.Model,
    input_shape: InputShape | None = None,
    whole_groups: WholeGroups = (),
) -> ChannelMap:
    """Names every channel of a model.

    Args:
        model: a functional or Sequential model. It is not changed.
        input_shape: shape of one sample, for models that leave their input size open; FLOPs are
            counted for it. For several inputs a list of shapes, or a dict by the inputs' names.
        whole_groups: names or patterns of grouped convolutions whose groups are removed as a
            whole, with the channels that enter them. By default every group loses the same number
            of channels.

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
    warn_of_unknown(channel_map)
    return channel_map


def trace_quietly(
    model: keras.Model,
    input_shape: InputShape | None = None,
    whole_groups: WholeGroups = (),
    counted: bool = False,
) -> ChannelMap:
    """`trace` without the warning of layers that have no rule, for use after a plan was made.

    Args:
        model, input_shape, whole_groups: as for `trace`.
        counted: whether channels are to be merged or copied. Channels that are weighed against
            each other then stay (`Tracer.rivals`), so that channels inside them need not.
    """
    keras_models.check_model(model)
    tracer, channel_map = _traced(model, input_shape, whole_groups, counted)
    if tracer.joined:
        # A layer's channels are laid out along several axes. Are these heads, of attention?
        tracer, apart = _traced(model, input_shape, whole_groups, counted, tracer.joined)
        heads = [n for n, lines in tracer.outer.items() if any(apart.are_free(x) for x in lines)]
        if heads:
            channel_map = _traced(model, input_shape, whole_groups, counted, heads)[1]
    return channel_map


def _traced(
    model: keras.Model,
    input_shape: InputShape | None,
    whole_groups: WholeGroups,
    counted: bool,
    split: Iterable[Place] = (),
) -> tuple[Tracer, ChannelMap]:
    tracer = Tracer(keras_models.batch_size(model) or 1, split, counted)
    calls: list[Call] = []
    model_inputs: dict[int, list[Traced]] = {}
    wanted = _listed_groups(whole_groups)
    inputs, assumed = _traced_inputs(model, input_shape, tracer)

    def whole(call):
        return any(_is_grouped(call, len(calls), entry) for entry in wanted)

    def visit(site, args, kwargs):
        calls.append(tracer.call(site, args, kwargs, whole, len(calls)))
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
        if tensor.points_at is not None:
            tracer.fixed.append((np.unique(tensor.points_at), f"is what '{name}' has indices of"))
    check_shared([call.layer for call in calls])
    _fix_what_is_called_otherwise(calls, tracer)
    _check_grouped(model, calls, wanted)
    channel_map = ChannelMap(model, tracer, calls, inputs, outputs, model_inputs)
    channel_map.assumed = assumed
    return tracer, channel_map


def _listed_groups(whole_groups: WholeGroups) -> tuple[str | int, ...]:
    if isinstance(whole_groups, str):
        return (whole_groups,)
    if not isinstance(whole_groups, Iterable):
        raise TypeError(
            "Expected `whole_groups` to be the name or pattern of grouped convolutions, or a list "
            f"of them. Received: whole_groups={whole_groups!r}"
        )
    return tuple(whole_groups)


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
    shapes = [tuple(tensor.shape[1:]) for tensor in tensors]
    if input_shape is not None:
        names = keras_models.names_of(keras_models.input_structure(model))
        shapes = keras_models.listed_shapes(input_shape, names)
        if len(shapes) != len(tensors):
            raise ValueError(
                f"Expected `input_shape` to give {len(tensors)} shapes, one for each "
                f"input of model '{model.name}'. Received: input_shape={input_shape}"
            )
    traced, assumed = [], []
    for tensor, shape in zip(tensors, shapes, strict=True):
        declared = tuple(tensor.shape[1:])
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
        traced.append(Traced(names, shape, dtype=tensor.dtype))
    return traced, tuple(assumed)


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


def warn_of_unknown(channel_map: ChannelMap) -> None:
    """Warns of layers without a rule that hold channels which could be removed otherwise. Layers
    without a rule behind these are named, too: they would hold the channels next."""
    created = np.zeros(channel_map.count, bool)
    for creator in channel_map.creators:
        created[channel_map.products.deciding(creator.units)] = True
    holding: set[str] = set()
    beyond: list[set[str]] = []
    for unit in np.flatnonzero(~channel_map.free).tolist():
        reasons = channel_map.reasons.get(unit, ())
        if all(reason in channel_map.unknown for reason in reasons):
            titles = {channel_map.unknown[reason] for reason in reasons}
            beyond.append(titles)
            holding |= titles if created[unit] else set()
    while reached := [titles for titles in beyond if titles & holding and titles - holding]:
        holding.update(*reached)
    if not holding:
        return
    named = [title for title in dict.fromkeys(channel_map.unknown.values()) if title in holding]
    kinds = [kind[1] for kind in (re.match(r"'.*' \((\w+)", title) for title in named) if kind]
    advice = "Write activations in operations of `keras.ops`, or give layers such as `LeakyReLU()`."
    if kinds:
        advice = (
            "Convert the model to layers and operations of Keras with "
            "`keras_nisp.as_functional`, or register a rule with "
            f"`@keras_nisp.register_rule({kinds[0]})`."
        )
    warn(
        f"No rule follows channels through {several(named, MOST_NAMED, 'layers')}: what enters and "
        f"leaves stays as it is. {advice}",
        UnknownLayerWarning,
    )
