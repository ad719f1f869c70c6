"""Tables of what a model loses if one coupled group loses channels, for each group."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_nisp.channels.channel_map import ChannelMap, Group
from keras_nisp.errors import from_extra
from keras_nisp.io.files import replacing
from keras_nisp.io.shown import Shown
from keras_nisp.io.tables import Column, render_table

MOST_LINES = 10  # groups in a plot of lines; more become a heat map
SMALLEST = 1e-6  # damage in a plot, of which logarithms are taken


@dataclasses.dataclass(frozen=True, repr=False)
class Sensitivity(Shown):
    """Accuracy, another metric or damage to the outputs, against the share of channels removed.

    `print` it for a table, `plot` it for a picture. A table of damages can also choose where
    channels are removed, for any number of budgets and without reading data again:
    `prune(model, importance, flops_reduction=0.5, allocation=table)`. Damages are then added up,
    which is only roughly true. If much is removed, `allocation="predicted"` is better: it takes
    damages again as channels are removed.

    Attributes:
        model: the model's name.
        importance: name of the importance that chose the channels.
        baseline: accuracy of the whole model, or its figure by another metric; `None` for damages.
        groups: for each group the layers that create its channels.
        channels: for each group the number of channels that may be removed.
        ratios: shares of the channels removed.
        accuracies: `accuracies[group][i]` is the accuracy at `ratios[i]`; empty for damages.
        damages: likewise, how far the outputs move once kernels are refitted (the divergence of
            probabilities, otherwise the squared difference over twice the variance); `None` for
            groups whose damage cannot be seen, such as key channels of attention. Empty for
            accuracies.
        metric: what `baseline` and `accuracies` hold, by the name of the function.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> x = np.random.default_rng(0).normal(size=(64, 4))
    >>> table = sensitivity(model, Magnitude(), calibration=x, ratios=[0.25, 0.5], verbose=0)
    >>> table.groups, table.ratios, table.damages[0][0] < table.damages[0][1]
    ((('hidden',),), (0.25, 0.5), True)
    """

    model: str
    importance: str
    baseline: float | None
    groups: tuple[tuple[str, ...], ...]
    channels: tuple[int, ...]
    ratios: tuple[float, ...]
    accuracies: tuple[tuple[float, ...], ...] = ()
    damages: tuple[tuple[float | None, ...], ...] = ()
    metric: str = "accuracy"

    def __str__(self) -> str:
        columns = [Column("layers"), Column("channels", True)]
        columns += [Column(f"-{100 * ratio:g} %", True) for ratio in self.ratios]
        rows = [
            (_name(layers), count, *map(self._text, values))
            for layers, count, values in zip(
                self.groups, self.channels, self.accuracies or self.damages, strict=True
            )
        ]
        title = "damage to the outputs"
        if self.baseline is not None:
            title = f"{self.metric} {self._text(self.baseline)};"
        title = f"{self.model}: {title} with one group pruned by {self.importance}"
        return render_table(title, columns, rows)

    def _text(self, value: float | None) -> str:
        if value is None:
            return "not seen"
        if self.accuracies:
            return f"{value:.4f}" if self.metric == "accuracy" else f"{value:.4g}"
        return f"{value:.3g}"

    def __repr__(self) -> str:
        what = "accuracies" if self.accuracies else "damages"
        return f"<Sensitivity: {what} of {len(self.groups)} groups of '{self.model}'>"

    def to_dict(self) -> dict:
        """The figures as plain data."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def plot(self, path: str | os.PathLike) -> None:
        """Draws the figures against the ratio: a line for each group, or a heat map of many.

        Args:
            path: path of the picture; matplotlib chooses the format by its suffix.

        Raises:
            ImportError: matplotlib is missing.
        """
        with from_extra("examples", "Plots need"):
            from matplotlib.figure import Figure
        figure = Figure(layout="constrained", dpi=150)
        axes = figure.subplots()
        (_lines if len(self.groups) <= MOST_LINES else _heat_map)(self, figure, axes)
        axes.set_title(f"{self.model}, {self.importance}", loc="left", fontsize="medium")
        with replacing(path) as temporary:
            figure.savefig(temporary)


def layers_of(group: Group, channel_map: ChannelMap) -> tuple[str, ...]:
    """Paths of the layers that create a group's channels."""
    return tuple(dict.fromkeys(channel_map.creators[i].layer for i in group.creators))


class AddedDamages:
    """Damages of a table, added up: answers `Allocation` in the place of a `DamagedNetwork`.

    Between two ratios the root of a damage is interpolated; beyond the last it is extrapolated.

    Raises:
        ValueError: the table holds no damages, or belongs to another model.
    """

    def __init__(self, channel_map: ChannelMap, table: Sensitivity):
        if not table.damages:
            raise ValueError(
                "Expected `allocation` to be a table of damages, as from `sensitivity(model, "
                "importance, calibration=...)` without `data`. Received a table of accuracies."
            )
        counts = tuple(len(group.units) for group in channel_map.groups)
        if counts != table.channels:  # by position, as plans: layers may have other names
            raise ValueError(
                f"Expected `allocation` to be a table of the coupled groups of model "
                f"'{channel_map.model.name}'. Received one of '{table.model}', whose groups or "
                "widths are others: call `sensitivity` for this model."
            )
        self.curves, self.seen = [], np.zeros(channel_map.count, bool)
        for group, damages in zip(channel_map.groups, table.damages, strict=True):
            known = [damage for damage in damages if damage is not None]
            if known:
                self.curves.append((group.units, *_curve(table.ratios, known)))
                self.seen[group.units] = True

    def renew(self, keep: np.ndarray) -> None:
        """Does nothing: a table only knows the whole network."""

    def measure(self, keep: np.ndarray) -> float:
        """The sum over groups."""
        return sum(
            float(np.interp(1 - keep[units].mean(), ratios, roots)) ** 2
            for units, ratios, roots in self.curves
        )

    def predict(self, keep: np.ndarray, candidates: Sequence[np.ndarray]) -> np.ndarray:
        """By how much the sum grows from one set of kept units to others."""
        return np.array([self.measure(other) for other in candidates]) - self.measure(keep)


def _curve(ratios: Sequence[float], damages: list[float]) -> tuple[list[float], list[float]]:
    """Shares from 0 to 1 and the root of the damage at each of them, which never falls."""
    roots = [0.0, *np.sqrt(np.maximum.accumulate(np.maximum(damages, 0))).tolist()]
    shares = [0.0, *ratios]
    slope = (roots[-1] - roots[-2]) / (shares[-1] - shares[-2])
    return [*shares, 1.0], [*roots, roots[-1] + slope * (1 - shares[-1])]


# Pictures ----------------------------------------------------------------------------


def _name(layers: tuple[str, ...]) -> str:
    return layers[0] + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")


def _lines(table: Sensitivity, figure, axes) -> None:
    figure.set_size_inches(7, 4.5)
    scale, unit = _percent(table)
    ratios = [100 * ratio for ratio in table.ratios]
    for layers, values in zip(table.groups, table.accuracies or table.damages, strict=True):
        points = [np.nan if value is None else value for value in values]
        shares = ratios
        if table.baseline is not None:
            points, shares = [scale * value for value in (table.baseline, *points)], [0, *ratios]
        axes.plot(shares, points, marker="o", markersize=3, label=_name(layers))
    if table.baseline is not None:
        axes.axhline(scale * table.baseline, color="black", linestyle=":", linewidth=1)
        axes.set_ylabel(table.metric + (unit and f", {unit}"))
    else:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylabel("damage to the outputs")
    axes.set_xlabel("channels of the group removed, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def _heat_map(table: Sensitivity, figure, axes) -> None:
    figure.set_size_inches(3 + 0.6 * len(table.ratios), 1.2 + 0.2 * len(table.groups))
    colors: dict[str, Any]
    if table.baseline is not None:
        scale, unit = _percent(table)
        values = scale * (np.array(table.accuracies) - table.baseline)
        # Another metric may be better or worse if it grows: no end of the scale is the good one.
        most = np.abs(values[np.isfinite(values)]).max(initial=0) or 1.0
        colors = {"cmap": "coolwarm", "vmin": -most, "vmax": most}
        if table.metric == "accuracy":
            colors = {"cmap": "magma", "vmax": 0}
        label = f"change of {table.metric}" + (unit and ", points")
    else:
        values = np.log10(np.maximum(np.array(table.damages, float), SMALLEST))
        colors, label = {"cmap": "magma_r"}, "damage to the outputs, power of ten"
    picture = axes.imshow(values, aspect="auto", **colors)
    axes.set_xticks(range(len(table.ratios)), [f"{100 * r:g} %" for r in table.ratios])
    axes.set_yticks(range(len(table.groups)), [_name(layers) for layers in table.groups])
    axes.tick_params(labelsize="small")
    axes.set_xlabel("channels removed")
    figure.colorbar(picture, ax=axes, label=label)


def _percent(table: Sensitivity) -> tuple[float, str]:
    """By what a figure is multiplied in a picture, and the unit that this makes."""
    return (100.0, "%") if table.metric == "accuracy" else (1.0, "")
