"""The plots of the accuracy experiments: docs/figures/*.png from the JSON in results/.

python benchmarks/plots.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from experiments import results

FIGURES = Path(__file__).parents[1] / "docs" / "figures"


def importances() -> None:
    """One-shot and recalibrated accuracy of each importance, and its recovery, by task."""
    tasks = results("importances")
    if not tasks:
        return
    figure, axes = plt.subplots(len(tasks), 3, figsize=(12, 2.6 * len(tasks)), squeeze=False)
    names = dict.fromkeys(row["importance"] for rows in tasks.values() for row in rows)
    styles = {
        name: {"color": f"C{colour}", "label": name}
        for colour, name in enumerate(name for name in names if name != "base")
    }
    for line, (task, rows) in zip(axes, tasks.items(), strict=True):
        base = np.mean([row["accuracy"] for row in rows if row["importance"] == "base"])
        for name, style in styles.items():
            if name != "Scratch":
                for axis, stage in zip(line, ("one_shot", "compensated"), strict=False):
                    _against_ratio(axis, rows, name, stage, base, style)
            _recovery(line[2], rows, name, style)
        line[0].set_ylabel(f"{task}\naccuracy")
        for axis in line[:2]:
            axis.set_xlabel("share of channels removed")
        line[2].axhline(base, color="grey", linewidth=0.8, linestyle=":")
        line[2].set_xlabel("epochs of fine-tuning")
        line[2].xaxis.get_major_locator().set_params(integer=True)
    titles = ("no repair", "linear compensation", "fine-tuned (dotted: base)")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    lines = {line.get_label(): line for row in axes for line in row[2].get_lines()}
    shown = [name for name in styles if name in lines]
    handles = [lines[name] for name in shown]
    axes[0][2].legend(handles, shown, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, "importances")


def _against_ratio(axis, rows, name, stage, base, style):
    ratios = sorted({row["ratio"] for row in rows if row["importance"] == name and stage in row})
    if not ratios:
        return
    values = [
        [row[stage] for row in rows if (row["importance"], row.get("ratio")) == (name, ratio)]
        for ratio in ratios
    ]
    means = [base, *(np.mean(v) for v in values)]
    axis.errorbar([0, *ratios], means, [0, *(np.std(v) for v in values)], capsize=2, **style)


def _recovery(axis, rows, name, style):
    chosen = [row for row in rows if row["importance"] == name and "curve" in row]
    if not chosen:
        return
    curve = np.mean([row["curve"] for row in chosen], axis=0)
    if name == "Scratch":
        axis.axhline(curve[-1], linestyle="--", linewidth=1, **style)
        return
    start = np.mean([row["recalibrated"] for row in chosen])
    axis.plot(range(len(curve) + 1), [start, *curve], marker=".", **style)


def depth() -> None:
    """Error of the final responses against depth."""
    tasks = results("depth")
    if not tasks:
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True)
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
                capsize=2,
                label=name,
            )
        axis.set_title(title)
        axis.set_xlabel("convolutions")
    axes[0].set_ylabel("WARE of the final responses")
    axes[0].legend(fontsize=7)
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
        axis.axvline(base, color="grey", linestyle=":", label="baseline")
        axis.axvline(base - 0.01, color="red", linestyle=":", label="1 point below")
        for label, marker, key, epoch in (
            ("before training", "o", "start", 0),
            ("after one epoch", "|", "curve", 0),
            ("at the end", "D", "curve", -1),
        ):
            values = [[r[key][epoch] for r in rows if r["arm"] == n and key in r] for n in names]
            known = [line for line, found in enumerate(values) if found]
            means = [np.mean(values[line]) for line in known]
            spread = [np.std(values[line]) for line in known]
            axis.errorbar(means, known, xerr=spread, fmt=marker, capsize=2, label=label)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(task)
        axis.set_xlabel("accuracy")
    axes[0][-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, "combinations")


def headline() -> None:
    """ResNet-56: accuracy against epochs."""
    for task, rows in results("headline").items():
        figure, axis = plt.subplots(figsize=(6, 3.5))
        for row in rows:
            if row["method"] == "baseline":
                axis.axhline(row["curve"][0], color="grey", linestyle=":", label="baseline")
                continue
            gone = f", -{100 * row['flops_removed']:.1f} % FLOPs" if "flops_removed" in row else ""
            start = [(0, row["compensated"])] if "compensated" in row else []
            points = start + list(enumerate(row["curve"], 1))
            axis.plot(*zip(*points, strict=True), marker=".", label=row["method"] + gone)
        axis.set_xlabel("epochs")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel("accuracy")
        axis.set_title(task)
        axis.legend(fontsize=8)
        _save(figure, "headline")


CURVES = {  # arms of the figure; the last is a rival, by its best importance
    "former default": {"label": "former default: one ratio, one map for all taps"},
    "uniform": {"label": "one ratio, kernels refitted by tap"},
    "allocated": {"label": "the default: widths by damage, refitted by tap"},
    "taught": {"label": "and taught by the original"},
    "Torch-Pruning": {"label": "Torch-Pruning, BatchNorm renewed", "color": "grey", "ls": "--"},
}


def curves() -> None:
    """Accuracy against FLOPs without labels, by task."""
    tasks = {task: _unlabelled(rows) for task, rows in results("curves").items()}
    tasks = {task: rows for task, rows in tasks.items() if len({r["level"] for r in rows}) > 2}
    if not tasks:
        return
    figure, axes = plt.subplots(1, len(tasks), figsize=(1.5 + 5 * len(tasks), 3.5), squeeze=False)
    for axis, (task, rows) in zip(axes[0], tasks.items(), strict=True):
        base = [row["accuracy"] for row in results("curves")[task] if row["arm"] == "base"]
        axis.axhline(np.mean(base), color="grey", linestyle=":", label="original")
        for arm, style in CURVES.items():
            points = _best([row for row in rows if row["arm"] == arm])
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", **style)
        axis.set_title(f"{task}, 512 images without labels")
        axis.set_xlabel("FLOPs removed, %")
        axis.set_ylabel("accuracy")
    axes[0][-1].legend(fontsize=7, loc="lower left")
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
    figure.savefig(FIGURES / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def main():
    for draw in (importances, depth, combinations, headline, curves):
        draw()


if __name__ == "__main__":
    main()
