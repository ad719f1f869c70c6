"""`plan_pruning`: importance and budget in, plan out."""

from collections.abc import Callable
from typing import Any, Unpack

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.cost import Cost, notes
from keras_nisp.channels.tracing import InputShape, WholeGroups, trace
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.damage.network import DamagedNetwork
from keras_nisp.damage.table import AddedDamages, Sensitivity
from keras_nisp.data.calibration import calibration_samples
from keras_nisp.data.samples import MAX_SAMPLES, Samples
from keras_nisp.importance.base import (
    Importance,
    as_importance,
    checked_scores,
    supplied,
    without_data,
)
from keras_nisp.importance.nisp import NISP
from keras_nisp.keras_graph import keras_models
from keras_nisp.plans.allocation import Allocation
from keras_nisp.plans.budget import Budget, BudgetKeywords, as_budget, lists_budget
from keras_nisp.plans.course import Course
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.plan_rows import (
    CreatorPlan,
    GroupPlan,
    LayerPlan,
    VariablePlan,
    creator_clusters,
)
from keras_nisp.plans.recipe import Recipe, recipe
from keras_nisp.plans.solver import Solver


@lists_budget
def plan_pruning(
    model: keras.Model,
    importance: Importance | Callable | None = None,
    *,
    budget: Budget | None = None,
    whole_groups: WholeGroups = (),
    input_shape: InputShape | None = None,
    calibration: Any = None,
    verbose: int = 0,
    **keywords: Unpack[BudgetKeywords],
) -> Plan:
    """Decides which channels to remove. Nothing is built or changed.

    Args:
        model: a functional or Sequential model.
        importance: an `Importance` such as `NISP()` or `Magnitude()`, or a callable that takes
            a `ChannelMap` and returns one score per unit. By default `NISP()`.
        budget: a `Budget`: how much to remove.
        whole_groups: names or patterns of grouped convolutions whose groups are removed as a
            whole, with the channels that enter them. By default every group loses the same number
            of channels.
        input_shape: shape of one sample for which FLOPs are counted, if the model
            leaves it open; by default that of the importance's data, or an assumed one.
        calibration: samples for an importance that uses data and was given none, and for the
            damages of `allocation`; by default those of the importance.
        verbose: 1 shows progress bars of what takes more than a second.
        **keywords: the arguments of `Budget`, instead of `budget`: `ratio=0.5`,
            `flops_reduction=0.5`, `exclude="stem"` and so on.

    Returns:
        A `Plan`.

    Raises:
        TypeError: the model is not functional or Sequential.
        ValueError: an argument is wrong, a name matches no layer, the importance has no data or
            does not fit the model (`NoFinalResponseLayerError`), or the reduction cannot be
            reached (`BudgetError`).

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(16, 3, name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(2, name="head"),
    ... ])
    >>> plan = plan_pruning(model, Magnitude(), ratio=0.25)
    >>> plan.creators[0].kept
    12
    """
    budget = as_budget(budget, keywords, plan_pruning)
    keras_models.check_model(model)
    importance = as_importance(NISP() if importance is None else importance)
    if not budget.allocated(has_samples=True).by_damage and not without_data(importance):
        calibration = None  # which nothing looks at
    importance, samples = with_samples(importance, calibration, model, verbose)
    channel_map = traced_for(importance, model, input_shape, whole_groups, samples)
    return make_plan(channel_map, importance, budget, samples, verbose)


def with_samples(
    importance: Any, calibration: Any, model: keras.Model, verbose: int = 0
) -> tuple[Importance, Samples | None]:
    """An importance, by default NISP, that has the data it looks at, and samples of `calibration`.

    Data are read once, whoever looks at them.
    """
    importance, samples = as_importance(NISP() if importance is None else importance), None
    if calibration is not None:
        waiting = without_data(importance).values()
        limit = max([MAX_SAMPLES, *(value.limit for value in waiting)])
        samples = calibration_samples(calibration, model, limit, verbose=verbose)
    return supplied(importance, samples, verbose), samples


def traced_for(
    importance: Importance,
    model: keras.Model,
    input_shape: InputShape | None = None,
    whole_groups: WholeGroups = (),
    samples: Samples | None = None,
) -> ChannelMap:
    """A model traced for an importance, at the sizes of data unless others are given."""
    keras_models.check_model(model)
    if input_shape is None and samples is not None and keras_models.is_open(model):
        input_shape = samples.shapes
    if input_shape is None:
        input_shape = importance.input_shapes(model)
    return trace(model, input_shape, whole_groups)


def make_plan(
    channel_map: ChannelMap,
    importance: Importance,
    budget: Budget,
    samples: Samples | None = None,
    verbose: int = 0,
) -> Plan:
    """A plan for a traced model.

    Args:
        channel_map: the traced model.
        importance: scores its units.
        budget: what to remove.
        samples: on which damages are taken, by default those that the importance has read.
        verbose: 1 shows a progress bar of that.
    """
    removed, solver, scores = choose(
        channel_map, importance, budget, samples=samples, verbose=verbose
    )
    looked_at = samples is not None and solver.budget.by_damage
    settings = {"importance": importance.source, "calibration": looked_at}
    made = recipe("plan_pruning", channel_map, solver.budget, **settings)
    return describe(channel_map, UnitMap.removing(removed), made, solver, scores)


def choose(
    channel_map: ChannelMap,
    importance: Importance,
    budget: Budget,
    removed: np.ndarray | None = None,
    samples: Samples | None = None,
    verbose: int = 0,
) -> tuple[np.ndarray, Solver, np.ndarray]:
    """The units that a budget removes, with the solver and the scores that say so.

    Args:
        channel_map, importance, budget, samples, verbose: as for `make_plan`.
        removed: boolean per unit: removed already, and to stay so.
    """
    channel_map.check_groups()
    channel_map.check_weights()
    if budget.kind == "latency_reduction":
        budget.table.shows_progress = verbose or budget.table.verbose
    solver = Solver(channel_map, budget.allocated(has_samples=False), removed)

    def select(scores):
        return solver.select(checked_scores(scores, channel_map, importance.name))

    scores = checked_scores(importance.scores(channel_map, select), channel_map, importance.name)
    samples = samples or importance.known_samples(channel_map.model)
    solver.budget, solver.allocation = allocated(channel_map, budget, samples, verbose)
    return solver.select(scores), solver, scores


def allocated(
    channel_map: ChannelMap, budget: Budget, samples: Samples | None, verbose: int = 0
) -> tuple[Budget, Allocation | None]:
    """The budget with its allocation decided, and what allocates by damage.

    Raises:
        ValueError: damages are to be taken, and there are no samples, outputs show none, or are
            not finite.
    """
    if isinstance(budget.allocation, Sensitivity):
        return budget, Allocation(AddedDamages(channel_map, budget.allocation), verbose=verbose)
    asked, budget = budget, budget.allocated(has_samples=samples is not None)
    if not budget.by_damage:
        return budget, None
    if samples is None:
        raise ValueError(
            f"Expected calibration data for allocation={budget.allocation!r}, which looks at what "
            "the outputs lose. Received none: pass `calibration`, or allocation='uniform'."
        )
    network = DamagedNetwork(channel_map, samples, verbose)
    if network.seen[channel_map.free].any():
        return budget, Allocation(network, budget.allocation == "measured", verbose)
    if asked.by_damage:
        raise ValueError(
            f"Expected channels whose damage shows for allocation={budget.allocation!r}. All that "
            f"model '{channel_map.model.name}' may lose lie inside of layers, such as key "
            "channels of attention: pass allocation='uniform'."
        )
    return asked.allocated(has_samples=False), None


def describe(
    channel_map: ChannelMap,
    unit_map: UnitMap,
    made: Recipe,
    solver: Solver,
    scores: np.ndarray | None,
    variables: tuple[VariablePlan, ...] = (),
) -> Plan:
    """The plan for what becomes of the units, with all that there is to say about it.

    Args:
        channel_map: the traced model.
        unit_map: what becomes of its units.
        made: how the plan was made.
        solver: what chose the units, or their numbers.
        scores: by which units were chosen; `None` if no importance chose them.
        variables: of a plan that merges.
    """
    keep, costs, latency = unit_map.keep, solver.costs, None
    course = None if solver.allocation is None else solver.allocation.course
    if solver.budget.kind == "latency_reduction":
        latency = solver.budget.table.change(channel_map, keep)
    before, after = costs.layers(costs.everything), costs.layers(keep)
    return Plan(
        model=channel_map.model.name,
        fingerprint=channel_map.fingerprint,
        recipe=made,
        input_shapes=tuple(channel_map.input_shapes),
        creators=_creators(channel_map, unit_map, solver, scores),
        groups=_groups(channel_map, ~keep, scores, course),
        layers=_layers(channel_map, keep, before, after),
        before=sum(before.values(), Cost()),
        after=sum(after.values(), Cost()),
        inexact=tuple(inexact_layers(channel_map, ~keep)),
        variables=variables,
        whole_groups=channel_map.whole_groups,
        notes=tuple(notes(channel_map)),
        block=solver.multiple,
        latency=latency,
        rounds=() if course is None else tuple(course.rounds),
    )


def inexact_layers(channel_map: ChannelMap, removed: np.ndarray) -> list[str]:
    """Paths of the layers that mix channels of which some are removed."""
    paths = [
        call.path
        for call in channel_map.calls
        if call.mixes_channels and any(removed[t.names].any() for t in call.mixed)
    ]
    return list(dict.fromkeys(paths))


def _creators(channel_map, unit_map, solver, scores) -> tuple[CreatorPlan, ...]:
    removed = ~unit_map.keep
    group_of = {i: g for g, group in enumerate(channel_map.groups) for i in group.creators}
    rows = []
    for index, creator in enumerate(channel_map.creators):
        group = group_of.get(index, -1)
        kept = creator.units[~removed[creator.units]]
        reasons = [r for unit in kept.tolist() for r in channel_map.reasons.get(unit, ())]
        if (solver.excluded & ~solver.spared)[kept].any():
            reasons.append("excluded")
        if solver.spared[kept].any() and group >= 0:
            reasons.append(f"removing them would save nothing that `{solver.budget.kind}` counts")
        if scores is not None and np.isnan(scores[kept]).any() and group >= 0:
            reasons.append("the importance gives no score")
        for line, count, why in channel_map.least:
            if np.isin(creator.units, line).any() and (~removed[line]).sum() == count:
                reasons.append(why)
        if group >= 0:
            reasons += _width_reasons(channel_map.groups[group], creator, removed, solver)
        indices = np.flatnonzero(removed[creator.units]).tolist()
        rows.append(
            CreatorPlan(
                creator.layer,
                len(creator.units),
                tuple(indices),
                group,
                tuple(dict.fromkeys(reasons)),
                creator_clusters(creator.units, unit_map),
            )
        )
    return tuple(rows)


def _width_reasons(group, creator, removed, solver) -> list[str]:
    """What the limits on widths had to do with the width of a creator in a group."""
    total = len(group.units)
    width = total - int(removed[group.units].sum())
    if width == solver.widths(total)[-1]:
        if total == 1 < len(creator.units):
            return ["its channels can only be removed together"]
        if width < np.count_nonzero(~removed[creator.units]):
            return [f"at least {width} of {total} sets of coupled channels must stay"]
        return [f"the least width that `min_channels` and `round_to` allow is {width}"]
    if solver.multiple > 1:
        return [f"widths are multiples of {solver.multiple}"]
    return []


def _groups(channel_map, removed, scores, course: Course | None) -> tuple[GroupPlan, ...]:
    group_of = np.full(channel_map.count, -1)
    for index, group in enumerate(channel_map.groups):
        group_of[group.units] = index
    creators = [
        {channel_map.creators[i].layer: None for i in g.creators} for g in channel_map.groups
    ]
    followers: list[dict[str, None]] = [{} for _ in channel_map.groups]
    readers: list[dict[str, None]] = [{} for _ in channel_map.groups]
    for call in channel_map.calls:
        given = channel_map.products.deciding(_names(call.outputs))
        for units, members in ((given, followers), (_read(channel_map, call), readers)):
            touched = np.unique(group_of[units])
            for index in touched[touched >= 0].tolist():
                if members is readers or call.path not in creators[index]:
                    members[index][call.path] = None
    return tuple(
        GroupPlan(
            tuple(creators[i]),
            tuple(followers[i]),
            tuple(readers[i]),
            len(group.units),
            int(removed[group.units].sum()),
            *(((), ()) if scores is None else _scores(scores[group.units], removed[group.units])),
            () if course is None else course.curve(i),
        )
        for i, group in enumerate(channel_map.groups)
    )


def _names(tensors) -> np.ndarray:
    return np.concatenate([np.zeros(0, int), *(tensor.names.ravel() for tensor in tensors)])


def _read(channel_map, call) -> np.ndarray:
    """The units that a call reads: those that its kernels do, or all that enter a product."""
    if not call.reads:
        return np.zeros(0, int)
    units = channel_map.products.deciding(_names(call.inputs))
    bound = [b for w in call.weights if (b := channel_map.bindings.get(id(w))) and b.read]
    if not bound:
        return units
    by_kernels = np.concatenate([b.axes[axis] for b in bound for axis in b.read])
    return np.intersect1d(units, channel_map.products.deciding(by_kernels))


def _scores(scores: np.ndarray, removed: np.ndarray) -> tuple[tuple, tuple]:
    """Scores of a group's units, and which of them are removed, as plain data.

    Six digits are more than a figure shows, and keep files small.
    """
    rounded = (None if np.isnan(score) else float(f"{score:.6g}") for score in scores)
    return tuple(rounded), tuple(np.flatnonzero(removed).tolist())


def _layers(channel_map, keep, before, after) -> tuple[LayerPlan, ...]:
    rows = {}
    for call in channel_map.calls:
        if call.path not in rows:
            names = call.outputs[0].names
            channels = (names.size, int(np.count_nonzero(keep[names])))
            rows[call.path] = LayerPlan(
                call.path, type(call.layer).__name__, channels, before[call.path], after[call.path]
            )
    return tuple(rows.values())
