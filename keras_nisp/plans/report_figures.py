"""The figures of `Plan.report`: geometry for SVG, of which the template makes pictures."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_nisp.plans.plan import Plan
    from keras_nisp.plans.plan_rows import GroupPlan, LayerPlan

LARGEST = 1e300  # of a score in a figure: differences of larger ones overflow
DWARF = 20  # times what three quarters of the layers do not exceed
COLOURS = 6  # of coupled groups; the number in the mark tells groups of one color apart


def colours(plan: "Plan") -> dict[int, int]:
    """A color for each group that couples layers, by the index of the group."""
    coupled = [index for index, group in enumerate(plan.groups) if len(group.creators) > 1]
    return {index: place % COLOURS for place, index in enumerate(coupled)}


# The network, drawn ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Panel:
    """One quantity along the network.

    Attributes:
        title: what it is.
        largest: the largest amount, and the layer that has it.
        top, height: where the panel lies, in pixels.
        paths: outlines before and after.
        root: whether heights are square roots, since one layer would dwarf the others.
    """

    title: str
    largest: tuple[int, str]
    top: int
    height: int
    paths: tuple[str, str]
    root: bool = False


@dataclasses.dataclass(frozen=True)
class Drawing:
    """The network from left to right: a column for each layer with parameters.

    Attributes:
        layers: these layers.
        height: in pixels.
        panels: widths and costs.
        strip: at the bottom, colors of coupled groups, each with its first column and how many.
    """

    layers: "list[LayerPlan]"
    height: int
    panels: list[Panel]
    strip: list[tuple[int, int, int]]


def drawing(plan: "Plan", marks: dict[str, int]) -> Drawing:
    # Layers without parameters repeat what is before them, or unroll it (Flatten).
    layers = [row for row in plan.layers if row.before.parameters and row.channels[0]]
    amounts = {
        "channels": [row.channels for row in layers],
        "FLOPs": [(row.before.flops, row.after.flops) for row in layers],
        "parameters": [(row.before.parameters, row.after.parameters) for row in layers],
    }
    panels, top = [], 0
    for title, pairs in amounts.items():
        top, height = top + 26, 150 if title == "channels" else 72
        largest = max((before for before, _ in pairs), default=0)
        where = next((r.layer for r, p in zip(layers, pairs, strict=True) if p[0] == largest), "")
        outline = _body if title == "channels" else _skyline
        root = _is_dwarfed([before for before, _ in pairs])
        power = 0.5 if root else 1
        columns = zip(*pairs, strict=True)
        heights = [[height * (n / max(largest, 1)) ** power for n in column] for column in columns]
        before, after = [outline(h, top, height) for h in heights] or ("", "")
        panels.append(Panel(title, (largest, where), top, height, (before, after), root))
        top += height
    strip = _strip([marks.get(row.layer) for row in layers], colours(plan))
    return Drawing(layers, top + 36 * bool(strip), panels, strip)


def _is_dwarfed(amounts: Sequence[int]) -> bool:
    """Whether one layer is so large that three quarters of the others would not be seen."""
    some = sorted(amount for amount in amounts if amount)
    return bool(some) and some[-1] > DWARF * some[3 * len(some) // 4]


def _skyline(heights: Sequence[float], top: int, height: int) -> str:
    """An outline that stands on the bottom of its panel."""
    steps = "".join(f"V{_short(top + height - value)}h1" for value in heights)
    return f"M0 {top + height}{steps}V{top + height}z"


def _body(heights: Sequence[float], top: int, height: int) -> str:
    """An outline that is the same above and below the middle of its panel."""
    middle = top + height / 2
    upper = "".join(f"V{_short(middle - value / 2)}h1" for value in heights)
    lower = "".join(f"V{_short(middle + value / 2)}h-1" for value in reversed(heights))
    return f"M0 {_short(middle)}{upper}{lower}z"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _strip(marks: list[int | None], colours: dict[int, int]) -> list[tuple[int, int, int]]:
    """Runs of layers of one coupled group."""
    runs, column = [], 0
    for mark, run in itertools.groupby(marks):
        count = len(list(run))
        if mark in colours:
            runs.append((colours[mark], column, count))
        column += count
    return runs


# Scores and clusters -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Figure:
    """Bars of what stays and of what goes in one group, one unit high for each channel.

    Attributes:
        group: its index.
        title: its first layer.
        kept, removed: how many channels the bars hold.
        bars: pairs of what stays and what goes, from left to right.
        limits: of the axis.
        threshold: where the line is, in bars, and the score there; `None` without a line.
        apart: whether all that goes lies left of it, and all that stays right of it.
        unscored: how many channels have no score, so no bar.
    """

    group: int
    title: str
    kept: int
    removed: int
    bars: list[tuple[int, int]]
    limits: tuple[float, float]
    threshold: tuple[float, float] | None = None
    apart: bool = True
    unscored: int = 0

    @property
    def top(self) -> int:
        return max(1, *map(sum, self.bars))

    @property
    def paths(self) -> tuple[str, str]:
        """What stays, below what goes."""
        top, bars = self.top, list(enumerate(self.bars))
        kept = (f"M{i} {top}v-{stays}h.9v{stays}z" for i, (stays, _) in bars if stays)
        gone = (f"M{i} {top - stays}v-{gone}h.9v{gone}z" for i, (stays, gone) in bars if gone)
        return "".join(kept), "".join(gone)


def figures(plan: "Plan") -> list[Figure]:
    if plan.merges:
        firsts = {c.group: c for c in reversed(plan.creators) if c.clusters and c.group >= 0}
        return [_clusters(i, c.layer, c.clusters) for i, c in sorted(firsts.items())]
    return [_histogram(i, group) for i, group in enumerate(plan.groups) if group.scores]


def _clusters(index: int, layer: str, clusters: Iterable[Sequence[int]]) -> Figure:
    """A bar for each cluster, the largest first."""
    sizes = sorted(map(len, clusters), reverse=True)
    bars = [(1, size - 1) for size in sizes]
    return Figure(index, layer, len(sizes), sum(sizes) - len(sizes), bars, (1, len(sizes)))


def _histogram(index: int, group: "GroupPlan") -> Figure:
    """Scores in bars of equal width, of which an edge is at the threshold if there is one."""
    gone = set(group.removed_units)
    bounded = [s if s is None else min(max(s, -LARGEST), LARGEST) for s in group.scores]
    scored = [(score, i in gone) for i, score in enumerate(bounded) if score is not None]
    removed = [score for score, is_gone in scored if is_gone]
    kept = [score for score, is_gone in scored if not is_gone]
    level, apart = _threshold(removed, kept)
    low, high = min(removed + kept, default=0.0), max(removed + kept, default=0.0)
    width = (high - low) / min(30, 6 + 2 * math.isqrt(len(scored))) or 1.0
    start = level if apart and level is not None else low
    columns = [math.floor((score - start) / width) for score, _ in scored]
    first, last = min(columns, default=0), max(columns, default=0)
    left = start + first * width
    bars = [[0, 0] for _ in range(last - first + 1)]
    for column, (_, is_gone) in zip(columns, scored, strict=True):
        bars[column - first][is_gone] += 1
    return Figure(
        index,
        group.creators[0],
        len(kept),
        len(removed),
        [(kept_count, gone_count) for kept_count, gone_count in bars],
        (left, left + len(bars) * width),
        None if level is None else (round((level - left) / width, 2), level),
        apart,
        len(group.scores) - len(scored),
    )


def _threshold(removed: list[float], kept: list[float]) -> tuple[float | None, bool]:
    """The score of the line, and whether all that goes lies left of it."""
    if not removed or not kept:
        return None, True
    apart = max(removed) < min(kept)
    return ((max(removed) + min(kept)) / 2 if apart else max(removed)), apart
