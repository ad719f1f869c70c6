"""C-SGD beside pruning and fine-tuning, and training from scratch; train wide, then squeeze.

For each share of the FLOPs to remove, with the epochs of the base network and its learning rate:

* C-SGD: k-means clusters, strength "auto", merged at the end, not fine-tuned;
* NISP and L1: pruned, recalibrated, fine-tuned;
* scratch: the width that NISP leaves, fresh weights, for the epochs of base and method together
  (C-SGD from a base of these epochs is "train wide, then squeeze" to that width); not for a base
  that starts from published weights;
* base: trained on as it is.
"""

import keras
from results import Rows
from training import Lab, reductions

import keras_nisp as kn
from experiments.tables import by_task, markdown, mean_and_deviation

TASKS = ("residual_fashion", "resnet20_cifar10")
REDUCTIONS = (0.4, 0.6)
L2 = 5e-4


def run(lab: Lab, rows: Rows, seed: int) -> None:
    if lab.task.weights and seed:
        return  # there is one set of published weights
    rows.once({"seed": seed, "method": "base", "reduction": 0.0}, _base, lab, seed)
    methods = {"csgd": _csgd, "nisp": _nisp, "l1": _l1, "scratch": _scratch}
    if lab.task.weights:
        del methods["scratch"]
    for method, train in methods.items():
        for reduction in REDUCTIONS:
            key = {"seed": seed, "method": method, "reduction": reduction}
            rows.once(key, _train, lab, train, seed, method, reduction)


def _train(lab, train, seed, method, reduction):
    base = lab.base(seed)
    keras.utils.set_random_seed(seed)
    small, row = train(lab, base, seed, reduction, f"centripetal_{method}_{reduction}_{seed}")
    return {"accuracy": lab.accuracy(small), **row, **reductions(small, base)}


def _base(lab, seed):
    base = lab.base(seed)
    start = lab.accuracy(base)
    keras.utils.set_random_seed(seed)
    curve = lab.fit(base, lab.task.epochs, lab.task.rate, f"centripetal_base_{seed}")
    return {"accuracy": start, "trained_on": curve[-1]}


def train_centripetal(lab: Lab, model, plan, epochs: int, key: str):
    """Trains by C-SGD with the task's rate.

    Returns:
        The test accuracy after each epoch, and the relative deviation inside clusters.
    """
    schedule = keras.optimizers.schedules.CosineDecay(lab.task.rate, lab.steps * epochs)
    optimizer = kn.CentripetalSGD(schedule, 0.9, True, L2, plan=plan)
    model.compile(optimizer, model.loss, metrics=["accuracy"], jit_compile=False)
    monitor = kn.CentripetalMonitor(plan)
    curve = lab.fit(model, epochs, None, key, [monitor])
    return curve, [row["deviation"].relative for row in monitor.history]


def _csgd(lab, base, seed, reduction, key):
    plan = kn.plan_merging(base, flops_reduction=reduction, seed=seed)
    curve, deviation = train_centripetal(lab, base, plan, lab.task.epochs, key)
    row = {"unmerged": curve[-1], "curve": curve, "deviation": deviation}
    return kn.rebuild(base, plan), row


def _nisp(lab, base, seed, reduction, key):
    return _prune(lab, base, kn.NISP(lab.data[0][0], seed=seed), reduction, key)


def _l1(lab, base, seed, reduction, key):
    return _prune(lab, base, kn.Magnitude(1), reduction, key)


def _prune(lab, base, importance, reduction, key):
    plan = kn.plan_pruning(base, importance, flops_reduction=reduction, allocation="uniform")
    small = kn.rebuild(base, plan)
    kn.recalibrate(small, lab.data[0][0], base, plan, compensate="mean")
    start = lab.accuracy(small)
    curve = lab.fit(small, lab.task.epochs, lab.task.rate, key)
    return small, {"before_tuning": start, "curve": curve}


def _scratch(lab, base, seed, reduction, key):
    plan = kn.plan_pruning(base, kn.NISPMag(), flops_reduction=reduction)
    small = keras.models.clone_model(kn.rebuild(base, plan))
    epochs = 2 * lab.task.epochs
    return small, {"curve": lab.fit(small, epochs, lab.task.rate, key), "epochs": epochs}


def tables(results: dict[str, list[dict]]) -> str:
    """Mean and deviation over the seeds, one table for each task."""
    return by_task(results, _table)


def _table(rows):
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows if row["reduction"]):
        some = [
            [r for r in rows if (r["method"], r["reduction"]) == (method, q)] for q in REDUCTIONS
        ]
        lines.append([method, *(mean_and_deviation(r["accuracy"] for r in part) for part in some)])
    for name in ("accuracy", "trained_on"):
        values = [row[name] for row in rows if row["method"] == "base"]
        lines.append([f"base, {name.replace('_', ' ')}", mean_and_deviation(values)])
    lines = [cells + [""] * (1 + len(REDUCTIONS) - len(cells)) for cells in lines]
    return markdown(["method", *(f"-{100 * q:g} % FLOPs" for q in REDUCTIONS)], lines)
