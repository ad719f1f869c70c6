"""What improves on the papers: half of the FLOPs, the same epochs for every combination.

Each arm prunes the same base network and is then trained for the task's epochs with the base's
rate and a cosine. In the first epochs of the gradual arm the network is not yet small.
"""

import dataclasses

import keras
from recipes import compile_for
from results import Rows
from training import Lab, reductions

import keras_nisp as kn
from experiments.centripetal import train_centripetal
from experiments.tables import by_task, markdown, mean_and_deviation

TASKS = ("resnet20_cifar10", "residual_fashion")
REDUCTION = 0.5


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to lose half of the FLOPs.

    `pruner` is how channels go: all at once, in two steps with the optimizer's state carried over,
    gradually by the callback, or merged by C-SGD. `longer` multiplies the epochs.
    """

    importance: str = "NISP"
    allocation: str = "uniform"
    compensate: str | None = "mean"
    distill: bool = False
    pruner: str = "at once"
    longer: int = 1


ARMS = {
    "L1": Arm("L1"),
    "NISP": Arm(),
    "NISP, compensated": Arm(compensate="linear"),
    "NISP, distilled, longer": Arm(distill=True, longer=5),
    "NISP, distilled": Arm(distill=True),
    "NISP, compensated, distilled": Arm(compensate="linear", distill=True),
    "NISP, global": Arm(allocation="global"),
    "NISP, gradual": Arm(pruner="gradual"),
    "C-SGD": Arm(pruner="C-SGD"),
    "NISP, two steps": Arm(pruner="two steps"),
}


def run(lab: Lab, rows: Rows, seed: int) -> None:
    if lab.task.weights and seed:
        return  # there is one set of published weights
    rows.once({"seed": seed, "arm": "baseline"}, _base, lab, seed)
    for name, arm in ARMS.items():
        rows.once({"seed": seed, "arm": name}, _train, lab, arm, seed, name)
    rows.once({"seed": seed, "arm": "baseline, trained on"}, _train_on, lab, seed)


def _base(lab, seed):
    return {"curve": [lab.accuracy(lab.base(seed))]}


def _train(lab, arm, seed, name):
    base = lab.base(seed)  # freshly loaded: C-SGD and the gradual pruner train it in place
    key = f"combinations_{name.replace(', ', '_').replace(' ', '_')}_{seed}"
    x, _ = lab.calibration(seed)
    importance = kn.Magnitude(1) if arm.importance == "L1" else kn.NISP(x)
    epochs = lab.task.tune * arm.longer
    keras.utils.set_random_seed(seed)
    if arm.pruner == "C-SGD":
        small, row = _merge(lab, base, epochs, seed, key)
    elif arm.pruner == "gradual":
        small, row = _prune_gradually(lab, base, importance, epochs, key)
    else:
        small, row = _prune(lab, base, arm, importance, epochs, x, key)
    return {**row, "accuracy": lab.accuracy(small), **reductions(small, base)}


def _prune(lab, base, arm, importance, epochs, x, key):
    amounts = (REDUCTION,) if arm.pruner == "at once" else (0.3, (REDUCTION - 0.3) / 0.7)
    wrap = (lambda student: kn.distiller(student, base)) if arm.distill else None
    small, curve, starts = base, [], []
    for step, amount in enumerate(amounts):
        before = small
        plan = kn.plan_pruning(
            before, importance, flops_reduction=amount, allocation=arm.allocation
        )
        small = kn.rebuild(before, plan, optimizer_state=step > 0)
        kn.recalibrate(small, x, before, plan, compensate=arm.compensate)
        starts.append(lab.accuracy(small))
        if wrap is None and step == 0:  # one schedule for all steps
            compile_for(small, lab.steps * epochs, lab.task.rate)
        rate = None if wrap is None else lab.task.rate
        curve += lab.fit(small, epochs // len(amounts), rate, f"{key}_{step}", wrap=wrap)
    return small, {"start": starts, "curve": curve}


def _prune_gradually(lab, base, importance, epochs, key):
    """The optimizer's state is carried through; the curve is that of the masked network."""
    pruner = kn.NISPPruner(importance=importance, flops_reduction=REDUCTION, verbose=0)
    curve = lab.fit(base, epochs, lab.task.rate, key, [pruner])
    return pruner.pruned_model, {"curve": curve}


def _merge(lab, base, epochs, seed, key):
    plan = kn.plan_merging(base, flops_reduction=REDUCTION, seed=seed)
    curve, _ = train_centripetal(lab, base, plan, epochs, key)
    return kn.rebuild(base, plan), {"curve": curve}


def _train_on(lab, seed):
    keras.utils.set_random_seed(seed)
    key = f"combinations_base_{seed}"
    return {"curve": lab.fit(lab.base(seed), lab.task.tune, lab.task.rate, key)}


def tables(results: dict[str, list[dict]]) -> str:
    """One table for each task, as Markdown."""
    return by_task(results, _table)


def _table(rows):
    head = ["", "FLOPs", "before training", "epoch 1", "last", "epochs", "seeds"]
    lines = []
    for name in dict.fromkeys(row["arm"] for row in rows):
        chosen = [row for row in rows if row["arm"] == name]
        gone = [100 * row["flops_removed"] for row in chosen if "flops_removed" in row]
        lines.append(
            [
                name,
                f"-{gone[0]:.1f} %" if gone else "",
                mean_and_deviation(r["start"][0] for r in chosen if "start" in r),
                mean_and_deviation(r["curve"][0] for r in chosen),
                mean_and_deviation(r["curve"][-1] for r in chosen),
                str(len(chosen[0]["curve"])),
                str(len(chosen)),
            ]
        )
    long = [row for row in rows if len(row["curve"]) > 2]
    curves = [
        f"{row['arm']}, seed {row['seed']}, epoch by epoch: "
        + ", ".join(f"{value:.4f}" for value in row["curve"])
        for row in long
    ]
    return "\n\n".join([markdown(head, lines), *curves])
