"""From scores and a budget to the units that are removed."""

import contextlib
import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_nisp.channels.channel_map import ChannelMap, Group
from keras_nisp.channels.cost import CostModel
from keras_nisp.errors import BudgetError
from keras_nisp.plans.budget import Budget


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """Possible removals, one after another; units of a step are removed together.

    Attributes:
        units: units of all steps, one step after another.
        sizes: number of units of each step.
        priority: steps of lower priority come first. In local ranking it is the share
            of the group that is gone halfway through the step.
        groups: index of the group of each step.
    """

    units: np.ndarray
    sizes: np.ndarray
    priority: np.ndarray
    groups: np.ndarray

    def of(self, chosen: np.ndarray) -> np.ndarray:
        """Units of the chosen steps (a boolean for each)."""
        return self.units[np.repeat(chosen, self.sizes)]

    def by_priority(self) -> "Steps":
        """The same steps in the order in which they are taken."""
        order = np.argsort(self.priority, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        units = self.units[np.argsort(np.repeat(rank, self.sizes), kind="stable")]
        return Steps(units, self.sizes[order], self.priority[order], self.groups[order])


class Solver:
    """Finds what to remove from a traced model under a budget.

    Args:
        channel_map: the traced model.
        budget: the budget. Its names are checked here.
        removed: boolean per unit: removed already, always to stay so.

    Attributes:
        block: widths are multiples of it; see `Budget.blocks`.
        is_local: whether shares decide, and scores within a block alone.
    """

    def __init__(self, channel_map: ChannelMap, budget: Budget, removed: np.ndarray | None = None):
        self.channel_map = channel_map
        self.budget = budget
        self.block = budget.blocks[0]
        self.is_local = budget.ranking == "local" or budget.kind == "ratios"
        self.costs = CostModel(channel_map)
        self.removed = np.zeros(channel_map.count, bool) if removed is None else removed
        self.excluded = _excluded(channel_map, budget.exclude)
        self.wanted_widths = _wanted_widths(channel_map, budget.widths)
        self.group_ratios = _group_ratios(channel_map, budget.ratios)
        self.block_shares = _block_shares(channel_map, self.wanted_widths)

    def select(self, scores: np.ndarray) -> np.ndarray:
        """The units to remove, as a boolean array.

        Raises:
            BudgetError: the reduction cannot be reached; the message says what can.
        """
        *wider, narrowest = self.budget.blocks
        for self.block in wider:
            with contextlib.suppress(BudgetError):
                return self.channel_map.seen(self._chosen(scores))
        self.block = narrowest
        return self.channel_map.seen(self._chosen(scores))

    def _chosen(self, scores: np.ndarray) -> np.ndarray:
        """The units to remove, with widths in multiples of `block`."""
        steps, budget = self._steps(scores), self.budget
        if budget.kind == "widths":
            return self._reach_widths(scores)
        if budget.kind == "ratios":
            return steps.of(steps.priority < self.group_ratios[steps.groups])
        if budget.kind == "ratio" and budget.ranking == "local":
            return steps.of(steps.priority < budget.ratio)
        return self._fewest(steps.by_priority(), scores)

    def _held(self, scores: np.ndarray) -> np.ndarray:
        """Boolean per unit: the best of each block, where a group has several.

        Layers that are coupled by a concatenation create different blocks of their group:
        none may lose all of its channels. (A group of one block has its least width.)
        """
        held = np.zeros(self.channel_map.count, bool)
        for group in self.channel_map.groups:
            blocks = self.channel_map.blocks(group)
            for units in blocks if len(blocks) > 1 else ():
                left = units[~self.removed[units]]
                if len(left) and not np.isnan(scores[left]).any():
                    held[left[np.argmax(scores[left])]] = True
        return held

    def _reach_widths(self, scores: np.ndarray) -> np.ndarray:
        """The units of least score in each block, as many as the given widths want."""
        stay, chosen = self.excluded | self._held(scores), [np.array([], int)]
        for group in self.channel_map.groups:
            for units in self.channel_map.blocks(group):
                able = self._able(units, scores, stay)
                chosen.append(able[: round(self.block_shares[units[0]] * len(units))])
        removed = self.channel_map.seen(np.concatenate(chosen))
        for creator in self.channel_map.creators:
            wanted = self.wanted_widths.get(creator.layer)
            left = int(np.count_nonzero(~removed[creator.units]))
            if wanted is not None and left != wanted:
                raise BudgetError(
                    f"Expected a width of '{creator.layer}' that can be reached. Received: "
                    f"{wanted} of {len(creator.units)} channels, but {left} is what coupled "
                    "layers, fixed channels and `exclude` allow (see `plan.explain`)."
                )
        return np.flatnonzero(removed)

    def _able(self, units: np.ndarray, scores, stay) -> np.ndarray:
        """Those of the units that may go: first what is removed already, then by score."""
        units = units[~stay[units] & ~np.isnan(scores[units])]
        return units[np.lexsort((scores[units], ~self.removed[units]))]

    def _in_order(self, group: Group, scores, stay) -> np.ndarray:
        """Those units of a group that may go, in the order in which they do.

        In local ranking all blocks lose the same share. Their scores do not compare: where zeros
        widen a residual stream, its first channels have readers in every stage, the last in one.
        """
        blocks = self.channel_map.blocks(group) if self.is_local else [group.units]
        parts = [self._able(units, scores, stay) for units in blocks]
        shares = [(np.arange(len(p)) + 0.5) / len(b) for p, b in zip(parts, blocks, strict=True)]
        units, share = np.concatenate(parts), np.concatenate(shares)
        return units[np.lexsort((scores[units], share, ~self.removed[units]))]

    def _steps(self, scores: np.ndarray) -> Steps:
        groups, stay = enumerate(self.channel_map.groups), self.excluded | self._held(scores)
        parts = [self._group_steps(index, group, scores, stay) for index, group in groups]
        return Steps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _group_steps(self, index: int, group: Group, scores, stay) -> tuple:
        """The four arrays of `Steps` for one group; `stay` says which units do."""
        units, total = self._in_order(group, scores, stay), len(group.units)
        counts = np.array([total - width for width in self.widths(total)])
        counts = counts[counts <= len(units)]
        starts, sizes = counts[:-1], np.diff(counts)
        units = units[: counts[-1]]
        priority = (counts[:-1] + counts[1:]) / 2 / total
        if len(starts) and not self.is_local:
            # Relative to the group, scores of different groups can be compared.
            mean = np.nanmean(scores[group.units])
            means = np.add.reduceat(scores[units], starts) / sizes
            priority = np.maximum.accumulate(means / mean if mean > 0 else 0 * means)
        if len(starts):
            gone = np.logical_and.reduceat(self.removed[units], starts)
            priority = np.where(gone, -np.inf, priority)
        return units, sizes, priority, np.full(len(sizes), index)

    def widths(self, total: int) -> list[int]:
        """Widths that a group of `total` units may have, from the widest down.

        Steps from one to the next have the priority of the middle between them: widths are those
        nearest to a common share. A group no wider than a block stays as it is.
        """
        least = self.budget.min_channels
        least = max(1, math.ceil(least * total) if least < 1 else int(least))
        multiple = self.block
        return [total] + [w for w in range(total - 1, least - 1, -1) if w % multiple == 0]

    def _fewest(self, steps: Steps, scores: np.ndarray) -> np.ndarray:
        """Units of a run of steps, in order of priority, that meets the budget; with one step
        less it does not.

        That holds for measures that do not fall with every step, too (measured latencies): both
        sides of the end were looked at. If they do fall, there is no shorter run.
        """
        measure, name = self._measure(scores)
        ends = np.cumsum([0, *steps.sizes])

        def left(count: int) -> float:
            removed = np.zeros(self.channel_map.count, bool)
            removed[steps.units[: ends[count]]] = True
            return measure(removed)

        whole, least = left(0), left(len(steps.sizes))
        target = whole * (1 - self.budget.amount)
        if least > target:
            raise BudgetError(
                f"Expected a reduction of {name} that can be reached. Received: "
                f"{self.budget.kind}={self.budget.amount:g}, but with everything removed that may "
                f"be, it is {1 - least / whole:.4f}. Ask for less, or loosen `exclude`, "
                "`min_channels`, `round_to` or `target`."
            )
        low, high = int(np.sum(steps.priority == -np.inf)), len(steps.sizes)
        while low < high:
            middle = (low + high) // 2
            if left(middle) <= target:
                high = middle
            else:
                low = middle + 1
        return steps.units[: ends[low]]

    def _measure(self, scores) -> tuple[Callable[[np.ndarray], float], str]:
        if self.budget.kind == "flops_reduction":
            return lambda removed: self.costs.flops(~removed), "FLOPs"
        if self.budget.kind == "params_reduction":
            return lambda removed: self.costs.parameters(~removed), "parameters"
        if self.budget.kind == "latency_reduction":
            table = self.budget.latency
            return lambda removed: table.model(self.channel_map, ~removed), "latency"
        scored = np.concatenate([group.units for group in self.channel_map.groups])
        scored = scored[~np.isnan(scores[scored])]
        return lambda removed: np.count_nonzero(~removed[scored]), "channels"


def matching(channel_map: ChannelMap, entry: Any, argument: str) -> list[str]:
    """Paths of the layers that a name, pattern or layer object stands for.

    Raises:
        ValueError: nothing matches; the message names what is near.
    """
    calls = channel_map.calls
    if not isinstance(entry, str):
        paths = [call.path for call in calls if call.layer is entry]
        entry = getattr(entry, "name", entry)
    else:
        paths = list(channel_map.paths.get(entry, ()))
        if set(entry) & set("*?["):
            matches = fnmatch.filter(channel_map.paths, entry)
            paths += [path for name in matches for path in channel_map.paths[name]]
    if not paths:
        near = difflib.get_close_matches(str(entry), [call.path for call in calls], 3, 0.4)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Expected every entry of `{argument}` to match a layer of model "
            f"'{channel_map.model.name}'. Received: {entry!r}, which matches none.{hint}"
        )
    return list(dict.fromkeys(paths))


def _excluded(channel_map: ChannelMap, exclude: tuple) -> np.ndarray:
    excluded = np.zeros(channel_map.count, bool)
    for entry in exclude:
        for path in matching(channel_map, entry, "exclude"):
            excluded[channel_map.layer_units(path)] = True
    return excluded


def _wanted_widths(channel_map: ChannelMap, widths: Mapping[str, int] | None) -> dict[str, int]:
    """The width of each layer that is given one, by path."""
    channels = {creator.layer: len(creator.units) for creator in channel_map.creators}
    wanted: dict[str, int] = {}
    for pattern, width in (widths or {}).items():
        layers = [path for path in matching(channel_map, pattern, "widths") if path in channels]
        if not layers:
            raise ValueError(
                f"Expected `widths` to name layers that create channels. Received: {pattern!r}, "
                "which matches none that does."
            )
        for layer in layers:
            if width > channels[layer]:
                raise ValueError(
                    f"Expected a width of at most {channels[layer]} for '{layer}', which has as "
                    f"many channels. Received: {width}"
                )
            wanted[layer] = width
    return wanted


def _group_ratios(channel_map: ChannelMap, ratios: Mapping[str, float] | None) -> np.ndarray:
    """The ratio of each group: that of its layers, 0 where none is given."""
    result = np.zeros(len(channel_map.groups))
    given: dict[int, str] = {}
    group_of = {
        channel_map.creators[i].layer: g
        for g, group in enumerate(channel_map.groups)
        for i in group.creators
    }

    for pattern, ratio in (ratios or {}).items():
        layers = matching(channel_map, pattern, "ratios")
        groups = {group_of[layer] for layer in layers if layer in group_of}
        if not groups:
            raise ValueError(
                f"Expected `ratios` to name layers with channels that can be removed. Received: "
                f"{pattern!r}, which matches {layers[:3]}: these create none, or their channels "
                "are fixed (see `plan.explain`)."
            )
        for group in groups:
            if group in given and result[group] != ratio:
                raise ValueError(
                    f"Expected one ratio for coupled layers. Received: {given[group]!r}: "
                    f"{result[group]:g} and {pattern!r}: {ratio:g}, whose layers share channels."
                )
            given[group], result[group] = pattern, ratio
    return result


def _block_shares(channel_map: ChannelMap, widths: dict[str, int]) -> np.ndarray:
    """For each unit the share of its block that must go for layers to have their widths.

    A layer that creates several blocks has less to say than those that create one alone.
    """
    shares = np.zeros(channel_map.count)
    creators = [c for c in channel_map.creators if c.layer in widths]
    blocks = [units for group in channel_map.groups for units in channel_map.blocks(group)]
    block_of = np.full(channel_map.count, -1)
    for index, units in enumerate(blocks):
        block_of[units] = index
    for alone in (False, True):
        for creator in creators:
            free = creator.units[channel_map.free[creator.units]]
            if len(free) and (len(np.unique(block_of[free])) == 1) == alone:
                share = (len(creator.units) - widths[creator.layer]) / len(free)
                shares[np.isin(block_of, block_of[free]) & (block_of >= 0)] = min(share, 1)
    return shares
