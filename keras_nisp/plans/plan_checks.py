"""What must hold between the parts of a plan that was read from a file.

Types are checked before (`schema.py`), agreement with a model afterwards (`Plan.unit_map`).
"""

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from keras_nisp.channels.cost import Cost

if TYPE_CHECKING:
    from keras_nisp.plans.plan import Plan
    from keras_nisp.plans.plan_rows import CreatorPlan, GroupPlan, LayerPlan, VariablePlan

LARGEST_COUNT = 2**31  # of channels, positions and inputs
LARGEST_COST = 2**63


def check_parts(plan: "Plan") -> None:
    """Raises `ValueError` unless the parts of a plan can belong to one model."""
    _demand(re.fullmatch("[0-9a-f]{64}", plan.fingerprint), f"fingerprint: {plan.fingerprint!r}")
    _demand(plan.input_shapes, "input_shapes: there are none")
    for shape in plan.input_shapes:
        fits = all(0 < size <= LARGEST_COUNT for size in shape)
        _demand(fits and math.prod(shape) <= LARGEST_COUNT, f"input_shapes: {shape}")
    _demand(_ascending(plan.whole_groups), f"whole_groups: {plan.whole_groups}")
    _demand(plan.block > 0, f"block: {plan.block}")
    left = [cost for cost, _ in plan.rounds]
    _demand(all(0 <= cost <= 1 for cost in left), f"rounds: shares of the cost {left}")
    if plan.latency is not None:
        seconds = plan.latency.before, plan.latency.after
        _demand(min(seconds) > 0, f"latency: {seconds}")
    for index, row in enumerate(plan.creators):
        _check_creator(row, f"creators.{index} ('{row.layer}')")
        _demand(-1 <= row.group < len(plan.groups), f"creators.{index}: group {row.group}")
    for index, group in enumerate(plan.groups):
        members = [row for row in plan.creators if row.group == index]
        _check_group(group, members, f"groups.{index}")
    _check_layers(plan)
    _check_merges(plan)
    for index, variable in enumerate(plan.variables):
        _check_variable(variable, f"variables.{index} ('{variable.path}')")


def _check_creator(row: "CreatorPlan", place: str) -> None:
    _demand(0 < row.channels <= LARGEST_COUNT, f"{place}: {row.channels} channels")
    _demand(_ascending(row.removed, row.channels), f"{place}: removed channels {row.removed}")
    _demand(row.kept > 0, f"{place}: all of its channels are removed")
    _demand(row.group >= 0 or not row.removed, f"{place}: removed channels of no group")
    if not row.clusters:
        return
    members = sorted(index for cluster in row.clusters for index in cluster)
    _demand(
        members == list(range(row.channels)),
        f"{place}: clusters must hold each of its {row.channels} channels once",
    )
    gone = set(row.removed)
    _demand(
        gone and all(len(set(cluster) - gone) == 1 for cluster in row.clusters),
        f"{place}: removed channels are not those that are merged",
    )


def _check_group(group: "GroupPlan", members: list["CreatorPlan"], place: str) -> None:
    names = tuple(dict.fromkeys(row.layer for row in members))
    _demand(names and names == group.creators, f"{place}: its creators are {group.creators}")
    # A unit is a channel of one creator or more.
    channels = sum(row.channels for row in members)
    removed = sum(len(row.removed) for row in members)
    _demand(0 < group.units <= channels, f"{place}: {group.units} units")
    fits = 0 <= group.removed < group.units and group.removed <= removed
    _demand(fits and bool(removed) == bool(group.removed), f"{place}: {group.removed} removed")
    widths = [width for width, _ in group.damages]
    fits = _ascending(reversed(widths), group.units + 1) and widths[:1] in ([], [group.units])
    _demand(fits, f"{place}: damages at widths {widths}")
    if not group.scores:
        _demand(not group.removed_units, f"{place}: removed units without scores")
        return
    _demand(len(group.scores) == group.units, f"{place}: {len(group.scores)} scores for its units")
    units = group.removed_units
    fits = _ascending(units, group.units) and len(units) == group.removed
    _demand(fits, f"{place}: removed units {units}")


def _check_layers(plan: "Plan") -> None:
    paths = {row.layer for row in plan.layers}
    _demand(len(paths) == len(plan.layers), "layers: one is there twice")
    for index, row in enumerate(plan.layers):
        _check_layer(row, f"layers.{index} ('{row.layer}')")
    for word in ("before", "after"):
        total = sum((getattr(row, word) for row in plan.layers), Cost())
        _demand(getattr(plan, word) == total, f"{word}: not the sum of the layers' costs")
    for index, group in enumerate(plan.groups):
        unknown = [n for n in (*group.followers, *group.readers) if n not in paths]
        _demand(not unknown, f"groups.{index}: there is no layer {unknown[:1]}")
    unknown = [name for name in plan.inexact if name not in paths]
    _demand(not unknown, f"inexact: there is no layer {unknown[:1]}")
    for index, creator in enumerate(plan.creators):  # 'attention:heads' is in 'attention'
        known = creator.layer in paths or creator.layer.rpartition(":")[0] in paths
        _demand(known, f"creators.{index}: there is no layer '{creator.layer}'")


def _check_layer(row: "LayerPlan", place: str) -> None:
    pairs = {
        "channels": row.channels,
        "parameters": (row.before.parameters, row.after.parameters),
        "flops": (row.before.flops, row.after.flops),
        "memory": (row.before.memory, row.after.memory),
        "cache": (row.before.cache, row.after.cache),
    }
    for word, (before, after) in pairs.items():
        _demand(0 <= after <= before <= LARGEST_COST, f"{place}: {word} {before} -> {after}")


def _check_merges(plan: "Plan") -> None:
    if not plan.merges:
        clustered = any(row.clusters for row in plan.variables)
        _demand(not clustered, "variables: clusters, although no layer merges channels")
        return
    for index, row in enumerate(plan.creators):
        _demand(row.clusters or not row.removed, f"creators.{index}: dropped channels, not merged")
    for index, group in enumerate(plan.groups):
        _demand(not group.scores, f"groups.{index}: scores, although channels are merged")
    _demand(any(row.clusters for row in plan.variables), "variables: none is clustered")


def _check_variable(row: "VariablePlan", place: str) -> None:
    _demand(all(0 <= size <= LARGEST_COUNT for size in row.shape), f"{place}: shape {row.shape}")
    for axis, labels in row.clusters.items():
        fits = 0 <= axis < len(row.shape) and len(labels) == row.shape[axis]
        _demand(fits, f"{place}: clusters along axis {axis} of shape {row.shape}")
        # Clusters are counted by the channel that they become: some position has each.
        count = len(set(labels))
        _demand(
            0 < count < len(labels) and set(labels) == set(range(count)),
            f"{place}: clusters along axis {axis} are no partition",
        )


def _ascending(indices: Iterable[int], limit: int = LARGEST_COUNT) -> bool:
    """Whether these are indices below a limit, each greater than the one before."""
    indices = list(indices)
    return indices == sorted(set(indices)) and all(0 <= index < limit for index in indices)


def _demand(condition, text: str) -> None:
    if not condition:
        raise ValueError(text if len(text) < 300 else text[:300] + "...")
