"""From scores and a budget to the units that are removed."""

import bisect
import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from keras_nisp.channels.channel_map import ChannelMap, Group
from keras_nisp.channels.cost import CostModel
from keras_nisp.errors import BudgetError
from keras_nisp.plans.budget import Budget
from keras_nisp.plans.named_layers import block_shares, excluded_units, group_ratios, wanted_widths

if TYPE_CHECKING:
    from keras_nisp.plans.allocation import Allocation

ROUNDING = 1e-9  # share of a cost: shares such as 0.8 of a count are not exact


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """Possible removals, one after another; units of a step are removed together.

    Attributes:
        units: units of all steps, one step after another.
        sizes: number of units of each step.
        priority: steps of lower priority come first. By default it is the share
            of the group that is gone halfway through the step.
        groups: index of the group of each step.
    """

    units: np.ndarray
    sizes: np.ndarray
    priority: np.ndarray
    groups: np.ndarray

    @classmethod
    def joined(cls, parts: list["Steps"]) -> "Steps":
        """The steps of several groups."""
        arrays = ([getattr(p, field.name) for p in parts] for field in dataclasses.fields(cls))
        return cls(*map(np.concatenate, arrays))

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


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """What a solver removes.

    Attributes:
        solver: the solver.
        removed: boolean per unit.
        multiple: widths are multiples of it; see `Budget.multiples`.
    """

    solver: "Solver"
    removed: np.ndarray
    multiple: int


class Solver:
    """Finds what to remove from a traced model under a budget.

    Args:
        channel_map: the traced model.
        budget: the budget. Its names are checked here.
        removed: boolean per unit: removed already, always to stay so.
        allocation: chooses steps by damage; by default shares or scores do.
        stays: boolean per unit: not to be removed, whatever the budget says.

    Attributes:
        excluded: boolean per unit: whether it stays because of `exclude`, or as `stays` says.
        spared: boolean per unit: whether it stays because its removal saves nothing that counts.
        is_local: whether shares decide, and scores within a block alone.
    """

    def __init__(
        self,
        channel_map: ChannelMap,
        budget: Budget,
        removed: np.ndarray | None = None,
        allocation: "Allocation | None" = None,
        stays: np.ndarray | None = None,
    ) -> None:
        self.channel_map, self.budget, self.allocation = channel_map, budget, allocation
        self.is_local = budget.allocation != "global" or budget.kind == "ratios"
        self.costs = CostModel(channel_map)
        self.removed = np.zeros(channel_map.count, bool) if removed is None else removed
        self.excluded = excluded_units(channel_map, budget.exclude)
        if stays is not None:
            self.excluded |= stays
        self.spared = np.zeros(channel_map.count, bool)
        if budget.kind == "cache_reduction":
            self.spared = self._outside_cache()
            self.excluded |= self.spared
        self.wanted_widths = wanted_widths(channel_map, budget.widths)
        self.group_ratios = group_ratios(channel_map, budget.ratios)
        self.block_shares = block_shares(channel_map, self.wanted_widths)

    def _outside_cache(self) -> np.ndarray:
        """Boolean per unit: whether no keys and values go with it. Its removal would cost accuracy,
        and save nothing that the budget counts.

        Raises:
            BudgetError: no attention keeps any.
        """
        if not self.costs.cache(self.costs.everything):
            raise BudgetError(
                "Expected a model with attention for `cache_reduction`. Received: model "
                f"'{self.channel_map.model.name}', in which no rule finds keys and values. Convert "
                "attention of classes of its own with `keras_nisp.as_functional`, or give "
                "`memory_reduction` or `params_reduction` instead."
            )
        return ~self.costs.in_cache

    def select(self, scores: np.ndarray) -> Selection:
        """The units to remove.

        Raises:
            BudgetError: the reduction cannot be reached; the message says what can.
        """
        *wider, narrowest = self.budget.multiples
        for multiple in wider:
            with contextlib.suppress(BudgetError):
                return self._selected(scores, multiple)
        return self._selected(scores, narrowest)

    def _selected(self, scores: np.ndarray, multiple: int) -> Selection:
        removed = self.channel_map.removing(self._chosen(scores, multiple))
        return Selection(self, removed, multiple)

    def _chosen(self, scores: np.ndarray, multiple: int) -> np.ndarray:
        """The units to remove, with widths in multiples of a number."""
        budget = self.budget
        if budget.kind == "widths":
            return self._reach_widths(scores)
        by_group = self.group_steps(scores, multiple)
        steps = Steps.joined(by_group)
        if budget.kind == "ratios":
            return steps.of(steps.priority < self.group_ratios[steps.groups])
        if budget.kind == "ratio" and self.is_local and self.allocation is None:
            return steps.of(steps.priority < budget.ratio)
        if self.allocation is not None:
            measure, _, target = self._reachable(steps, scores)
            return self.allocation(self, by_group, measure, target)
        return self._fewest(steps.by_priority(), scores)

    def _held(self, scores: np.ndarray) -> np.ndarray:
        """Boolean per unit: the best of each block, where a group has several, and as many as
        something chooses among.

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
        for line, count, _ in self.channel_map.least:
            left = line[~self.removed[line]]
            # Those without a score, which stay, come last. Of what lies there in copies, or in
            # products, all stays.
            alone = np.array_equal(
                np.unique(line), np.sort(self.channel_map.products.deciding(line))
            )
            best = np.argsort(scores[left], kind="stable")[-count:] if alone else slice(None)
            held[self.channel_map.products.deciding(left[best])] = True
        return held

    def _reach_widths(self, scores: np.ndarray) -> np.ndarray:
        """The units of least score in each block, as many as the given widths want."""
        stay, chosen = self.excluded | self._held(scores), [np.array([], int)]
        for group in self.channel_map.groups:
            for units in self.channel_map.blocks(group):
                removable = self._removable(units, scores, stay)
                chosen.append(removable[: round(self.block_shares[units[0]] * len(units))])
        removed = self.channel_map.removing(np.concatenate(chosen))
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

    def _removable(self, units: np.ndarray, scores, stay) -> np.ndarray:
        """Those of the units that may go: first what is removed already, then by score."""
        units = units[~stay[units] & ~np.isnan(scores[units])]
        return units[np.lexsort((scores[units], ~self.removed[units]))]

    def _in_order(self, group: Group, scores, stay) -> np.ndarray:
        """Those units of a group that may go, in the order in which they do.

        Unless groups are compared by scores, all blocks lose the same share. Scores of blocks do
        not compare: where zeros widen a residual stream, its first channels have readers in every
        stage, the last in one.
        """
        blocks = self.channel_map.blocks(group) if self.is_local else [group.units]
        parts = [self._removable(units, scores, stay) for units in blocks]
        shares = [(np.arange(len(p)) + 0.5) / len(b) for p, b in zip(parts, blocks, strict=True)]
        units, share = np.concatenate(parts), np.concatenate(shares)
        return units[np.lexsort((scores[units], share, ~self.removed[units]))]

    def group_steps(self, scores: np.ndarray, multiple: int) -> list[Steps]:
        """The steps of each group, with widths in multiples of a number."""
        groups, stay = enumerate(self.channel_map.groups), self.excluded | self._held(scores)
        return [self._group_steps(index, group, scores, stay, multiple) for index, group in groups]

    def _group_steps(self, index: int, group: Group, scores, stay, multiple: int) -> Steps:
        """The steps of one group; `stay` says which units do."""
        units, total = self._in_order(group, scores, stay), len(group.units)
        counts = np.array([total - width for width in self.widths(total, multiple)])
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
        return Steps(units, sizes, priority, np.full(len(sizes), index))

    def widths(self, total: int, multiple: int) -> list[int]:
        """Widths that a group of `total` units may have, from the widest down.

        Steps from one to the next have the priority of the middle between them: widths are those
        nearest to a common share. A group no wider than a block stays as it is.
        """
        least = self.budget.min_channels
        least = max(1, math.ceil(least * total) if least < 1 else int(least))
        return [total] + [w for w in range(total - 1, least - 1, -1) if w % multiple == 0]

    def _fewest(self, steps: Steps, scores: np.ndarray) -> np.ndarray:
        """Units of a run of steps, in order of priority, that meets the budget; with one step
        less it does not.

        That holds for measures that do not fall with every step, too (measured latencies): both
        sides of the end were looked at. If they do fall, there is no shorter run.
        """
        measure, ends, target = self._reachable(steps, scores)

        def left(count: int) -> float:
            return measure(self.channel_map.removing(steps.units[: ends[count]]))

        gone, every = int(np.sum(steps.priority == -np.inf)), range(len(steps.sizes))
        count = bisect.bisect_left(every, True, lo=gone, key=lambda count: left(count) <= target)
        return steps.units[: ends[count]]

    def _reachable(self, steps: Steps, scores) -> tuple[Callable, np.ndarray, float]:
        """What measures the budget, how many units any run of the steps has, and what may be left.

        Raises:
            BudgetError: that is less than all steps leave.
        """
        measure, name = self._measure(scores)
        ends = np.cumsum([0, *steps.sizes])
        nothing = np.array([], int)
        whole, least = (measure(self.channel_map.removing(u)) for u in (nothing, steps.units))
        target = whole * (1 - self.budget.amount + ROUNDING)
        if least > target:
            given = self.budget.arguments
            limits = [n for n in ("exclude", "min_channels", "round_to", "target") if n in given]
            loosen = f", or loosen {' and '.join(f'`{name}`' for name in limits)}" if limits else ""
            unknown = next(iter(self.channel_map.unknown.values()), None)
            rule = f", or give {unknown} a rule, which may hold channels" if unknown else ""
            most = math.floor((1 - least / whole + ROUNDING) * 1e4) / 1e4  # so that it can be met
            raise BudgetError(
                f"Expected a reduction of {name} that can be reached. Received: "
                f"{self.budget.kind}={self.budget.amount:g}, but at most {most:.4f} "
                f"can be removed. Ask for less{loosen}{rule}; then `plan.explain(layer)` tells why "
                "the other channels stay."
            )
        return measure, ends, target

    def _measure(self, scores) -> tuple[Callable[[np.ndarray], float], str]:
        if self.budget.kind == "flops_reduction":
            return lambda removed: self.costs.flops(~removed), "FLOPs"
        if self.budget.kind == "params_reduction":
            return lambda removed: self.costs.parameters(~removed), "parameters"
        if self.budget.kind == "memory_reduction":
            return lambda removed: self.costs.memory(~removed), "memory of activations"
        if self.budget.kind == "cache_reduction":
            return lambda removed: self.costs.cache(~removed), "cached keys and values"
        if self.budget.kind == "latency_reduction":
            table = self.budget.table
            return lambda removed: table.model(self.channel_map, ~removed), "latency"
        scored = np.concatenate([group.units for group in self.channel_map.groups])
        scored = scored[~np.isnan(scores[scored])]
        return lambda removed: int(np.count_nonzero(~removed[scored])), "channels"
