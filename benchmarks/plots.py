"""The plots of the accuracy experiments: docs/figures/*.png from the JSON in results/.

python benchmarks/plots.py
"""

import collections
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from experiments import results
from matplotlib import ticker

FIGURES = Path(__file__).parents[1] / "docs" / "figures"

# One style for all figures: no background, and colours that have a contrast of more than 3:1
# on white pages and on dark ones.
INK, QUIET = "#7d7d7d", "#7d7d7d55"  # text and axes; the grid
COLOURS = ("#3d7fd9", "#cf6a1a", "#2f9561", "#9b62d0", "#d2515e", "#14919b", "#a37b00", "#b5518f")
STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"axes.grid": True, "grid.color": QUIET, "grid.linewidth": 0.6, "axes.axisbelow": True},
    **{"axes.prop_cycle": plt.cycler(color=COLOURS), "savefig.transparent": True},
    **{"font.size": 10, "axes.titlesize": 10, "legend.fontsize": 8.5, "savefig.dpi": 160},
    **{"lines.markersize": 5, "lines.linewidth": 1.6, "errorbar.capsize": 0},
}
plt.rcParams.update(STYLE)


def importances() -> None:
    """How far each importance is ahead of the others, at the same FLOPs, by stage."""
    tasks = results("importances")
    if not tasks:
        return
    names = dict.fromkeys(row["importance"] for rows in tasks.values() for row in rows)
    names = [name for name in names if name not in ("base", "Scratch")][::-1]
    figure, axes = plt.subplots(1, 3, figsize=(10, 0.8 + 0.32 * len(names)), sharey=True)
    stages = {
        "no repair": lambda row: row["one_shot"],
        "linear compensation": lambda row: row["compensated"],
        "fine-tuned": lambda row: row["curve"][-1],
    }
    for axis, (title, accuracy) in zip(axes, stages.items(), strict=True):
        leads = _leads(tasks, accuracy)
        for place, name in enumerate(names):
            points = leads[name]
            axis.plot(points, [place] * len(points), ".", color=INK, alpha=0.6)
            error = np.std(points, ddof=1) / np.sqrt(len(points))
            color = COLOURS[name == "NISP"]
            axis.errorbar(np.mean(points), place, xerr=error, fmt="o", color=color, zorder=3)
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("accuracy, points above the mean")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].plot([], [], ".", color=INK, alpha=0.6, label="a network")
    axes[0].errorbar([], [], [], fmt="o", color=COLOURS[0], label="mean, standard error")
    figure.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, 0.02))
    _save(figure, "importances")


def _leads(tasks, accuracy) -> dict[str, list[float]]:
    """By importance, one figure for each task: points ahead of the mean of all importances.

    At each task's own ratio, which removes the same FLOPs whatever the importance.
    """
    leads = collections.defaultdict(list)
    for rows in tasks.values():
        rows = [row for row in rows if "ratio" in row and "curve" in row]
        rows = [row for row in rows if row["importance"] != "Scratch"]
        names = dict.fromkeys(row["importance"] for row in rows)
        means = {n: np.mean([accuracy(r) for r in rows if r["importance"] == n]) for n in names}
        for name, mean in means.items():
            leads[name].append(100 * (mean - np.mean(list(means.values()))))
    return leads


def depth() -> None:
    """Error of the final responses against depth."""
    tasks = results("depth")
    if not tasks:
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True)
    depths = {task: int(task.removeprefix("plain").split("_")[0]) for task in tasks}
    tasks = dict(sorted(tasks.items(), key=lambda item: depths[item[0]]))
    names = dict.fromkeys(row["importance"] for rows in tasks.values() for row in rows)
    for axis, key, title in zip(
        axes, ("ware", "ware_compensated"), ("no repair", "linear compensation"), strict=True
    ):
        for name in names:
            values = [[r[key] for r in rows if r["importance"] == name] for rows in tasks.values()]
            axis.errorbar(
                [depths[task] for task in tasks],
                [np.mean(v) for v in values],
                [np.std(v) for v in values],
                marker="o",
                label=name,
            )
        axis.set_title(title)
        axis.set_xlabel("convolutions")
    axes[0].set_ylabel("WARE of the final responses")
    axes[1].legend(loc="upper left")
    _save(figure, "depth")


def combinations() -> None:
    """Accuracy of each combination before training, after one epoch and at the end."""
    tasks = results("combinations")
    if not tasks:
        return
    arms = dict.fromkeys(row["arm"] for rows in tasks.values() for row in rows)
    names = [name for name in arms if name != "baseline"][::-1]
    size = (6 * len(tasks), 1 + 0.3 * len(names))
    figure, axes = plt.subplots(1, len(tasks), figsize=size, squeeze=False, sharey=True)
    for axis, (task, rows) in zip(axes[0], tasks.items(), strict=True):
        base = np.mean([row["curve"][-1] for row in rows if row["arm"] == "baseline"])
        axis.axvspan(base - 0.01, base, color=INK, alpha=0.25, linewidth=0)
        for label, marker, key, epoch in (
            ("before training", ".", "start", 0),
            ("after one epoch", "d", "curve", 0),
            ("at the end", "o", "curve", -1),
        ):
            values = [[r[key][epoch] for r in rows if r["arm"] == n and key in r] for n in names]
            known = [line for line, found in enumerate(values) if found]
            means = [np.mean(values[line]) for line in known]
            spread = [np.std(values[line]) for line in known]
            axis.errorbar(means, known, xerr=spread, fmt=marker, label=label)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(task)
        axis.set_xlabel("accuracy")
    handles, labels = axes[0][0].get_legend_handles_labels()
    band = plt.Rectangle((0, 0), 1, 1, color=INK, alpha=0.25, linewidth=0)
    labels.append("baseline, and a point below")
    figure.legend([*handles, band], labels, loc="upper center", ncols=4, bbox_to_anchor=(0.5, 0.02))
    _save(figure, "combinations")


def headline() -> None:
    """ResNet-56: error against epochs, a panel for each number of epochs."""
    for task, rows in results("headline").items():
        lengths = sorted({row["epochs"] for row in rows if "epochs" in row})
        methods = list(dict.fromkeys(row["method"] for row in rows if "epochs" in row))
        colours = dict(
            zip(methods, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False)
        )
        figure, axes = plt.subplots(1, len(lengths), figsize=(8, 3.5), sharey=True, squeeze=False)
        base = next(row["curve"][0] for row in rows if row["method"] == "baseline")
        for axis, epochs in zip(axes[0], lengths, strict=True):
            axis.axhline(100 * (1 - base), color=INK, linestyle=":", label="baseline")
            for row in (row for row in rows if row.get("epochs") == epochs):
                _error_curve(axis, row, colours[row["method"]])
            axis.set_yscale("log")
            axis.set_yticks([10, 12, 15, 20, 30, 50, 70], minor=False)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(ticker.NullLocator())
            axis.set_xlabel("epochs")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_title(f"{task}, {epochs} epochs")
        axes[0, 0].set_ylabel("error in %")
        handles = [axis.get_legend_handles_labels() for axis in axes[0]]
        known = {label: handle for pair in handles for handle, label in zip(*pair, strict=True)}
        figure.legend(
            known.values(), known, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 0.02)
        )
        _save(figure, "headline")


def _error_curve(axis, row: dict, colour: str) -> None:
    """A method's error after each epoch, and before the first where that is known.

    It may have fewer epochs than it is compared by: then the original had those before.
    """
    start = row["epochs"] - len(row["curve"])
    points = [(start, row["compensated"])] if "compensated" in row else []
    times, accuracies = zip(*points, *enumerate(row["curve"], start + 1), strict=True)
    gone = row.get("flops_removed")
    label = row["method"] + (f", -{100 * gone:.1f} % FLOPs" if gone else "")
    errors = [100 * (1 - accuracy) for accuracy in accuracies]
    axis.plot(times, errors, marker="o", color=colour, label=label)


CURVES = {  # by the arms that a curve is made of; the last is a rival, by its best importance
    ("former default",): {"label": "one ratio for all layers (former default)"},
    ("allocated",): {"label": "prune, by default"},
    ("taught", "taught, flipped"): {"label": "and taught by the original"},
    ("Torch-Pruning",): {"label": "Torch-Pruning, BatchNorm renewed", "color": INK, "ls": "--"},
}
NETWORKS = {
    "lenet_mnist": "LeNet, MNIST",
    "residual_fashion": "residual CNN, Fashion-MNIST",
    "resnet20_cifar10": "ResNet-20, CIFAR-10",
}


def curves() -> None:
    """Accuracy against FLOPs without labels, by task."""
    tasks = {task: _unlabelled(rows) for task, rows in results("curves").items()}
    tasks = {task: rows for task, rows in tasks.items() if len({r["level"] for r in rows}) > 3}
    if not tasks:
        return
    figure, axes = plt.subplots(1, len(tasks), figsize=(1.5 + 5 * len(tasks), 3.5), squeeze=False)
    for axis, (task, rows) in zip(axes[0], tasks.items(), strict=True):
        base = [row["accuracy"] for row in results("curves")[task] if row["arm"] == "base"]
        axis.axhline(np.mean(base), color=INK, linestyle=":", label="original")
        for arms, style in CURVES.items():
            if points := _best([row for row in rows if row["arm"] in arms]):
                axis.plot(*zip(*points, strict=True), marker="o", **style)
        axis.set_title(NETWORKS.get(task, task))
        axis.set_xlabel("FLOPs removed, %")
        axis.set_ylabel("accuracy")
    axes[0][-1].legend(loc="lower left")
    _save(figure, "curves")


def _unlabelled(rows):
    """NISP's rows that were not fine-tuned, and the rival's."""
    rival = "Torch-Pruning"
    return [
        row
        for row in rows
        if row.get("epochs") == 0 and (row["importance"] == "NISP" or row["arm"] == rival)
    ]


def _best(rows):
    """FLOPs removed and accuracy at each level, the mean over seeds, of the best importance."""
    points = []
    for level in sorted({row["level"] for row in rows}):
        chosen = [row for row in rows if row["level"] == level]
        means = [
            tuple(
                np.mean([r[key] for r in chosen if r["importance"] == name])
                for key in ("accuracy", "flops_removed")
            )
            for name in {row["importance"] for row in chosen}
        ]
        accuracy, gone = max(means)
        points.append((100 * gone, accuracy))
    return points


def _save(figure, name: str) -> None:
    FIGURES.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(FIGURES / f"{name}.png", bbox_inches="tight")
    plt.close(figure)


def main():
    for draw in (importances, depth, combinations, headline, curves):
        draw()


if __name__ == "__main__":
    main()
