"""`plan_merging`: which channels C-SGD makes identical."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.budget import Budget, Solver
from keras_nisp.channels import Binding, ChannelMap
from keras_nisp.clustering import Clustering
from keras_nisp.plan import Plan, VariablePlan
from keras_nisp.planning import describe
from keras_nisp.tracing import trace
from keras_nisp.unit_map import UnitMap


def plan_merging(
    model: keras.Model,
    *,
    ratio: float | None = None,
    ratios: Mapping[str, float] | None = None,
    widths: Mapping[str, int] | keras.Model | None = None,
    flops_reduction: float | None = None,
    params_reduction: float | None = None,
    clustering: str | Callable = "kmeans",
    owners: str = "all",
    calibration: Any = None,
    seed: int = 0,
    round_to: int = 1,
    min_channels: int | float = 1,
    exclude=(),
    input_shape=None,
) -> Plan:
    """Decides which channels C-SGD makes identical, to be merged afterwards.

    Exactly one of `ratio`, `ratios`, `widths`, `flops_reduction` and `params_reduction` is
    given. Channels that a normalisation over channels touches are left alone: for them
    merging cannot be exact.

    Args:
        model: a functional or Sequential model. It is not changed.
        ratio, ratios, widths, flops_reduction, params_reduction: how many channels are to
            go, as for `plan_pruning`. A layer gets as many clusters as it keeps channels.
        clustering: `"kmeans"` on the kernels, `"activations"` (k-means on responses to
            `calibration`), `"even"` (neighbours; needs no trained weights), `"imbalanced"`
            (one large cluster, for comparison), or `f(features, clusters) -> labels`.
        owners: whose kernels count in a coupled group: those of `"all"` layers side by
            side, or those of the `"pacesetter"` alone, the first of them, as in the paper.
        calibration: samples for `"activations"`, as for `NISP`.
        seed: for k-means and for sampling.
        round_to, min_channels, exclude, input_shape: as for `plan_pruning`.

    Returns:
        A `Plan`, for `CentripetalSGD` and then `rebuild`.

    Raises:
        TypeError: the model is not functional or Sequential.
        ValueError: an argument is wrong, a layer that is named cannot be merged, or the
            reduction cannot be reached (`BudgetError`).

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(16, 3, name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(2, name="head"),
    ... ])
    >>> plan = plan_merging(model, widths={"conv": 10})
    >>> len(plan.creators[0].clusters)
    10

    Source: Ding et al., "Centripetal SGD for Pruning Very Deep Convolutional Networks", CVPR
    2019, section 3.
    """
    budget = Budget(
        ratio=ratio,
        ratios=ratios,
        widths=widths,
        flops_reduction=flops_reduction,
        params_reduction=params_reduction,
        round_to=round_to,
        min_channels=min_channels,
        exclude=exclude,
    )
    channel_map = trace(model, input_shape)
    mixed = _mixed_units(channel_map)
    _check_mergeable(channel_map, budget, mixed)
    clusters = Clustering(channel_map, clustering, owners, calibration, seed)
    solver = Solver(channel_map, budget)
    solver.excluded |= mixed
    scores = _even_scores(channel_map)
    unit_map = _merge(channel_map, solver.select(scores), clusters, solver.excluded)
    plan = describe(
        channel_map,
        unit_map,
        clusters.name,
        budget,
        solver,
        scores,
        _variables(model, channel_map, unit_map),
    )
    return _with_reasons(plan, channel_map, mixed)


def _mixed_units(channel_map: ChannelMap) -> np.ndarray:
    """Boolean per unit: whether a layer takes statistics over its channels."""
    mixed = np.zeros(channel_map.count, bool)
    for call in channel_map.calls:
        if call.rule.mixes_channels:
            for tensor in (*call.inputs, *call.outputs):
                mixed[tensor.names] = True
    return mixed


def _check_mergeable(channel_map: ChannelMap, budget: Budget, mixed: np.ndarray) -> None:
    """Raises if nothing can be merged, or if a layer is named that cannot."""
    groups = channel_map.groups
    if not any(len(group.units) > 1 and not mixed[group.units].all() for group in groups):
        raise ValueError(
            f"Model '{channel_map.model.name}' has no channels that can be merged: all of them are "
            "inputs, outputs, enter a layer that takes statistics over channels, or touch layers "
            "without a rule."
        )
    named = Solver(channel_map, budget)
    for group, ratio in zip(groups, named.group_ratios, strict=True):
        wanted = ratio > 0 or (named.block_shares[group.units] > 0).any()
        if wanted and mixed[group.units].any():
            layer = channel_map.creators[group.creators[0]].layer
            raise ValueError(
                f"Expected `{budget.kind}` to name layers whose channels can be merged. Received: "
                f"'{layer}', but {_mixer(channel_map, group.units)} takes statistics over these "
                "channels, which merging would change. Leave it out, or use `plan_pruning`."
            )


def _mixer(channel_map: ChannelMap, units: np.ndarray) -> str:
    for call in channel_map.calls:
        if call.rule.mixes_channels and any(np.isin(t.names, units).any() for t in call.inputs):
            return f"'{call.path}'"
    return "a layer"


def _even_scores(channel_map: ChannelMap) -> np.ndarray:
    """Scores by which a budget takes the same share of every block of a group."""
    scores = np.full(channel_map.count, np.nan)
    for group in channel_map.groups:
        for units in channel_map.blocks(group):
            scores[units] = (np.arange(len(units)) + 0.5) / len(units)
    return scores


def _merge(channel_map: ChannelMap, gone, clustering: Clustering, excluded) -> UnitMap:
    """Clusters each block into as many clusters as units are to stay."""
    into = np.arange(channel_map.count)
    for group in channel_map.groups:
        for units in channel_map.blocks(group):
            units = np.sort(units[~excluded[units]])
            if gone[units].any():
                labels = clustering(group, units, len(units) - int(gone[units].sum()))
                first = np.array([units[labels == label][0] for label in range(labels.max() + 1)])
                into[units] = first[labels]
    return UnitMap(into)


def _variables(model, channel_map: ChannelMap, unit_map: UnitMap) -> tuple[VariablePlan, ...]:
    """What is clustered in each trainable variable, in the order of `trainable_variables`."""
    rows = []
    for variable in model.trainable_variables:
        binding = channel_map.bindings.get(id(variable))
        clusters = {
            axis: tuple(unit_map.labels(binding.axes[axis]).tolist())
            for axis in (owned_axes(binding, unit_map) if binding else ())
        }
        is_kernel = binding is not None and binding.positions > 0
        rows.append(VariablePlan(variable.path, tuple(variable.shape), is_kernel, clusters))
    return tuple(rows)


def owned_axes(binding: Binding, unit_map: UnitMap) -> list[int]:
    """Axes of a variable that own channels which are merged."""
    return [
        axis
        for axis, units in binding.axes.items()
        if axis not in binding.read and unit_map.merged[units].any()
    ]


def level_statistics(model: keras.Model, plan: Plan) -> None:
    """Gives members of a cluster the mean of their running statistics, in place.

    No optimizer moves them: they become equal only as fast as a moving average forgets.
    """
    channel_map = trace(model)
    unit_map = plan.unit_map(channel_map)
    trained = set(map(id, model.trainable_variables))
    for binding in channel_map.bindings.values():
        if id(binding.variable) not in trained:
            for axis in owned_axes(binding, unit_map):
                value = tf.convert_to_tensor(binding.variable)
                binding.variable.assign(unit_map.level(value, axis, binding.axes[axis]))


def _with_reasons(plan: Plan, channel_map: ChannelMap, mixed: np.ndarray) -> Plan:
    """Says of layers that could not be merged why."""
    rows = []
    for row, creator in zip(plan.creators, channel_map.creators, strict=True):
        if row.group >= 0 and mixed[creator.units].any():
            mixer = _mixer(channel_map, creator.units)
            reasons = [r for r in row.reasons if r != "excluded"]
            reasons.append(f"{mixer} takes statistics over these channels")
            row = dataclasses.replace(row, reasons=tuple(reasons))
        rows.append(row)
    return dataclasses.replace(plan, creators=tuple(rows))
