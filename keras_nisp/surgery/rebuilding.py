"""Rebuilds a model with other widths: without channels, or with channels merged."""

import random
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.centripetal.deviation import deviation
from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.unit_map import UnitMap, resized_arguments
from keras_nisp.data.random_samples import random_samples
from keras_nisp.errors import NotCollapsedError, warn
from keras_nisp.keras_graph import copying, keras_models, layer_state
from keras_nisp.keras_graph.loading import loading_fault, warn_of_names
from keras_nisp.keras_graph.penalties import initializers_of_one_size
from keras_nisp.keras_graph.wrappers import WRAPPED, is_wrapper, rewrap
from keras_nisp.plans.plan import Plan, check_is_plan
from keras_nisp.surgery.compiling import compile_alike
from keras_nisp.surgery.verification import LOSSLESS, output_change


def rebuild(
    model: keras.Model,
    plan: Plan,
    *,
    optimizer_state: bool = False,
    force: bool = False,
    verbose: int = 1,
) -> keras.Model:
    """Builds the smaller model that a plan describes.

    Channels that the plan removes are dropped. Channels that it merges become one: for
    values that the channels own (filters, biases, BatchNormalization) the mean is kept, for
    weights by which later layers read them the sum.

    Args:
        model: the model the plan was made for, or one of the same structure. It is not
            changed.
        plan: a plan from `plan_pruning`, `plan_merging` or `Plan.load`.
        optimizer_state: whether to carry over the optimizer's slots (momentum, moments) and
            iterations, so that training continues without a jump. Otherwise the optimizer
            starts fresh.
        force: whether to merge clusters that are not identical, too.
        verbose: 1 prints one line about a merge: the deviation inside clusters, and the
            change of the outputs on a random sample.

    Returns:
        A plain Keras model of the same class, with the same inputs, outputs, layer names
        and compile configuration; only widths differ. It does not depend on this package.

    Raises:
        TypeError: the model is not functional or Sequential.
        PlanMismatchError: the plan is for a model of another structure.
        NotCollapsedError: merging would change the outputs: clusters are not identical yet.
        ValueError: the rebuilt model could not be loaded after saving, although `model` can.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> small = rebuild(model, plan_pruning(model, Magnitude(), ratio=0.5))
    >>> small.layers[0].units
    4
    """
    check_is_plan(plan)
    channel_map = plan.trace(model)
    unit_map = plan.unit_map(channel_map)
    if not plan.merges:
        return rebuild_traced(channel_map, unit_map, optimizer_state)
    measured = deviation(model, plan)
    if measured.relative > LOSSLESS and not force:
        raise NotCollapsedError(_not_collapsed(model, str(measured)))
    small = rebuild_traced(channel_map, unit_map, optimizer_state)
    change = output_change(channel_map, small, random_samples(model, channel_map.input_shapes))
    text = f"{measured}; outputs change by {change.relative:.1e} of their scale"
    if not change.ok and not force:
        text += (
            " (BatchNormalization statistics may differ still: CentripetalMonitor levels them, but "
            "a callback may have restored older weights since)"
        )
        raise NotCollapsedError(_not_collapsed(model, text))
    if verbose:
        print(f"{model.name} merged: {text}")
    return small


def _check_loads(model: keras.Model, small: keras.Model) -> None:
    """Raises if a file of the rebuilt model could not be loaded although one of the original can;
    warns if it would compute something else.

    Tried by config alone, under the models' own classes; nothing is written.
    """
    warn_of_names(small)
    state = random.getstate()  # from which initializers draw their seeds
    try:
        fault = loading_fault(small)
        if fault is None or loading_fault(model) is not None:
            return
    finally:
        random.setstate(state)
    raise ValueError(
        f"Model '{model.name}' can be saved and loaded, but the model that was rebuilt from it "
        f"could be saved only: {fault}. Let `get_config` of that class give what its `__init__` "
        "takes at the new widths, or `exclude` the layer from the plan."
    )


def _warn_of_copies(model: keras.Model, twins: list[tuple]) -> None:
    """Warns of weights that several layers held and of which each copy has its own now."""
    copies: dict[int, set[int]] = {}
    for old, new in twins:
        copies.setdefault(id(old), set()).add(id(new))
    paths = {old.path for old, _ in twins if len(copies[id(old)]) > 1}
    if paths:
        warn(
            f"Several layers of model '{model.name}' hold the same weights: {sorted(paths)}. In "
            "the smaller model each layer has a copy, equal until it is trained. To keep one, let "
            "a single layer hold it, and call that wherever it is used."
        )


def _not_collapsed(model, text: str) -> str:
    return (
        f"Merging model '{model.name}' would not be free of loss: {text}. Train it longer with "
        "CentripetalSGD or with a larger strength (`plan.check` says which), or pass "
        "`force=True` and fine-tune."
    )


def rebuild_traced(
    channel_map: ChannelMap, unit_map: UnitMap, optimizer_state: bool = False
) -> keras.Model:
    """`rebuild` for a traced model and what becomes of its units."""
    surgeon = Surgeon(channel_map, lambda units: np.flatnonzero(unit_map.keep[units]))
    small = surgeon.operate()

    def resize(variable, value):
        binding = channel_map.bindings.get(id(variable))
        return value if binding is None else unit_map.resized(binding, value)

    surgeon.transfer(resize)
    twins = list(surgeon.variables())
    _warn_of_copies(channel_map.model, twins)
    compile_alike(channel_map.model, small, twins, resize if optimizer_state else None)
    _check_loads(channel_map.model, small)
    return small


class Surgeon:
    """Clones layers at other widths and carries variables over.

    Args:
        channel_map: the traced model.
        sources: `sources(units)` gives, for each new position of an axis with these units,
            the old one.
    """

    def __init__(self, channel_map: ChannelMap, sources: Callable[[np.ndarray], np.ndarray]):
        self.map = channel_map
        self.sources = sources
        self.calls = {id(call.layer): call for call in reversed(channel_map.calls)}
        self.by_node = {call.node: call for call in reversed(channel_map.calls)}
        self.clones: dict[int, keras.Operation] = {}
        self.models: list[tuple[keras.Model, keras.Model]] = []

    def width(self, units: np.ndarray) -> int:
        """How many positions an axis with these units gets."""
        return len(self.sources(units.ravel()))

    def operate(self) -> keras.Model:
        """The model at its new widths, with fresh weights."""
        model = self.map.model
        return self.clone_model(model, [tensor.shape for tensor in keras_models.body(model).inputs])

    def clone_model(self, model, shapes):
        inputs = copying.new_inputs(model, shapes)
        self.models.append((model, copying.clone_model(model, inputs, self.clone, self._arguments)))
        return self.models[-1][1]

    def _arguments(self, node, args, kwargs):
        """What to call a clone with: constants and sizes change with the channels."""
        call = self.by_node.get(id(node.outputs[0]))
        if call is None:
            return args, kwargs
        return resized_arguments(call, args, kwargs, self.sources)

    def clone(self, operation):
        if id(operation) not in self.clones:
            if keras_models.is_graph(operation):
                clone = self.clone_model(operation, self._nested_shapes(operation))
            elif id(operation) not in self.calls and is_wrapper(operation):
                clone = rewrap(operation, self.clone)
                for name in WRAPPED[type(operation)]:
                    self.clones[id(getattr(operation, name))] = getattr(clone, name)
            else:
                clone = self._clone_layer(operation)
            self.clones[id(operation)] = clone
        return self.clones[id(operation)]

    def _nested_shapes(self, model) -> list[tuple]:
        """Input shapes of a nested model, which may get fewer channels."""
        shapes = []
        for tensor, traced in zip(
            keras_models.body(model).inputs, self.map.model_inputs[id(model)], strict=True
        ):
            shape = list(tensor.shape)
            for axis in traced.varying:
                shape[traced.axis_in_tensor(axis)] = self.width(traced.line(axis))
            shapes.append(tuple(shape))
        return shapes

    def _clone_layer(self, layer):
        call = self.calls[id(layer)]
        if not self._changes(call):
            return copying.copy_layer(layer)
        before = copying.layer_config(layer)
        after = call.ask("resize", copying.layer_config(layer), self.width)
        after |= dict.fromkeys(initializers_of_one_size(layer, after), "zeros")  # values follow
        return copying.copy_layer(layer, **copying.changes(before, after))

    def _changes(self, call) -> bool:
        """Whether any axis of a layer gets another width."""
        names = [*(tensor.names for tensor in (*call.inputs, *call.outputs)), *call.hidden.values()]
        return any(self.width(array) != array.size for array in names)

    def pairs(self):
        """Call, old and new layer of everything that is not taken apart."""
        for call in self.calls.values():
            clone = self.clones.get(id(call.layer))
            if isinstance(clone, keras.Layer):  # what a wrapper does between its layers has none
                yield call, call.layer, clone

    def variables(self):
        """Old and new variable of every layer."""
        for _, old, new in self.pairs():
            yield from layer_state.paired_variables(old, new)

    def transfer(self, resize: Callable) -> None:
        """Gives the clones what the layers hold, of each variable `resize(variable, value)`."""
        for call, old, new in self.pairs():

            def value_of(variable, call=call):
                value = resize(variable, tf.convert_to_tensor(variable))
                return call.ask("convert", variable, value, self.width)

            layer_state.carry(old, new, value_of, not self._changes(call))
        for old, new in self.models:
            layer_state.carry_own(old, new, set(self.clones))
