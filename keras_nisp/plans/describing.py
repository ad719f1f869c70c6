"""The plan for what is removed or merged, with all that there is to say about it."""

import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.cost import Cost, notes
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.plans.allocation_history import AllocationHistory
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.plan_rows import (
    CreatorPlan,
    GroupPlan,
    LayerPlan,
    VariablePlan,
    creator_clusters,
)
from keras_nisp.plans.recipe import Recipe
from keras_nisp.plans.solver import Selection


def describe(
    channel_map: ChannelMap,
    unit_map: UnitMap,
    made: Recipe,
    selection: Selection,
    scores: np.ndarray | None,
    variables: tuple[VariablePlan, ...] = (),
) -> Plan:
    """The plan for what becomes of the units, with all that there is to say about it.

    Args:
        channel_map: the traced model.
        unit_map: what becomes of its units.
        made: how the plan was made.
        selection: the units that were chosen, or their numbers.
        scores: by which units were chosen; `None` if no importance chose them.
        variables: of a plan that merges.
    """
    solver, keep, latency = selection.solver, unit_map.keep, None
    costs = solver.costs
    history = None if solver.allocation is None else solver.allocation.history
    if solver.budget.kind == "latency_reduction":
        latency = solver.budget.table.change(channel_map, keep)
    before, after = costs.layers(costs.everything), costs.layers(keep)
    return Plan(
        model=channel_map.model.name,
        fingerprint=channel_map.fingerprint,
        recipe=made,
        input_shapes=tuple(channel_map.input_shapes),
        creators=_creators(channel_map, unit_map, selection, scores),
        groups=_groups(channel_map, ~keep, scores, history),
        layers=_layers(channel_map, keep, before, after),
        before=sum(before.values(), Cost()),
        after=sum(after.values(), Cost()),
        inexact=tuple(inexact_layers(channel_map, ~keep)),
        variables=variables,
        whole_groups=channel_map.whole_groups,
        notes=tuple(notes(channel_map)),
        block=selection.multiple,
        latency=latency,
        rounds=() if history is None else tuple(history.rounds),
    )


def inexact_layers(channel_map: ChannelMap, removed: np.ndarray) -> list[str]:
    """Paths of the layers that mix channels of which some are removed."""
    paths = [
        call.path
        for call in channel_map.calls
        if call.mixes_channels and any(removed[t.names].any() for t in call.mixed)
    ]
    return list(dict.fromkeys(paths))


def _creators(channel_map, unit_map, selection, scores) -> tuple[CreatorPlan, ...]:
    solver, removed = selection.solver, ~unit_map.keep
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
            reasons += _width_reasons(channel_map.groups[group], creator, removed, selection)
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


def _width_reasons(group, creator, removed, selection) -> list[str]:
    """What the limits on widths had to do with the width of a creator in a group."""
    total = len(group.units)
    width = total - int(removed[group.units].sum())
    if width == selection.solver.widths(total, selection.multiple)[-1]:
        if total == 1 < len(creator.units):
            return ["its channels can only be removed together"]
        if width < np.count_nonzero(~removed[creator.units]):
            return [f"at least {width} of {total} sets of coupled channels must stay"]
        return [f"the least width that `min_channels` and `round_to` allow is {width}"]
    if selection.multiple > 1:
        return [f"widths are multiples of {selection.multiple}"]
    return []


def _groups(
    channel_map, removed, scores, history: AllocationHistory | None
) -> tuple[GroupPlan, ...]:
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
            () if history is None else history.curve(i),
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
