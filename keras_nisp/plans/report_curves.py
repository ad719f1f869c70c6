"""The damages by which widths were chosen, as figures of `Plan.report`: geometry for SVG."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_nisp.plans.plan import Plan

HEIGHT = 100  # of a figure, in its own units
BEYOND = 1.5  # of the largest damage that was taken: how far figures show what was not
LEAST = 1e-30  # damage of a scale
COSTS = {
    "ratio": "channels",
    "flops_reduction": "FLOPs",
    "params_reduction": "parameters",
    "memory_reduction": "activation memory",
    "cache_reduction": "keys and values",
    "latency_reduction": "latency",
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Damage against what goes, from the left: channels of a group, or percents of the cost.

    Attributes:
        title: the group's first layer, or what the cost is.
        group: its index; `None` for all groups together.
        gone, whole: what goes, and the end of the axis.
        damage: of what goes.
        area, line: outline of the damage of what goes; what more would have done.
        following: how much more, and what it would have added; `None` if it was not looked at.
    """

    title: str
    group: int | None
    gone: float
    whole: float
    damage: float
    area: str
    line: str = ""
    following: tuple[float, float] | None = None


def curves(plan: "Plan") -> tuple[list[Curve], list[Curve]]:
    """One of all groups together, and those of the groups whose damage was seen, on one scale;
    nothing if widths were not chosen by damage."""
    if not plan.rounds:
        return [], []
    rounds = [(100 * (1 - cost), damage) for cost, damage in plan.rounds]
    title = COSTS[getattr(plan.budget, "kind", "ratio")]
    together = _curve(title, None, rounds, rounds[-1][0], 100.0, max(d for _, d in rounds))
    paths = {
        index: [(float(group.units - width), damage) for width, damage in group.damages]
        for index, group in enumerate(plan.groups)
        if group.damages
    }
    taken = (
        damage
        for index, points in paths.items()
        for gone, damage in points
        if gone <= plan.groups[index].removed
    )
    top = BEYOND * max(taken, default=0.0)
    groups = [(plan.groups[index], index, points) for index, points in paths.items()]
    return [together], [
        _curve(group.creators[0], index, points, group.removed, group.units, top)
        for group, index, points in groups
    ]


def _curve(title, group, points: Sequence[tuple[float, float]], gone, whole, top: float) -> Curve:
    before = [point for point in points if point[0] <= gone] or [(0.0, 0.0)]
    after = [point for point in points if point[0] > gone]
    damage = before[-1][1]
    area = f"M0 {HEIGHT}{_line(before, top)}V{HEIGHT}z" if gone else ""
    line = f"M{_place(before[-1], top)}{_line(after, top)}" if after else ""
    following = (after[0][0] - gone, after[0][1] - damage) if after else None
    return Curve(title, group, gone, whole, damage, area, line, following)


def _line(points: Sequence[tuple[float, float]], top: float) -> str:
    return "".join(f"L{_place(point, top)}" for point in points)


def _place(point: tuple[float, float], top: float) -> str:
    share = min(max(point[1], 0.0) / max(top, LEAST), 1.0)
    return f"{point[0]:.4g} {HEIGHT * (1 - share):.4g}"
