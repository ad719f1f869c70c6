"""`plan_merging`: which channels C-SGD makes identical."""

import dataclasses
from collections.abc import Callable
from typing import Any, Unpack

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.centripetal.clustering import Clustering
from keras_nisp.channels.channel_map import ChannelMap, reasons_by_unit
from keras_nisp.channels.tracing import InputShape, WholeGroups, trace_quietly, warn_of_unknown
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.data.calibration import Calibration
from keras_nisp.errors import check_count
from keras_nisp.importance.weights import Magnitude
from keras_nisp.io.progress import Progress
from keras_nisp.keras_graph import keras_models
from keras_nisp.plans.budget import Budget, BudgetKeywords, as_budget, lists_budget
from keras_nisp.plans.describing import describe
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.plan_rows import owned_axes, variable_rows
from keras_nisp.plans.planning import allocated
from keras_nisp.plans.recipe import recipe
from keras_nisp.plans.solver import Solver


@lists_budget
def plan_merging(
    model: keras.Model,
    *,
    budget: Budget | None = None,
    clustering: str | Callable = "kmeans",
    owners: str = "all",
    calibration: Any = None,
    seed: int = 0,
    whole_groups: WholeGroups = (),
    input_shape: InputShape | None = None,
    verbose: int = 0,
    **keywords: Unpack[BudgetKeywords],
) -> Plan:
    """Decides which channels C-SGD makes identical, to be merged afterwards.

    Channels that enter a normalization over channels are never merged: for them merging cannot be
    exact.

    Args:
        model: a functional or Sequential model. It is not changed.
        budget: a `Budget`: how many channels to remove. A layer gets as many clusters as it keeps
            channels. With `calibration`, reductions are allocated by damage.
        clustering: `"kmeans"` on the kernels, `"activations"` (k-means on responses to
            `calibration`), `"even"` (neighbors; needs no trained weights), `"imbalanced"`
            (one large cluster, for comparison), or `f(features, clusters) -> labels`.
        owners: layers of a coupled group whose kernels k-means uses: `"all"` layers side by side,
            or only the first one, the `"pacesetter"`, as in the paper.
        calibration: samples for `"activations"` and for `allocation`, as for `NISP`.
        seed: seed for k-means and for sampling.
        whole_groups, input_shape: as for `plan_pruning`.
        verbose: 1 shows progress bars for reading data and for clustering layers.
        **keywords: the arguments of `Budget`, instead of `budget`.

    Returns:
        A `Plan`, for `CentripetalSGD` and then `rebuild`.

    Raises:
        TypeError: the model is not functional or Sequential.
        ValueError: an argument is wrong, a named layer cannot be merged, or the reduction cannot be
            reached (`BudgetError`).

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
    budget = as_budget(budget, keywords, plan_merging)
    check_count("seed", seed, 0)
    if budget.allocation == "global":
        raise ValueError(
            "Expected another `allocation` than 'global': `plan_merging` scores no channels by "
            "which groups could be compared."
        )
    keras_models.check_model(model)
    if calibration is not None:
        calibration = Calibration(calibration, limit=1024, seed=seed, verbose=verbose)
        if input_shape is None and keras_models.is_open(model):
            input_shape = calibration.samples(model).shapes
    channel_map = trace_quietly(model, input_shape, whole_groups, counted=True)
    warn_of_unknown(channel_map)
    channel_map.check_groups()
    channel_map.check_weights()
    obstacles = _obstacles(channel_map)
    _check_mergeable(channel_map, Solver(channel_map, budget), obstacles)
    clusters = Clustering(channel_map, clustering, owners, calibration, seed)
    samples = None if calibration is None else calibration.samples(model)
    budget, allocation = allocated(channel_map, budget, samples, verbose)
    stays = channel_map.seen(np.array(list(obstacles), int))
    solver = Solver(channel_map, budget, allocation=allocation, stays=stays)
    selection = solver.select(_scores(channel_map, allocation))
    unit_map = _merge(channel_map, selection.removed, clusters, solver.excluded, verbose)
    settings = {"clustering": clustering, "owners": owners, "seed": seed}
    settings["calibration"] = samples is not None
    made = recipe("plan_merging", channel_map, budget, **settings)
    variables = variable_rows(channel_map, unit_map)
    plan = describe(channel_map, unit_map, made, selection, None, variables)
    return _with_reasons(plan, channel_map, obstacles)


def _obstacles(channel_map: ChannelMap) -> dict[int, list[str]]:
    """For every unit that cannot be merged, why."""
    inside = np.union1d(channel_map.products.units, channel_map.products.factors)
    obstacles = [(inside, "channels inside of heads are never merged")]
    for call in channel_map.calls:
        if call.mixes_channels or call.sums_channels:
            held = [tensor.names for tensor in (*call.mixed, *call.outputs)]
            word = "takes statistics over" if call.mixes_channels else "adds up"
            reason = f"'{call.path}' {word} these channels"
        elif call.constants:
            held = [u for b in call.constants.values() for u in b.axes.values()]
            reason = f"'{call.path}' holds a constant for each of these channels"
        elif not getattr(call.layer, "trainable", True):
            held = _owned_units(channel_map, call.layer)
            reason = f"'{call.path}' is not trained"
        else:
            continue
        obstacles += [(units, reason) for units in held]
    return reasons_by_unit(obstacles)


def _owned_units(channel_map: ChannelMap, layer: keras.Layer) -> list[np.ndarray]:
    bindings = (channel_map.bindings.get(id(weight)) for weight in layer.weights)
    return [
        units
        for binding in bindings
        if binding is not None
        for axis, units in binding.axes.items()
        if axis not in binding.read
    ]


def _check_mergeable(channel_map: ChannelMap, solver: Solver, obstacles: dict) -> None:
    """Raises if nothing can be merged, or if a layer is named that cannot."""
    mergeable = channel_map.free.copy()
    mergeable[list(obstacles)] = False
    if not any(mergeable[group.units].sum() > 1 for group in channel_map.groups):
        raise ValueError(
            f"Model '{channel_map.model.name}' has no channels that can be merged: all of them are "
            "inputs, outputs, enter a layer that takes statistics over channels, are not trained, "
            "or touch layers without a rule."
        )
    for group, ratio in zip(channel_map.groups, solver.group_ratios, strict=True):
        named = ratio > 0 or (solver.block_shares[group.units] > 0).any()
        why = [reason for unit in group.units.tolist() for reason in obstacles.get(unit, ())]
        if named and why:
            layer = channel_map.creators[group.creators[0]].layer
            raise ValueError(
                f"Expected `{solver.budget.kind}` to name layers whose channels can be merged. "
                f"Received: '{layer}', but {why[0]}. Leave it out, or use `plan_pruning`."
            )


def _scores(channel_map: ChannelMap, allocation) -> np.ndarray:
    """Even ones, unless damages say how many go of each group: then those of kernels."""
    even = _even_scores(channel_map)
    if allocation is None:
        return even
    scores = Magnitude()(channel_map)
    return np.where(np.isnan(scores), even, scores)


def _even_scores(channel_map: ChannelMap) -> np.ndarray:
    """Scores by which a budget takes the same share of every block of a group."""
    scores = np.full(channel_map.count, np.nan)
    for group in channel_map.groups:
        for units in channel_map.blocks(group):
            scores[units] = (np.arange(len(units)) + 0.5) / len(units)
    return scores


def _merge(channel_map: ChannelMap, gone, clustering: Clustering, excluded, verbose) -> UnitMap:
    """Clusters each block into as many clusters as units are to stay."""
    into = np.arange(channel_map.count)
    progress = Progress(len(channel_map.groups), verbose, "Clustering channels", "group")
    for done, group in enumerate(channel_map.groups, 1):
        for units in channel_map.blocks(group):
            units = np.sort(units[~excluded[units]])
            if gone[units].any():
                labels = clustering(group, units, len(units) - int(gone[units].sum()))
                first = np.array([units[labels == label][0] for label in range(labels.max() + 1)])
                into[units] = first[labels]
        progress.update(done)
    return UnitMap(into)


def level(model: keras.Model, plan: Plan, only_statistics: bool = False) -> None:
    """Gives members of a cluster the mean of what they own, in place.

    Args:
        model: the plan's model.
        plan: from `plan_merging`.
        only_statistics: leave trainable variables alone. No optimizer moves running
            statistics: they become equal only as fast as a moving average forgets.
    """
    channel_map = plan.trace(model)
    unit_map = plan.unit_map(channel_map)
    trained = set(map(id, model.trainable_variables)) if only_statistics else set()
    for binding in channel_map.bindings.values():
        if id(binding.variable) not in trained:
            for axis, units in owned_axes(binding, unit_map).items():
                value = tf.convert_to_tensor(binding.variable)
                binding.variable.assign(unit_map.level(value, axis, units))


def _with_reasons(plan: Plan, channel_map: ChannelMap, obstacles: dict) -> Plan:
    """Says of layers that could not be merged why."""
    rows = []
    for row, creator in zip(plan.creators, channel_map.creators, strict=True):
        units = creator.units.tolist()
        why = dict.fromkeys(reason for unit in units for reason in obstacles.get(unit, ()))
        if why and row.group >= 0:
            others = [reason for reason in row.reasons if reason != "excluded"]
            row = dataclasses.replace(row, reasons=(*others, *why))
        rows.append(row)
    return dataclasses.replace(plan, creators=tuple(rows))
