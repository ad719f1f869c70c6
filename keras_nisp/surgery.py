"""Rebuilds a model with fewer channels."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp import graph
from keras_nisp.channels import ChannelMap
from keras_nisp.importance.base import Importance
from keras_nisp.plan import Plan
from keras_nisp.planning import plan_pruning
from keras_nisp.recalibration import recalibrate
from keras_nisp.tracing import trace
from keras_nisp.verification import verify_traced


def rebuild(model: keras.Model, plan: Plan, *, optimizer_state: bool = False) -> keras.Model:
    """Builds the smaller model that a plan describes.

    Args:
        model: the model the plan was made for, or one of the same structure. It is not
            changed.
        plan: from `plan_pruning` or `Plan.load`.
        optimizer_state: carry the optimizer's slots (momentum, moments) and iterations
            over, so that training goes on without a jump. Otherwise the optimizer
            starts afresh.

    Returns:
        A plain Keras model of the same class, with the same inputs, outputs, layer names
        and compile configuration; only widths differ. It needs this package for
        nothing.

    Raises:
        TypeError: the model is not functional or Sequential.
        PlanMismatchError: the plan is for a model of another structure.

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
    channel_map = trace(model)
    return rebuild_traced(channel_map, ~plan.removed_units(channel_map), optimizer_state)


def prune(
    model: keras.Model,
    importance: Importance | Callable,
    *,
    calibration: Any = None,
    verify: bool = True,
    verbose: int = 1,
    **budget,
) -> keras.Model:
    """Plans and rebuilds in one step, proves the result, and repairs it.

    Args:
        model: a functional or Sequential model. It is not changed.
        importance: such as `NISP(calibration)`.
        calibration: samples on which to `recalibrate` the result (BatchNormalization
            statistics, and biases for the mean of what was removed). By default it is
            left as the surgery made it.
        verify: compare the result with the original whose removed channels are zeroed, on a
            random sample.
        verbose: 1 prints the outcome in one line, 0 nothing.
        **budget: as for `plan_pruning`: `ratio=`, `flops_reduction=` and so on.

    Returns:
        The smaller model, as from `rebuild`.

    Raises:
        TypeError, ValueError: see `plan_pruning`.
        VerificationError: the smaller model does not compute what it must.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> small = prune(model, Magnitude(), ratio=0.5, verbose=0)
    >>> small.count_params()
    35
    """
    plan = plan_pruning(model, importance, **budget)
    channel_map = trace(model, list(plan.input_shapes))
    removed = plan.removed_units(channel_map)
    small = rebuild_traced(channel_map, ~removed, optimizer_state=False)
    text = (
        f"{model.name}: parameters -{100 * plan.params_reduction:.1f} %, "
        f"FLOPs -{100 * plan.flops_reduction:.1f} %"
    )
    if verify:
        result = verify_traced(channel_map, removed, small)
        result.check()
        text += f"; {result}"
    if verbose:
        print(text)
    if calibration is not None:
        recalibrate(small, calibration, model, plan)
    return small


def rebuild_traced(channel_map: ChannelMap, keep: np.ndarray, optimizer_state: bool):
    """`rebuild` for a traced model and the units to keep."""
    surgeon = _Surgeon(channel_map, keep)
    model = channel_map.model
    small = surgeon.clone_model(model, [tensor.shape for tensor in graph.body(model).inputs])
    surgeon.transfer()
    _compile_alike(model, small, surgeon if optimizer_state else None)
    return small


class _Surgeon:
    """Clones layers at their new widths and carries variables over."""

    def __init__(self, channel_map: ChannelMap, keep: np.ndarray):
        self.map = channel_map
        self.keep = keep
        self.calls = {id(call.layer): call for call in reversed(channel_map.calls)}
        self.clones: dict[int, keras.Operation] = {}

    def kept(self, units: np.ndarray) -> int:
        """How many positions of an array of units stay."""
        return int(np.count_nonzero(self.keep[units]))

    def clone_model(self, model, shapes):
        inputs = graph.new_inputs(model, shapes)
        return graph.clone_model(
            model, inputs, self.clone, lambda node, layer, args, kwargs: layer(*args, **kwargs)
        )

    def clone(self, operation):
        if id(operation) not in self.clones:
            if graph.is_graph(operation):
                clone = self.clone_model(operation, self._nested_shapes(operation))
            else:
                clone = self._clone_layer(operation)
            self.clones[id(operation)] = clone
        return self.clones[id(operation)]

    def _nested_shapes(self, model) -> list[tuple]:
        """Input shapes of a nested model, which may get fewer channels."""
        shapes = []
        for tensor, traced in zip(
            graph.body(model).inputs, self.map.model_inputs[id(model)], strict=True
        ):
            shape = list(tensor.shape)
            for axis, size in enumerate(traced.names.shape):
                if size > 1:
                    index = [0] * traced.names.ndim
                    index[axis] = slice(None)
                    shape[axis + 1] = self.kept(traced.names[tuple(index)])
            shapes.append(tuple(shape))
        return shapes

    def _clone_layer(self, layer):
        config, call = graph.layer_config(layer), self.calls[id(layer)]
        if any(not self.keep[t.names].all() for t in (*call.inputs, *call.outputs)):
            config = call.rule.resize(call, config, self.kept)
        try:
            return graph.copy_layer(layer, config)
        except Exception as error:
            raise TypeError(
                f"Layer '{call.path}' ({type(layer).__name__}) cannot be copied from its config: "
                f"{error}. Give the class a `get_config` that holds all its arguments."
            ) from error

    def pairs(self):
        """Old and new variable of every layer."""
        for call in self.calls.values():
            yield from graph.paired_variables(call.layer, self.clones[id(call.layer)])

    def shrink(self, variable: keras.Variable, value: tf.Tensor) -> tf.Tensor:
        """Drops what is removed from a tensor of the shape of a variable."""
        binding = self.map.bindings.get(id(variable))
        for axis, units in binding.axes.items() if binding else ():
            if not self.keep[units].all():
                value = tf.gather(value, np.flatnonzero(self.keep[units]), axis=axis)
        return value

    def transfer(self) -> None:
        for old, new in self.pairs():
            value = self.shrink(old, tf.convert_to_tensor(old))
            if value.shape != new.shape:
                raise ValueError(
                    f"Variable '{old.path}' would become {tuple(value.shape)}, but the rebuilt "
                    f"layer has {tuple(new.shape)}: the rule of this layer does not fit it."
                )
            new.assign(value)


def _compile_alike(model, small, surgeon: _Surgeon | None) -> None:
    """Compiles the small model as the original is; with a surgeon, carries slots over."""
    arguments = graph.compile_arguments(model)
    if arguments is None:
        return
    try:
        arguments["optimizer"] = _fresh_optimizer(model, arguments["optimizer"])
        for name in ("metrics", "weighted_metrics"):
            arguments[name] = keras.tree.map_structure(_fresh_metric, arguments[name])
        small.compile(**arguments)
    except Exception as error:
        warnings.warn(
            f"The compile configuration of '{model.name}' could not be copied ({error}). Call "
            "`compile` on the rebuilt model yourself.",
            stacklevel=4,
        )
        return
    if surgeon is not None:
        _carry_slots(graph.optimizer_of(model), small, surgeon)


def _fresh_optimizer(model, given):
    optimizer = given if isinstance(given, keras.optimizers.Optimizer) else None
    optimizer = optimizer or graph.optimizer_of(model)
    return type(optimizer).from_config(optimizer.get_config())


def _fresh_metric(metric):
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def _carry_slots(old, small, surgeon: _Surgeon) -> None:
    """Gives the new optimizer the old one's variables, slots shrunk like their weights."""
    if not old.built:
        return
    originals = {id(new): variable for variable, new in surgeon.pairs()}
    optimizer = graph.optimizer_of(small)
    references = graph.build_recording_references(optimizer, small.trainable_variables)
    for before, after in zip(old.variables, optimizer.variables, strict=True):
        value, reference = tf.convert_to_tensor(before), references.get(id(after))
        if reference is not None:
            value = surgeon.shrink(originals[id(reference)], value)
        if value.shape != after.shape:
            warnings.warn(
                f"Optimizer variable '{before.path}' has no counterpart of its shape after the "
                "removal and starts afresh.",
                stacklevel=5,
            )
            continue
        after.assign(value)
