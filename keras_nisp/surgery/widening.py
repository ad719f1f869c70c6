"""`widen`: the same architecture with more channels."""

import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.selecting import matching
from keras_nisp.channels.tracing import Layers, trace_quietly, warn_of_unknown
from keras_nisp.channels.unit_map import UnitMap, occurrences
from keras_nisp.data.random_samples import random_samples
from keras_nisp.errors import VerificationError, check_count, check_number
from keras_nisp.surgery.compiling import compile_alike
from keras_nisp.surgery.oracle import Oracle
from keras_nisp.surgery.rebuilding import Surgeon
from keras_nisp.surgery.verification import check_layers

INITS = ("fresh", "preserve")


def widen(
    model: keras.Model,
    factor: float | Mapping[str, float],
    *,
    init: str = "fresh",
    noise: float = 0.0,
    exclude: Layers = (),
    seed: int = 0,
) -> keras.Model:
    """Builds the same architecture with more channels.

    Train the wider network, then bring it back to the widths of this one by
    `plan_merging(wide, widths=model)` and C-SGD.

    Args:
        model: a functional or Sequential model. It is not changed.
        factor: factor for the number of channels of every coupled group, at least 1; or a dict
            of factors by layer name or pattern, and other layers stay. Widths are rounded up.
        init: `"fresh"` draws new weights from the layers' initializers. `"preserve"` copies
            channels and divides the weights that read them, so that the wide model gives the same
            outputs.
        noise: with `"preserve"`, how unevenly the weights that read a channel are divided among
            its copies: the standard deviation of a copy's share, relative to the share. The
            outputs stay the same. Without noise (0), copies get the same gradients and
            remain equal.
        exclude: names, patterns or layer objects whose number of channels stays.
        seed: seed for choosing the channels that get one copy more, and for the noise.

    Returns:
        A plain Keras model of the same class and compile configuration, with the
        same inputs, outputs and layer names.

    Raises:
        TypeError: the model is not functional or Sequential.
        ValueError: an argument is wrong, or with `"preserve"` a layer takes statistics over
            channels, some of which would get more copies than others.

    Example:

    >>> layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> wide = widen(model, 1.5, init="preserve")
    >>> wide.layers[0].units
    12
    >>> x = np.ones((2, 4))
    >>> np.allclose(model(x), wide(x), atol=1e-5)
    True

    Source: copying channels is Net2WiderNet of Chen et al., "Net2Net", ICLR 2016; training
    wide and squeezing is from Ding et al., "Centripetal SGD", CVPR 2019.
    """
    if init not in INITS:
        raise ValueError(f"Expected `init` to be one of {INITS}. Received: {init!r}")
    check_number("noise", noise, "in [0, 1)", lambda share: 0 <= share < 1)
    if noise and init == "fresh":
        raise ValueError(
            f"Expected `noise` with init='preserve' only. Received: noise={noise}, init={init!r}"
        )
    check_count("seed", seed, 0)
    channel_map = trace_quietly(model, counted=True)
    warn_of_unknown(channel_map)
    rng = np.random.default_rng(seed)
    copies = _copies(channel_map, _factors(channel_map, factor, exclude), rng)
    if init == "preserve":
        _check_statistics(channel_map, copies)
    surgeon = Surgeon(channel_map, lambda units: np.repeat(np.arange(len(units)), copies[units]))
    wide = surgeon.operate()
    if init == "preserve":
        wide_map = trace_quietly(wide, counted=True)
        _copy_weights(channel_map, wide_map, copies, noise, rng, surgeon)
        samples = random_samples(model, channel_map.input_shapes)
        try:
            check_layers(_Copied(channel_map, wide_map, copies), wide, samples)
        except VerificationError:
            _check_finite(model)
            raise
    compile_alike(model, wide, list(surgeon.variables()))
    return wide


def _check_finite(model: keras.Model) -> None:
    """Raises if weights are such that no comparison of outputs can succeed."""
    for weight in model.weights:
        if "float" in weight.dtype and not np.isfinite(np.asarray(weight, np.float64)).all():
            raise ValueError(
                f"Weight '{weight.path}' of model '{model.name}' holds NaN or infinite values. "
                "Expected finite weights: take a checkpoint from before training diverged."
            )


def _factors(channel_map: ChannelMap, factor, exclude) -> np.ndarray:
    """The factor of each group."""
    given = factor if isinstance(factor, Mapping) else {"*": factor}
    for value in given.values():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise TypeError(
                "Expected `factor` to be a number, or a dictionary of numbers by layer. Received: "
                f"factor={factor!r}"
            )
        if not (value >= 1 and math.isfinite(value)):
            raise ValueError(f"Expected `factor` of at least 1. Received: factor={factor!r}")
    factors = np.ones(len(channel_map.groups))
    for name, value in given.items():
        paths = set(matching(channel_map, name, "factor"))
        for index, group in enumerate(channel_map.groups):
            if any(channel_map.creators[i].layer in paths for i in group.creators):
                factors[index] = value
    single = isinstance(exclude, str) or not isinstance(exclude, (list, tuple, set))
    for entry in (exclude,) if single else exclude:
        for path in matching(channel_map, entry, "exclude"):
            stay = channel_map.seen(channel_map.layer_units(path))
            for index, group in enumerate(channel_map.groups):
                if stay[group.units].any():
                    factors[index] = 1
    inside = channel_map.seen(channel_map.products.factors)  # heads, and channels inside of them
    for index, group in enumerate(channel_map.groups):
        if inside[group.units].any():
            factors[index] = 1
    return factors


def _copies(channel_map: ChannelMap, factors: np.ndarray, rng) -> np.ndarray:
    """How many channels each unit becomes, at least 1."""
    copies = np.ones(channel_map.count, np.int64)
    for group, factor in zip(channel_map.groups, factors, strict=True):
        for units in channel_map.blocks(group):
            total = math.ceil(factor * len(units) - 1e-9)
            more = rng.permutation(len(units))[: total % len(units)]
            copies[units] = total // len(units)
            copies[units[more]] += 1
    return copies


def _check_statistics(channel_map: ChannelMap, copies: np.ndarray) -> None:
    for call in channel_map.calls:
        counts = [np.unique(copies[tensor.names]) for tensor in call.mixed]
        if call.sums_channels and any(count.max() > 1 for count in counts):
            raise ValueError(
                f"'{call.path}' adds up channels, of which copies would count again: the outputs "
                "would change. `exclude` the layers before it, or take init='fresh'."
            )
        if call.mixes_channels and any(len(count) > 1 for count in counts):
            raise ValueError(
                f"'{call.path}' takes statistics over channels, of which some would count more "
                "often than others: the outputs would change. Take an integer `factor`, `exclude` "
                "the layers before it, or init='fresh'."
            )


def _copy_weights(channel_map, wide_map, copies, noise, rng, surgeon) -> None:
    """Gives the wide model copies of channels, and their readers' weights divided."""
    source = _sources(channel_map, wide_map, copies)

    def enlarge(variable, value):
        binding = channel_map.bindings.get(id(variable))
        for axis, units in binding.axes.items() if binding else ():
            wide_units = wide_map.bindings[id(twins[id(variable)])].axes[axis]
            at = _positions(units, wide_units, source, f"'{variable.path}'")
            value = tf.gather(value, at, axis=axis)
            if axis in binding.read and len(at) > len(units):
                value *= _divided(value, axis, at, noise, rng)
        return value

    twins = {id(old): new for old, new in surgeon.variables()}
    surgeon.transfer(enlarge)


class _Copied(Oracle):
    """The original as it is, of whose tensors the wide model has copies of channels."""

    def __init__(self, channel_map: ChannelMap, wide_map: ChannelMap, copies: np.ndarray):
        super().__init__(channel_map, UnitMap(np.arange(channel_map.count)))
        self.source, self.copies = _sources(channel_map, wide_map, copies), copies
        pairs = zip(channel_map.calls, wide_map.calls, strict=True)
        outputs = (row for a, b in pairs for row in zip(a.outputs, b.outputs, strict=True))
        self.wide = {id(old): new for old, new in outputs}

    def selection(self, traced):
        wide = self.wide.get(id(traced), traced)
        if wide is traced or (self.copies[traced.names] == 1).all():
            return []  # Of units between layers without a rule no source is known, either.
        axis = traced.varying[0]
        positions = _positions(traced.line(axis), wide.line(axis), self.source, "a tensor")
        return [(traced.axis_in_tensor(axis), positions)]


def _sources(channel_map: ChannelMap, wide_map: ChannelMap, copies: np.ndarray) -> np.ndarray:
    """For each unit of the wide model, the unit that it copies."""
    source = np.full(wide_map.count, -1)
    for old, new in zip(channel_map.creators, wide_map.creators, strict=True):
        source[new.units] = np.repeat(old.units, copies[old.units])
    bindings = zip(channel_map.bindings.values(), wide_map.bindings.values(), strict=True)
    for binding, wide in bindings:
        for axis, units in binding.axes.items():
            if (source[wide.axes[axis]] < 0).any():  # model inputs, which no layer creates
                source[wide.axes[axis]] = np.repeat(units, copies[units])
    return source


def _positions(
    units: np.ndarray, wide_units: np.ndarray, source: np.ndarray, of: str
) -> np.ndarray:
    """For each position of a wide axis, the position it copies: the n-th of a unit the n-th.

    `of` says whose axis it is, for the error.
    """
    nth, wide_nth = occurrences(units), occurrences(wide_units)
    most = nth.max() + 1
    keys = units * most + nth
    order = np.argsort(keys)
    wanted = source[wide_units] * most + wide_nth
    found = np.searchsorted(keys, wanted, sorter=order).clip(0, len(keys) - 1)
    if (keys[order[found]] != wanted).any():
        raise ValueError(
            f"Channels of {of} are coupled in another way where there are more of them, as behind "
            "a channel shuffle, so that copies cannot be told apart. `exclude` the layers before "
            "it, or take init='fresh'."
        )
    return order[found]


def _divided(value: tf.Tensor, axis: int, at: np.ndarray, noise: float, rng) -> tf.Tensor:
    """Shares of the copies of each position, which add up to 1."""
    rank = len(value.shape)
    counts = np.bincount(at)[at].astype(np.float64)
    shape = [-1 if i == axis else 1 for i in range(rank)]
    shares = np.broadcast_to(1 / counts.reshape(shape), value.shape)
    if noise:
        drawn = np.moveaxis(rng.normal(size=value.shape), axis, 0).reshape(len(at), -1)
        sums = np.zeros((at.max() + 1, drawn.shape[1]))
        np.add.at(sums, at, drawn)
        drawn -= (sums[at].T / counts).T  # the noise of all copies adds up to 0
        moved = np.moveaxis(np.empty(value.shape), axis, 0).shape
        shares = shares * (1 + noise * np.moveaxis(drawn.reshape(moved), 0, axis))
    return tf.constant(shares, value.dtype)
