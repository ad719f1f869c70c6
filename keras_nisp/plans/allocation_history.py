"""What an allocation went by: predicted damages, from round to round."""

import math
from collections.abc import Iterable, Sequence

import numpy as np


class AllocationHistory:
    """Damages by which groups were chosen to lose channels.

    Args:
        widths: of the groups, before any channel goes.

    Attributes:
        rounds: before each round and at the end the share of the cost that is left, and the damage
            until then.
        taken: for each group the widths that it went through, with the damage until there.
        ahead: widths that the last round looked at, and were not taken.
    """

    def __init__(self, widths: Sequence[int]):
        self.rounds: list[tuple[float, float]] = []
        self.taken = [{width: 0.0} for width in widths]
        self.ahead: list[dict[int, float]] = [{} for _ in widths]

    def look(self, groups: Sequence[int], widths: Sequence[int], damages: Iterable[float]) -> None:
        """Notes what groups would add to the damage at some widths."""
        for group in set(groups):
            self.ahead[group] = {}
        for group, width, damage in zip(groups, widths, damages, strict=True):
            if math.isfinite(damage):
                present = self.taken[group][min(self.taken[group])]
                self.ahead[group][width] = present + float(damage)

    def reach(self, cost: float, widths: Sequence[int]) -> None:
        """Notes the share of the cost that is left, and what groups keep by now."""
        for group, width in enumerate(widths):
            if not self.ahead[group] or width == min(self.taken[group]):
                continue
            known = sorted((self.taken[group] | self.ahead[group]).items())
            damage = float(np.interp(width, [w for w, _ in known], [d for _, d in known]))
            self.taken[group] = {w: d for w, d in reversed(known) if w > width} | {width: damage}
            self.ahead[group] = {w: d for w, d in reversed(known) if w < width}
        damage = sum(points[min(points)] for points in self.taken)
        self.rounds.append((rounded(cost), rounded(damage)))

    def curve(self, group: int) -> tuple[tuple[int, float], ...]:
        """A group's widths from all of its channels down to beyond what it keeps, with the damage
        until there; empty where none was seen."""
        points = sorted((self.taken[group] | self.ahead[group]).items(), reverse=True)
        return tuple((width, rounded(damage)) for width, damage in points) if points[1:] else ()


def rounded(value: float) -> float:
    """As many digits as a figure shows: they keep files small."""
    return float(f"{value:.3g}")
