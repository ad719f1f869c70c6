"""Collects what a trace finds, call by call: names, joins, what is fixed, bindings."""

import math
from collections.abc import Callable, Iterable

import keras
import numpy as np

from keras_nisp.channels.call import Call
from keras_nisp.channels.channel_map import Binding
from keras_nisp.channels.grids import Grids, Solution
from keras_nisp.channels.named_tensor import Traced, compact, varying
from keras_nisp.channels.registry import is_registered, rule_for
from keras_nisp.channels.rule import Barrier, meaningful
from keras_nisp.errors import RuleError
from keras_nisp.keras_graph import penalties, walking

Place = tuple[int, int]  # number of a call, and of one of its outputs


class Tracer:
    """Collects names, joins, fixed names and bindings during the walk.

    Args:
        samples: how many go through a layer at once where it is tried out.
        split: outputs whose channels, laid out along several axes, are to be told apart along each
            of them.
        counted: whether channels are to be merged or copied, so that it matters how often each
            counts.
    """

    def __init__(self, samples: int = 1, split: Iterable[Place] = (), counted: bool = False):
        self.samples, self.split, self.counted = samples, set(split), counted
        self.joined: list[Place] = []  # outputs whose channels became one along an axis
        self.outer: dict[Place, list[np.ndarray]] = {}  # of those told apart, all but the last axis
        self.count = 0
        self.grids = Grids(self.fresh)
        self.first: list[np.ndarray] = []
        self.second: list[np.ndarray] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.least: list[tuple[np.ndarray, int, str]] = []  # how many must stay, and why
        self.unknown: dict[str, str] = {}  # reasons for want of a rule, and for what it is wanted
        self.bindings: dict[int, Binding] = {}
        self.created: dict[tuple[int, str], np.ndarray] = {}
        self.creators: list[tuple[str, np.ndarray]] = []
        self.made: dict[int, Call] = {}  # what gave a tensor, by its `id`
        self.cached: dict[int, Traced] = {}  # keys and values that attention keeps, likewise

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

    def is_fixed(self, names: np.ndarray) -> bool:
        """Whether all of these are known to stay: the channels of an input, say."""
        fixed = [known.ravel() for known, _ in self.fixed]
        return bool(fixed) and bool(np.isin(names, np.concatenate(fixed)).all())

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

    def traced(
        self,
        names: np.ndarray,
        shape: tuple[int, ...],
        batch: int = 1,
        place: Place | None = None,
    ) -> Traced:
        """A tensor with these names, which is a box after any removal.

        Names that vary along several axes must be products, of what lies along each of them. Others
        (a Dense layer reshaped to a feature map) would leave holes: positions that share the last
        of these axes become one channel, unless they are to be told apart at this `place`.
        """
        names = compact(names)
        axes = varying(names)
        if not axes:
            return Traced(names, shape, batch)
        split = len(axes) > 1 and place in self.split
        if (lines := self.grids.laid_out(names, split)) is not None:
            if place is not None and split:
                self.outer[place] = [lines[axis] for axis in axes[:-1]]
            return Traced(names, shape, batch, lines)
        if len(axes) < 2:
            return Traced(names, shape, batch)
        if place is not None:
            self.joined.append(place)
        rows = np.moveaxis(names, axes[-1], -1)
        laid = [-1 if axis == axes[-1] else 1 for axis in range(names.ndim)]
        rows = rows.reshape(-1, rows.shape[-1])
        self.join(rows[:1], rows[1:])
        return Traced(rows[0].reshape(laid), shape, batch)

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

    def call(
        self,
        site: walking.Site,
        args: tuple,
        kwargs: dict,
        whole_groups: Callable | None = None,
        number: int | None = None,
    ) -> Call:
        """Names what one call gives.

        Args:
            site, args, kwargs: from the walk.
            whole_groups: whether a call loses whole groups.
            number: of the call, in the order of the walk.
        """
        kwargs = meaningful(kwargs)
        flat = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Traced)]
        shapes, axes = walking.output_shapes(site, args, kwargs, _shape_of)
        rule = rule_for(site.operation, args, kwargs)
        call = Call(site.operation, site.path, rule, flat, shapes, self, axes, node=site.node)
        call.samples = self.samples
        call.whole_groups = whole_groups is not None and whole_groups(call)
        names = _trace_call(call, args, kwargs)
        call.reads &= site.takes_numbers  # indices and counts are no responses
        places = [None if number is None else (number, index) for index in range(len(shapes))]
        call.outputs = [
            self.traced(n, shape, call.batch, place)
            for n, shape, place in zip(names, call.output_shapes, places, strict=True)
        ]
        # Calls inside of a wrapper have no node of their own.
        dtypes = [x.dtype for x in site.node_outputs] or [call.compute_dtype] * len(shapes)
        for tensor, axis, dtype in zip(call.outputs, call.batch_axes, dtypes, strict=True):
            tensor.batch_axis, tensor.dtype = axis, dtype
        self._point(call)
        self.made.update((id(tensor), call) for tensor in call.outputs)
        self._fix_sizes_of_penalties(call)
        return call

    def rivals(self, call: Call, names: np.ndarray, count: int = 0) -> None:
        """Says that channels are weighed against each other: they may go, but are never merged or
        copied, since each counts in the others.

        Args:
            call: of what weighs them.
            names: 1-D, of the channels.
            count: how many are chosen, and so must stay.
        """
        reason = f"'{call.path}' chooses {count} of them"
        if self.counted:
            call.fix(names, f"is one of those that '{call.path}' weighs against each other")
        if count >= len(names):
            call.fix(names, f"{reason}, which is all")
        elif count > 1:
            self.least.append((names, count, reason))

    def _point(self, call: Call) -> None:
        """Says which channels the outputs are indices of. Those of which it is not known what
        becomes of their indices are fixed: removals would change these."""
        if call.points_at is not None:
            for tensor, names in zip(call.outputs, call.points_at, strict=True):
                tensor.points_at = names
            return
        why = "which computes with it (`one_hot` and `take_along_axis` are followed)"
        if isinstance(call.rule, Barrier):
            why = call.rule.reason
        reason = f"is chosen by an index that enters '{call.path}', {why}"
        for tensor in call.inputs:
            if tensor.points_at is not None:
                self.fixed.append((np.unique(tensor.points_at), reason))

    def _fix_sizes_of_penalties(self, call: Call) -> None:
        """Fixes channels of which a regularizer or constraint of a user takes no fewer."""
        found = [
            (penalty, tensor.with_batch(1), call.layer.compute_dtype, tensor.axis_in_tensor(axis),
             tensor.line(axis))
            for penalty in penalties.of_outputs(call.layer)
            for tensor in call.outputs
            for axis in tensor.varying
        ]  # fmt: skip
        for weight in call.weights:
            if (binding := self.bindings.get(id(weight))) is not None:
                shape, dtype = tuple(weight.shape), weight.dtype
                found += [
                    (penalty, shape, dtype, *axis)
                    for penalty in penalties.of_weight(weight)
                    for axis in binding.axes.items()
                ]
        for penalty, shape, dtype, axis, names in found:
            if (fault := penalties.refusal(penalty, shape, axis, dtype)) is not None:
                kind = getattr(penalty, "__name__", type(penalty).__name__)
                self.fixed.append(
                    (names, f"are as many as {kind} of '{call.path}' takes ({fault})")
                )

    def follow(self, model: keras.Model, inputs: list[Traced]) -> tuple[list[Traced], list[Call]]:
        """The outputs of a graph that a layer holds inside, and its calls."""
        calls: list[Call] = []

        def visit(site, args, kwargs):
            calls.append(self.call(site, args, kwargs))
            return calls[-1].outputs

        return keras.tree.flatten(walking.walk(model, inputs, visit)), calls

    def solve(self) -> Solution:
        """The unit of every name, and which of them are products."""
        nothing = np.zeros(0, int)
        self.fixed += [(names, "is alone in a tensor") for names in self.grids.needed]
        fixed, made = ([names for names, _ in self.fixed], [names for _, names in self.creators])
        arrays = (self.first, self.second, fixed, made)
        flat = (np.concatenate([nothing, *map(np.ravel, each)]) for each in arrays)
        return self.grids.solve(self.count, *flat)


def _shape_of(value) -> tuple | None:
    return value.with_batch(None) if isinstance(value, Traced) else None


def _trace_call(call: Call, args, kwargs) -> list[np.ndarray]:
    """The names of a call's outputs, by its rule; fixed where the rule does not reach."""
    if any(tensor.batch_axis for tensor in call.inputs) and not _follows_batch(call, args):
        return call.fix_all("which takes a tensor whose batch axis is not its first")
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


def _follows_batch(call: Call, args) -> bool:
    """Whether the rule holds wherever the batch axis lies: for numbers one by one it does."""
    shapes = {(tensor.batch_axis, tensor.rank) for tensor in call.inputs}
    arrays = any(np.ndim(x) for x in keras.tree.flatten(args) if not isinstance(x, Traced))
    return call.rule.moves_batch or (call.rule.elementwise and len(shapes) == 1 and not arrays)


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
