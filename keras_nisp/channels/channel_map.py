"""What a trace finds: channels by name, what they are bound to, and how they are coupled.

A tensor carries an integer array of names that broadcasts to its shape without the
batch axis. Channels whose names are joined somewhere (a residual sum, a gate, a shared
layer) are one *unit*: they can only be removed together. Layers whose units overlap form
a *group*.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from keras_nisp.channels.named_tensor import Traced
from keras_nisp.channels.unit_map import occurrences
from keras_nisp.errors import several
from keras_nisp.keras_graph import calling, walking

if TYPE_CHECKING:
    from keras_nisp.channels.call import Call
    from keras_nisp.channels.tracer import Tracer


@dataclasses.dataclass(eq=False)
class Binding:
    """What the axes of one variable mean.

    Attributes:
        variable: the `keras.Variable`, or a constant array that an operation takes.
        layer: path of its layer.
        axes: names (after the trace: units) along each bound axis.
        read: axes that read channels, such as the input axis of a kernel; the others
            own them.
        create: axes that create channels, such as the output axis of a kernel.
        positions: number of positions at which each element is multiplied per sample: a
            kernel's FLOPs are its size times this. 0 for variables that are no kernels.
        passed: for calls that apply the kernel to each of some channels separately (to each head,
            say): how many of the positions belong to such a call, and the names of the channels.
        low_rank: for a kernel with LoRA, the two factors whose product is added to it, and their
            scale.
    """

    variable: Any
    layer: str
    axes: dict[int, np.ndarray]
    read: frozenset[int] = frozenset()
    create: frozenset[int] = frozenset()
    positions: int = 0
    low_rank: tuple = ()
    passed: list[tuple[int, list[np.ndarray]]] = dataclasses.field(default_factory=list)

    def put_units(self, units: np.ndarray) -> None:
        """Puts units in the place of names, once the trace has found them."""
        self.axes = {axis: units[names] for axis, names in self.axes.items()}
        self.passed = [(n, [units[line] for line in lines]) for n, lines in self.passed]

    def positions_of(self, keep: np.ndarray) -> int:
        """The number of positions at which elements are multiplied if only some units are kept."""
        gone = (count - kept_of(count, lines, keep) for count, lines in self.passed)
        return self.positions - sum(gone)

    @property
    def value(self) -> np.ndarray:
        """The value that the layer computes with: that of the variable, plus what LoRA adds."""
        value = np.asarray(self.variable)
        if not self.low_rank:
            return value
        first, second, scale = self.low_rank
        return value + scale * np.matmul(np.asarray(first), np.asarray(second))


@dataclasses.dataclass(frozen=True, eq=False)
class Creator:
    """The channels that one layer creates: `units[i]` is the unit of its i-th channel."""

    layer: str
    units: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Layers whose channels are coupled.

    Attributes:
        creators: indices of the creators, in the order of the walk.
        units: their units that may be removed, in the order of the first creator.
    """

    creators: tuple[int, ...]
    units: np.ndarray


class ChannelMap:
    """All that `trace` found out about a model.

    Attributes:
        model: the traced model.
        calls: the calls of its layers, in the order of the walk.
        bindings: a `Binding` for each variable, by the variable's `id`.
        whole_groups: indices of the calls of grouped convolutions that lose whole groups.
        constants: bindings of constant arrays that operations take.
        creators: the layers that create channels, in the order of the walk.
        groups: the coupled groups, in the order of the walk.
        count: number of units.
        units: the unit of each name.
        products: the units that stand for a combination of others, such as a channel inside a
            head. Groups hold only the others.
        input_shapes: sizes (without batch) for which FLOPs are counted.
        least: sets of units of which a minimum must stay: the units, the minimum and the reason.
        unknown: for reasons to hold units that are due to a missing rule, the layer without one.
        assumed: sizes that were assumed for inputs whose size is open, as text.
        model_inputs: the `Traced` inputs of the first call of each nested model, by its `id`.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> channel_map = trace(model)
    >>> channel_map.count, [creator.layer for creator in channel_map.creators]
    (15, ['hidden', 'dense'])
    """

    def __init__(
        self,
        model: keras.Model,
        tracer: "Tracer",
        calls: "list[Call]",
        inputs: list[Traced],
        outputs: list[Traced],
        model_inputs: dict[int, list[Traced]],
    ) -> None:
        solution = tracer.solve()
        self.units = units = solution.units
        self.model = model
        self.calls = calls
        self.inputs = inputs
        self.outputs = outputs
        self.input_shapes = [tensor.shape for tensor in inputs]
        self.model_inputs = model_inputs
        self.assumed: tuple[str, ...] = ()
        self.whole_groups = tuple(i for i, call in enumerate(calls) if call.whole_groups)
        self.count = int(units.max(initial=-1)) + 1
        self.bindings = tracer.bindings
        self.constants = [binding for call in calls for binding in call.constants.values()]
        bindings = (*self.bindings.values(), *self.constants)
        self._lines = [line for binding in bindings for line in binding.axes.values()]
        # Parts of a split may take different ways although no kernel tells them apart.
        self._lines += [tensor.names.ravel() for call in calls for tensor in call.outputs]
        tensors = [t for call in calls for t in (*call.inputs, *call.outputs)]
        distinct = {id(tensor): tensor for tensor in (*inputs, *tensors)}.values()
        for part in (bindings, calls, distinct):
            for named in part:
                named.put_units(units)
        self.creators = [Creator(path, units[names]) for path, names in tracer.creators]
        self.products = products = solution.products
        held = [(units[names], why) for names, why in tracer.fixed]
        self.reasons = reasons_by_unit(
            (np.concatenate([found.ravel(), products.deciding(found)]), why)
            for found, why in [*held, *solution.held]
        )
        self.least = [(units[names], count, why) for names, count, why in tracer.least]
        self.unknown = tracer.unknown
        made = [products.deciding(creator.units) for creator in self.creators]
        self.groups = _groups(made, self.free, self.count)

    @functools.cached_property
    def free(self) -> np.ndarray:
        """Boolean per unit: whether it may be removed, alone or with a factor."""
        free = np.ones(self.count, bool)
        free[list(self.reasons)] = False
        free[self.products.units] = False
        np.logical_or.at(free, self.products.units, free[self.products.factors])
        return free

    def are_free(self, names: np.ndarray) -> bool:
        """Whether any channels of these names, as the trace gave them, may be removed."""
        return bool(self.free[self.units[names]].any())

    def removing(self, units: np.ndarray) -> np.ndarray:
        """Boolean per unit: whether it goes if these do."""
        return self.products.gone(self.seen(units))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the structure: the same for models built alike, under any names."""
        digest = hashlib.sha256()
        for call in self.calls:
            digest.update(type(call.layer).__name__.encode())
        for binding in (*self.bindings.values(), *self.constants):
            digest.update(repr(tuple(binding.variable.shape)).encode())
            for axis, units in sorted(binding.axes.items()):
                digest.update(repr((axis, axis in binding.read)).encode())
                digest.update(np.ascontiguousarray(units, np.int64).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def paths(self) -> dict[str, list[str]]:
        """The paths of the layers that a name stands for. It may be the name of a layer, with or
        without the names of the models that hold it, the name of such a model, or the name of
        channels that appear in no tensor ("attention:heads")."""
        paths: dict[str, list[str]] = {}
        for call in self.calls:
            parts = call.path.split("/")
            holders = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
            for name in {*holders, call.layer.name}:
                paths.setdefault(name, []).append(call.path)
        for creator in self.creators:
            for name in (creator.layer, creator.layer.rpartition("/")[2]):
                if ":" in name:
                    paths.setdefault(name, []).append(creator.layer)
        return paths

    def blocks(self, group: Group) -> list[np.ndarray]:
        """The units of a group, divided by where they occur.

        Units of one block lie in the same tensors and along the same axes of the same variables,
        equally often: only such units can be exchanged or merged. A group has several blocks if
        layers are coupled by a concatenation, or are split.
        """
        signatures = self._signatures[group.units]
        distinct, first = np.unique(signatures, return_index=True)
        return [group.units[signatures == distinct[i]] for i in np.argsort(first)]

    @functools.cached_property
    def _signatures(self) -> np.ndarray:
        """A number per unit that says in which tensors and along which axes it lies, how often, and
        by which of its names: a part of a tensor may hold the first half of one unit, and the
        second of another."""
        rng = np.random.default_rng(0)
        signatures = np.zeros(self.count, np.uint64)
        place = occurrences(self.units)
        for names in self._lines:
            units = self.units[names]
            salt = rng.integers(2**63, size=2, dtype=np.uint64)
            number = occurrences(units).astype(np.uint64) * salt[0] + place[names].astype(np.uint64)
            number = (number ^ (number >> np.uint64(29)) ^ salt[1]) * np.uint64(0xBF58476D1CE4E5B9)
            np.add.at(signatures, units, number ^ (number >> np.uint64(32)))
        products = self.products
        np.add.at(signatures, products.factors, signatures[products.units])
        return signatures

    def walk(self, inputs: list, visit: Callable) -> Any:
        """Walks the model again, call by call.

        Args:
            inputs: values for the model's inputs, flat.
            visit: `visit(call, args, kwargs)` is given each `Call` and the values of its arguments,
                and returns the values of its outputs.

        Returns:
            The values of the model's outputs.
        """
        calls = iter(self.calls)
        with calling.fresh_states(self.model):
            return walking.walk(
                self.model, inputs, lambda site, args, kwargs: visit(next(calls), args, kwargs)
            )

    def accumulate(self, units: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sums values per unit.

        Args:
            units: integer array.
            values: array of its shape.

        Returns:
            1-D float64 array with one sum per unit of the map.
        """
        return np.bincount(units.ravel(), values.ravel().astype(np.float64), minlength=self.count)

    def seen(self, units: np.ndarray) -> np.ndarray:
        """Boolean per unit: whether it occurs in `units`."""
        seen = np.zeros(self.count, bool)
        seen[units] = True
        return seen

    def check_groups(self) -> None:
        """Raises if no channel may be removed; the error says what holds the channels."""
        if self.groups:
            return
        held = []
        for creator in sorted(self.creators, key=lambda creator: -len(creator.units)):
            why = {r for unit in creator.units.tolist() for r in self.reasons.get(unit, ())}
            held.append(f"'{creator.layer}' ({len(creator.units)}: {'; '.join(sorted(why))})")
        text = f"Model '{self.model.name}' has no channels that may be removed"
        text += f": {several(held, what='layers')}." if held else ": no layer makes any."
        if self.unknown:
            text += (
                " `keras_nisp.as_functional` converts layers that are made of layers and "
                "operations of Keras, and says of each other one why it cannot."
            )
        raise ValueError(text)

    def check_weights(self) -> None:
        """Raises unless all weights that channels are bound to are finite."""
        for binding in self.bindings.values():
            value = tf.convert_to_tensor(binding.variable)
            if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
                bad = np.count_nonzero(~np.isfinite(np.asarray(tf.cast(value, tf.float64))))
                raise ValueError(
                    f"Expected finite weights. Received model '{self.model.name}', in which "
                    f"{bad} of {int(tf.size(value))} values of '{binding.variable.path}' (layer "
                    f"'{binding.layer}') are NaN or infinite. Load the weights again, from before "
                    "training diverged."
                )

    def layer_units(self, path: str) -> np.ndarray:
        """All units that a layer creates or passes on, including those that appear in no tensor.

        Args:
            path: path of a layer, or of channels that appear in no tensor ("attention:heads").
        """
        calls = [call for call in self.calls if call.path == path]
        arrays = [tensor.names for call in calls for tensor in call.outputs]
        arrays += [units for call in calls for units in call.hidden.values()]
        arrays += [creator.units for creator in self.creators if creator.layer == path]
        units = np.concatenate([array.ravel() for array in arrays])
        return np.unique(np.concatenate([units, self.products.deciding(units)]))


def kept_of(count: int, lines: list[np.ndarray], keep: np.ndarray) -> int:
    """How many of the elements of a box are left.

    Args:
        count: of all of them.
        lines: units along some of its axes.
        keep: boolean per unit.
    """
    for line in lines:
        count = count // len(line) * int(np.count_nonzero(keep[line]))
    return count


def reasons_by_unit(held: Iterable[tuple[np.ndarray, str]]) -> dict[int, list[str]]:
    """For every unit that is held by something, why.

    Args:
        held: pairs of an array of units and a reason.
    """
    reasons: dict[int, list[str]] = {}
    for units, reason in held:
        for unit in np.unique(units).tolist():
            known = reasons.setdefault(unit, [])
            if reason not in known:
                known.append(reason)
    return reasons


def _groups(creators: list[np.ndarray], free: np.ndarray, count: int) -> list[Group]:
    """Connects creators that share units which may be removed."""
    if not creators:
        return []
    owned = [np.unique(units[free[units]]) for units in creators]
    rows = np.repeat(np.arange(len(creators)), [len(units) for units in owned])
    columns = np.concatenate(owned) + len(creators)
    size = len(creators) + count
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), (size, size))
    labels = connected_components(links, directed=False)[1][: len(creators)]
    groups = []
    for label in dict.fromkeys(labels.tolist()):
        members = np.flatnonzero(labels == label)
        units = np.concatenate([creators[i] for i in members])
        units = units[free[units]]
        if len(units):
            order = np.sort(np.unique(units, return_index=True)[1])
            groups.append(Group(tuple(members.tolist()), units[order]))
    return groups
