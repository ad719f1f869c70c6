"""One propagation for all layers, or one after each (research question 3 of the paper)?

* one pass: scores are propagated once through the whole network;
* masked: scores of neurons that are pruned are not propagated further (`propagate_pruned=False`);
* repeated: from the last coupled group to the first, one group is pruned, then final responses are
  ranked again in the smaller network and propagated again.

Test accuracy at once and after BatchNormalization is re-estimated; and the share of the removed
channels that the one pass removes as well.
"""

import numpy as np
from results import Rows
from training import Lab

import keras_nisp as kn
from experiments.tables import by_task, markdown, mean_and_deviation

TASKS = ("lenet_mnist", "quick_cifar10", "residual_fashion", "vgg_fashion", "resnet20_cifar10")
RATIOS = (0.25, 0.5)


def run(lab: Lab, rows: Rows, seed: int) -> None:
    base = lab.base(seed)
    x, _ = lab.calibration(seed)
    for variant in ("one pass", "masked", "repeated"):
        for ratio in RATIOS:
            key = {"seed": seed, "variant": variant, "ratio": ratio}
            rows.once(key, _measure, lab, base, variant, x, ratio)


def _measure(lab, base, variant, x, ratio):
    plan = kn.plan_pruning(base, kn.NISP(x), ratio=ratio)
    if variant == "repeated":
        small, removed = _repeat(base, x, plan, ratio)
    else:
        chosen = plan
        if variant == "masked":
            chosen = kn.plan_pruning(base, kn.NISP(x, propagate_pruned=False), ratio=ratio)
        small = kn.rebuild(base, chosen)
        removed = {row.layer: set(row.removed) for row in chosen.creators}
    at_once = lab.accuracy(small)
    kn.recalibrate(small, x)
    reference = {row.layer: set(row.removed) for row in plan.creators}
    common = sum(len(reference[layer] & removed[layer]) for layer in reference)
    return {
        "one_shot": at_once,
        "recalibrated": lab.accuracy(small),
        "same_channels": common / sum(map(len, reference.values())),
    }


def _repeat(model, x, plan, ratio):
    """Prunes one group after the other; what is removed, by layer, in the original's channels."""
    left = {row.layer: np.arange(row.channels) for row in plan.creators}
    for group in reversed(plan.groups):
        step = kn.plan_pruning(model, kn.NISP(x), ratios={group.creators[0]: ratio})
        model = kn.rebuild(model, step)
        for row in step.creators:
            left[row.layer] = np.delete(left[row.layer], list(row.removed))
    return model, {
        row.layer: set(range(row.channels)) - set(left[row.layer].tolist()) for row in plan.creators
    }


def tables(results: dict[str, list[dict]]) -> str:
    """One table for each task, as Markdown."""
    return by_task(results, _table)


def _table(rows):
    keys = ("one_shot", "recalibrated", "same_channels")
    head = ["propagation"]
    head += [f"-{100 * r:g} %: {key.replace('_', ' ')}" for r in RATIOS for key in keys]
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        chosen = [[r for r in rows if (r["variant"], r["ratio"]) == (variant, q)] for q in RATIOS]
        lines.append(
            [variant]
            + [mean_and_deviation(r[key] for r in some) for some in chosen for key in keys]
        )
    return markdown(head, lines)
