"""Parameters, FLOPs, memory of activations and cached keys of a model, for any removal."""

import dataclasses
import math
from collections.abc import Iterable

import keras
import numpy as np

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import ChannelMap, kept_of
from keras_nisp.channels.tracing import InputShape, trace
from keras_nisp.errors import several
from keras_nisp.io.shown import Shown
from keras_nisp.io.tables import Column, render_table

MOST_NAMED = 8  # layers in a note


@dataclasses.dataclass(frozen=True)
class Cost:
    """Costs of a layer or model.

    Attributes:
        parameters: number of weights, including those that are not trained.
        flops: multiply-adds of convolutions and dense layers for one sample, as the
            papers count them (one multiplication with its addition is one), and of products of
            tensors, as in attention. A number that is looked up in a table counts as one.
        memory: bytes of the outputs of all layers for one sample.
        cache: bytes of the keys and values of attention for one position of one sample: by how
            much the memory of a decoder grows with every token that it generates. All attention
            layers count, also those over another sequence or in an encoder, since a model does not
            tell which ones generate. Tensors that several layers share count once; heads that are
            repeated for groups of queries count once as well.
    """

    parameters: int = 0
    flops: int = 0
    memory: int = 0
    cache: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.memory + other.memory,
            self.cache + other.cache,
        )


class CostModel:
    """Costs as a function of which units are kept; nothing is built.

    Args:
        channel_map: the traced model.
    """

    def __init__(self, channel_map: ChannelMap) -> None:
        self.channel_map = channel_map
        self._bindings = list(channel_map.bindings.values())
        self._factors = [
            int(np.prod([n for i, n in enumerate(b.variable.shape) if i not in b.axes], initial=1))
            for b in self._bindings
        ]
        self._unbound = [
            (call.path, int(np.prod(weight.shape)))
            for call in {id(call.layer): call for call in channel_map.calls}.values()
            for weight in call.weights
            if id(weight) not in channel_map.bindings
        ]

    @property
    def everything(self) -> np.ndarray:
        """All units kept."""
        return np.ones(self.channel_map.count, bool)

    def flops(self, keep: np.ndarray) -> int:
        """Multiply-adds for one sample if only the units of the boolean array are kept."""
        sizes = self._sizes(keep, [b.positions > 0 for b in self._bindings])
        pairs = zip(sizes, self._bindings, strict=True)
        kernels = sum(size * b.positions_of(keep) for size, b in pairs if size)
        return kernels + sum(products(call, keep) for call in self.channel_map.calls)

    def parameters(self, keep: np.ndarray) -> int:
        """Number of weights if only these units are kept."""
        return sum(self._sizes(keep)) + sum(count for _, count in self._unbound)

    def memory(self, keep: np.ndarray) -> int:
        """Bytes of the outputs of all layers for one sample, if only these units are kept."""
        return sum(_output_bytes(call, keep) for call in self.channel_map.calls)

    def cache(self, keep: np.ndarray) -> int:
        """Bytes of the keys and values that attention keeps for one position, likewise."""
        return sum(_cached_bytes(call, keep) for call in self.channel_map.calls)

    @property
    def in_cache(self) -> np.ndarray:
        """Boolean per unit: whether keys or values that attention keeps get fewer without it."""
        cached = [lines for call in self.channel_map.calls for _, lines, _ in call.cached]
        units = np.concatenate([np.array([], int), *(line for lines in cached for line in lines)])
        return self.channel_map.seen(self.channel_map.products.deciding(units))

    def _sizes(self, keep, wanted: Iterable[bool] | None = None) -> list[int]:
        wanted = wanted or [True] * len(self._bindings)
        return [
            factor * int(np.prod([np.count_nonzero(keep[u]) for u in b.axes.values()])) if w else 0
            for factor, b, w in zip(self._factors, self._bindings, wanted, strict=True)
        ]

    def layers(self, keep: np.ndarray) -> dict[str, Cost]:
        """Costs of every layer, by path, in the order of the walk."""
        costs = {call.path: Cost() for call in self.channel_map.calls}
        for call in self.channel_map.calls:
            memory, cache = _output_bytes(call, keep), _cached_bytes(call, keep)
            costs[call.path] += Cost(0, products(call, keep), memory, cache)
        for size, binding in zip(self._sizes(keep), self._bindings, strict=True):
            costs[binding.layer] += Cost(size, size * binding.positions_of(keep))
        for path, count in self._unbound:
            costs[path] += Cost(count)
        return costs


def products(call: Call, keep: np.ndarray) -> int:
    """What a call multiplies without a kernel, or looks up."""
    return sum(kept_of(count, lines, keep) for count, lines in call.multiplied)


def _output_bytes(call: Call, keep: np.ndarray) -> int:
    dtype, elements = keras.backend.standardize_dtype(call.compute_dtype), 0
    for tensor in call.outputs:
        repeats = tensor.batch * math.prod(tensor.shape) // max(tensor.names.size, 1)
        elements += int(np.count_nonzero(keep[tensor.names])) * repeats
    return elements * _bytes(dtype)


def _cached_bytes(call: Call, keep: np.ndarray) -> int:
    return sum(kept_of(count, lines, keep) * _bytes(dtype) for count, lines, dtype in call.cached)


def _bytes(dtype: str) -> int:
    if dtype == "string":
        return 0  # as long as its words are
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


@dataclasses.dataclass(frozen=True, repr=False)
class Profile(Shown):
    """Costs of a model; `print` it for a table.

    Attributes:
        model: the model's name.
        layers: `Cost` of every layer, by path.
        input_shapes: input sizes for which FLOPs and memory are counted.
        notes: sentences about layers that are not counted, and about assumed sizes.
    """

    model: str
    layers: dict[str, Cost]
    input_shapes: list[tuple[int, ...]]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Cost:
        return sum(self.layers.values(), Cost())

    def __str__(self) -> str:
        titles = {"parameters": "parameters", "flops": "FLOPs", "memory": "activations, bytes"}
        if self.total.cache:
            titles["cache"] = "keys and values, bytes"
        columns = [Column("layer"), *(Column(title, True) for title in titles.values())]
        rows = [
            (path, *(getattr(cost, word) for word in titles))
            for path, cost in (*self.layers.items(), ("total", self.total))
        ]
        title = f"{self.model}, input {', '.join(map(str, self.input_shapes))}"
        return "\n".join([render_table(title, columns, rows[:-1], rows[-1:]), *self.notes])


def profile(model: keras.Model, input_shape: InputShape | None = None) -> Profile:
    """Counts parameters, FLOPs, activation memory and cached keys and values of each layer.

    FLOPs are multiply-adds for one sample: those of convolutions and dense layers, counted as in
    the pruning papers, so that reductions can be compared with published ones, and those of
    products of tensors, as in attention.

    Args:
        model: a functional or Sequential model.
        input_shape: shape of one sample, for models that leave their input size open
            (assumed otherwise: 224 for images, 128 for sequences).

    Returns:
        A `Profile`.

    Raises:
        TypeError, ValueError: see `trace`.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    >>> profile(model).total.flops
    3888
    """
    channel_map = trace(model, input_shape)
    costs = CostModel(channel_map)
    layers = costs.layers(costs.everything)
    return Profile(model.name, layers, channel_map.input_shapes, tuple(notes(channel_map)))


def notes(channel_map: ChannelMap) -> list[str]:
    """What costs leave out of account, and which sizes were assumed, in sentences."""
    found = []
    if names := uncounted(channel_map):
        rows = several((f"'{path}' ({kind})" for path, (kind, _) in names.items()), MOST_NAMED)
        held, total = sum(count for _, count in names.values()), channel_map.model.count_params()
        share = f" They hold {held:,} of {total:,} parameters." if held else ""
        found.append(f"FLOPs do not count what these compute: {rows}.{share}")
    if channel_map.assumed:
        found.append(
            f"Sizes are assumed: {', '.join(channel_map.assumed)}. Pass `input_shape=` for others."
        )
    return found


def uncounted(channel_map: ChannelMap) -> dict[str, tuple[str, int]]:
    """Class and number of parameters of each layer or operation whose products no rule counts, by
    path."""
    found = {}
    for call in channel_map.calls:
        free = [w for w in call.weights if id(w) not in channel_map.bindings]
        kernels = any(len(weight.shape) > 1 for weight in free)
        if getattr(call.rule, "multiplies", False) or kernels:
            held = sum(int(np.prod(weight.shape)) for weight in free)
            found[call.path] = (type(call.layer).__name__, held)
    return found
