"""What becomes of the units of a traced model by a plan, if the plan fits it."""

from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.cost import CostModel
from keras_nisp.channels.unit_map import DROPPED, UnitMap
from keras_nisp.errors import PlanMismatchError
from keras_nisp.keras_graph.recording import Step
from keras_nisp.plans.plan_rows import CreatorPlan, creator_clusters, variable_rows

if TYPE_CHECKING:
    from keras_nisp.plans.plan import Plan


def mismatch(plan: "Plan", model: keras.Model) -> PlanMismatchError:
    """The error about a model of another structure."""
    return PlanMismatchError(
        f"Expected a model with the structure of '{plan.model}', for which the plan was made. "
        f"Received model '{model.name}', which has another one. Make a new plan for it."
    )


def fitted(plan: "Plan", channel_map: ChannelMap) -> UnitMap:
    """See `Plan.unit_map`."""
    if plan.fingerprint != channel_map.fingerprint:
        raise mismatch(plan, channel_map.model)
    _check_counts(plan, channel_map)
    into = np.arange(channel_map.count)
    rows = list(zip(plan.creators, channel_map.creators, strict=True))
    for row, creator in rows:
        into[creator.units[list(row.removed)]] = DROPPED
    for row, creator in rows:
        gone = set(row.removed)
        for cluster in row.clusters:
            kept = next((i for i in cluster if i not in gone), cluster[0])
            into[creator.units[list(cluster)]] = creator.units[kept]
    _complete(into, channel_map)
    unit_map = UnitMap(into)
    _check_blocks(unit_map, channel_map)
    for row, creator in rows:
        _check_creator(row, creator.units, unit_map, channel_map.free)
    _check_groups(plan, channel_map, unit_map)
    _check_lines(channel_map, unit_map)
    _check_parameters(plan, channel_map, unit_map)
    if unit_map.merged.any():
        _check_variables(plan, channel_map, unit_map)
    return unit_map


def _complete(into: np.ndarray, channel_map: ChannelMap) -> None:
    """Drops what goes with products that layers create, and products with it: a head all of whose
    channels are gone."""
    made = np.unique(np.concatenate([np.zeros(0, int), *(c.units for c in channel_map.creators)]))
    own = channel_map.seen(made)
    gone = ~own  # factors that no layer creates, if no product says otherwise
    products = channel_map.products
    pairs = zip(products.units, products.factors, strict=True)
    staying = [factor for product, factor in pairs if own[product] and into[product] != DROPPED]
    gone[staying] = False
    whole = products.factors[own[products.units]]
    into[whole[gone[whole]]] = DROPPED
    removed = into == DROPPED
    into[products.gone(removed)] = DROPPED


def check_result(steps: list[Step], channel_map: ChannelMap, unit_map: UnitMap) -> None:
    """Raises unless a smaller model has the weights that remain of another's.

    Shapes are compared, not names: a convolution whose groups keep one input channel each creates
    channels in the original, and passes them on in the smaller model.
    """
    keep = unit_map.keep

    def kept(weight) -> list[int]:
        binding = channel_map.bindings.get(id(weight))
        axes = binding.axes if binding else {}
        return [int(keep[axes[i]].sum()) if i in axes else n for i, n in enumerate(weight.shape)]

    expected = [(type(c.layer), [kept(w) for w in c.weights]) for c in channel_map.calls]
    found = [
        (type(s.operation), [list(w.shape) for w in getattr(s.operation, "weights", ())])
        for s in steps
    ]
    if expected != found:
        raise PlanMismatchError(
            f"Expected the model that this plan makes of '{channel_map.model.name}'. Received a "
            "model whose layers or widths are others."
        )


def _check_counts(plan: "Plan", channel_map: ChannelMap) -> None:
    """Raises unless layers and groups have as many channels as the plan says."""
    for what, said, found in (
        ("layers create", [row.channels for row in plan.creators], _lengths(channel_map.creators)),
        ("groups hold", [row.units for row in plan.groups], _lengths(channel_map.groups)),
    ):
        if said != found:
            raise PlanMismatchError(
                f"Expected a plan whose {what} {_few(found)} channels, as in model "
                f"'{channel_map.model.name}'. Received {_few(said)}: the plan was made for another "
                "model, or was damaged or edited."
            )


def _lengths(rows) -> list[int]:
    return [len(row.units) for row in rows]


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f"... ({len(numbers)})" if len(numbers) > 8 else "")


def _check_creator(row: CreatorPlan, units, unit_map: UnitMap, free) -> None:
    """Raises unless a layer loses and merges what its row says, and may."""
    gone = ~unit_map.keep[units]
    same = np.flatnonzero(gone).tolist() == list(row.removed)
    if not same or set(creator_clusters(units, unit_map)) != set(row.clusters):
        raise PlanMismatchError(
            f"Expected coupled layers to lose the same channels, and clusters that hold each "
            f"channel of a layer once. What the plan says of '{row.layer}' "
            f"({len(row.removed)} channels go) does not fit what it says elsewhere: it was "
            "damaged or edited."
        )
    if gone.all() or not free[units[gone | unit_map.merged[units]]].all():
        raise PlanMismatchError(
            f"Expected a plan that keeps what must be kept. The plan removes channels of "
            f"'{row.layer}' that may not be removed: it was damaged or edited."
        )


def _check_blocks(unit_map: UnitMap, channel_map: ChannelMap) -> None:
    """Raises unless what is merged lies in the same tensors and along the same axes."""
    if not unit_map.merged.any():
        return
    block = np.full(channel_map.count, -1)
    for group in channel_map.groups:
        for units in channel_map.blocks(group):
            block[units] = units[0]
    merged = np.flatnonzero(unit_map.merged)
    if (block[merged] != block[unit_map.into[merged]]).any():
        raise PlanMismatchError(
            "Expected clusters of channels that occur in the same places. The plan merges channels "
            "that do not: it was damaged or edited."
        )


def _check_groups(plan: "Plan", channel_map: ChannelMap, unit_map: UnitMap) -> None:
    """Raises unless groups lose what they are said to lose."""
    for index, (row, group) in enumerate(zip(plan.groups, channel_map.groups, strict=True)):
        gone = np.flatnonzero(~unit_map.keep[group.units]).tolist()
        if len(gone) != row.removed or (row.scores and gone != list(row.removed_units)):
            raise PlanMismatchError(
                f"Expected the layers of group {index} to lose {row.removed} channels, as the plan "
                f"says elsewhere. They lose {len(gone)}, or others: the plan was damaged or edited."
            )


def _check_lines(channel_map: ChannelMap, unit_map: UnitMap) -> None:
    """Raises where no channel of a tensor or of an axis of a variable remains, or too few."""
    keep = unit_map.keep
    lines = [(call.path, t.names) for call in channel_map.calls for t in call.outputs]
    bindings = (*channel_map.bindings.values(), *channel_map.constants)
    lines += [(binding.layer, units) for binding in bindings for units in binding.axes.values()]
    for path, units in lines:
        if units.size and not keep[units].any():
            raise PlanMismatchError(
                f"Expected a plan that leaves a channel everywhere. The plan leaves none at "
                f"'{path}': it was damaged or edited."
            )
    for units, count, why in channel_map.least:
        if keep[units].sum() < count:
            raise PlanMismatchError(
                f"Expected a plan that leaves enough channels to choose among: {why}. The plan "
                f"leaves {keep[units].sum()}: it was damaged or edited."
            )


def _check_parameters(plan: "Plan", channel_map: ChannelMap, unit_map: UnitMap) -> None:
    """Raises unless the model has as many parameters before and after as the plan says.

    FLOPs and memory depend on the input's size, which may be another one.
    """
    costs = CostModel(channel_map)
    found = costs.parameters(costs.everything), costs.parameters(unit_map.keep)
    said = plan.before.parameters, plan.after.parameters
    if found != said:
        raise PlanMismatchError(
            f"Expected a plan that leaves {found[1]:,} of {found[0]:,} parameters of model "
            f"'{channel_map.model.name}'. Received one that says {said[1]:,} of {said[0]:,}: it "
            "was made for another model, or was damaged or edited."
        )


def _check_variables(plan: "Plan", channel_map: ChannelMap, unit_map: UnitMap) -> None:
    """Raises unless what C-SGD makes identical are the clusters that are merged."""
    rows = variable_rows(channel_map, unit_map)
    if [row.shape for row in rows] == [row.shape for row in plan.variables]:
        pairs = list(zip(plan.variables, rows, strict=True))
    else:  # some are no longer trained
        known = {(row.path, row.shape): row for row in plan.variables}
        pairs = [(known.get((row.path, row.shape), row), row) for row in rows]
    for said, found in pairs:
        if said.clusters != found.clusters or said.is_kernel != found.is_kernel:
            raise PlanMismatchError(
                f"Expected the clusters of variable '{said.path}' to be those of its layer's "
                "channels. The plan says otherwise: it was damaged or edited."
            )
