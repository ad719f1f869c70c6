"""Accuracy against FLOPs, without labels: the library's repair and widths, part by part.

All arms see the same 512 training images without labels, prune the same base network to the same
FLOPs, and refit what remains. They differ in where channels go (`allocation`) and whether the
smaller network is then taught by the original on these images ("flipped": and on their mirror
images; "mixed": on mirror images that get parts of others, by `keras.layers.CutMix`).
Fine-tuned rows (`--epochs`) go on from there with labels and all training data, at a tenth of the
base's learning rate.

"Former default" is the library as it was at commit 81f36ab, one ratio for all groups and one map
for all taps of a kernel. To measure it, put a checkout of that commit first on PYTHONPATH and pass
`--arms "former default"`. Torch-Pruning's rows come from benchmarks/torch_networks.py:
channels are removed and BatchNorm is renewed on the same images, but no kernel is repaired.

All rows were measured while other work went on: their seconds say nothing. Of ResNet-20, rows
without fine-tuning at -30, -50 and -60 % have widths by damage on 256 samples, as they are now, and
the present refit; so have those of VGG-like at -50 % from the second seed on, and the fine-tuned
ones of the ViT and of ResNet-20's third base. All other rows had widths by 128 samples.
"""

import dataclasses
import functools
import inspect
import subprocess
from pathlib import Path

import keras
import numpy as np
from results import Rows
from training import Lab, reductions

import keras_nisp as kn
from experiments.tables import by_task, markdown, mean_and_deviation

TASKS = (
    "lenet_mnist",
    "residual_fashion",
    "vgg_fashion",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "vit_cifar10",
)
LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
IMPORTANCES = ("NISP", "OptimalBrainSurgeon")
IMAGES = 512
FORMER = "former default"


@dataclasses.dataclass(frozen=True)
class Arm:
    """Keywords of `plan_pruning` and of `recalibrate`."""

    plan: dict = dataclasses.field(default_factory=dict)
    repair: dict = dataclasses.field(default_factory=dict)


TAUGHT = {"teach_steps": 600}
ARMS = {
    "uniform": Arm({"allocation": "uniform"}),
    "uniform, taught": Arm({"allocation": "uniform"}, TAUGHT),
    "allocated": Arm({"allocation": "predicted"}),
    "taught": Arm({"allocation": "predicted"}, TAUGHT),
    "taught, flipped": Arm({"allocation": "predicted"}, TAUGHT),
    "taught, mixed": Arm({"allocation": "predicted"}, TAUGHT),
    "measured": Arm({"allocation": "measured"}),
    FORMER: Arm(),
}
DEFAULT = ("uniform", "allocated", "measured", "taught")


def run(lab: Lab, rows: Rows, seed: int) -> None:
    args, base = lab.args, functools.cache(functools.partial(lab.base, seed))
    rows.once({"seed": seed, "arm": "base"}, lambda: {"accuracy": lab.accuracy(base())})
    for level in args.levels:
        for importance in args.importances:
            plan = functools.cache(functools.partial(_plan, lab, base, seed, importance, level))
            for arm in args.arms:
                _check_package(arm)
                for epochs in args.epochs:
                    key = {"seed": seed, "arm": arm, "importance": importance, "level": level}
                    key["epochs"] = epochs
                    rows.once(key, _pruned, lab, base, plan, *key.values())


def _check_package(arm):
    """The former default is another version of the package, all others are this one."""
    is_former = "allocation" not in kn.Budget.__dataclass_fields__
    if is_former != (arm == FORMER):
        raise SystemExit(
            f"Expected commit 81f36ab of keras_nisp for the arm '{FORMER}', and a later one for "
            f"all others. Received: {Path(kn.__file__).parents[1]} for '{arm}'. PYTHONPATH says "
            "which is imported."
        )


def _plan(lab, base, seed, importance, level, **keywords):
    x, _ = lab.calibration(seed, IMAGES)
    if keywords:
        keywords["calibration"] = x
    kind = getattr(kn, importance)
    looks_at_data = "calibration" in inspect.signature(kind).parameters
    scores = kind(x) if looks_at_data else kind()
    return kn.plan_pruning(base(), scores, flops_reduction=level, **keywords)


def _pruned(lab, base, plan, seed, arm, importance, level, epochs):
    x, _ = lab.calibration(seed, IMAGES)
    chosen = plan(**ARMS[arm].plan)
    repair = dict(ARMS[arm].repair)
    layers = [keras.layers.RandomFlip("horizontal", seed=seed), keras.layers.CutMix(seed=seed)]
    if "flipped" in arm:
        repair["augment"] = layers[0]
    elif "mixed" in arm:
        repair["augment"] = keras.Sequential(layers)
    original = base()
    small = kn.recalibrate(kn.rebuild(original, chosen), x, original, chosen, **repair)
    row = {"commit": _commit()} if arm == FORMER else {}
    if epochs:
        keras.utils.set_random_seed(seed)
        name = "_".join(("curves", arm, importance, f"{level:g}", str(epochs), str(seed)))
        name = name.replace(", ", "_").replace(" ", "_")
        row["curve"] = lab.fit(small, epochs, lab.task.rate / 10, name)
    return {"accuracy": lab.accuracy(small), **row, **reductions(small, original)}


@functools.cache
def _commit() -> str:
    """Of the keras_nisp that was imported."""
    command = ["git", "-C", str(Path(kn.__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def tables(results: dict[str, list[dict]]) -> str:
    """Tables for each task, as Markdown: one for each number of epochs."""
    return by_task(results, _tables)


def _tables(rows):
    base = [row["accuracy"] for row in rows if row["arm"] == "base"]
    parts = [f"Base: {mean_and_deviation(base)}."]
    for epochs in sorted({row["epochs"] for row in rows if "epochs" in row}):
        chosen = [row for row in rows if row.get("epochs") == epochs]
        title = f"Fine-tuned, epochs: {epochs}" if epochs else "Without labels"
        parts.append(f"**{title}**\n\n{_table(chosen)}")
    return "\n\n".join(parts)


def _table(rows):
    levels = sorted({row["level"] for row in rows})
    head = ["arm", "importance", *(f"-{100 * level:g} %" for level in levels), "seeds"]
    lines = []
    for arm, importance in dict.fromkeys((row["arm"], row["importance"]) for row in rows):
        chosen = [r for r in rows if (r["arm"], r["importance"]) == (arm, importance)]
        seeds = len({row["seed"] for row in chosen})
        lines.append([arm, importance, *(_cell(chosen, level) for level in levels), str(seeds)])
    return markdown(head, lines)


def _cell(rows, level):
    """Accuracy, and the FLOPs that are gone, where they are not what was asked for."""
    chosen = [row for row in rows if row["level"] == level]
    if not chosen:
        return ""
    gone = np.mean([row["flops_removed"] for row in chosen])
    off = f" (-{100 * gone:.1f} %)" if abs(gone - level) >= 0.01 else ""
    return mean_and_deviation(row["accuracy"] for row in chosen) + off
