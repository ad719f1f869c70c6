"""C-SGD with few steps: a teacher, and where in the run clusters collapse.

All arms lose half of the FLOPs of the same base network, the same share of every layer, and train
for the same epochs at the base's rate, with a cosine. NISP prunes first, refits on 512 images and
fine-tunes. C-SGD makes clusters one after 0.8 of the steps (its default) or after 0.25 of them
("early") and merges in the end. A teacher is the base network (`distiller`).
"""

import dataclasses

import keras
from results import Rows
from training import Lab, reductions

import keras_nisp as kn
from experiments.centripetal import L2
from experiments.tables import by_task, markdown, mean_and_deviation

TASKS = ("residual_fashion",)
REDUCTION = 0.5
IMAGES = 512


@dataclasses.dataclass(frozen=True)
class Arm:
    """`collapse` is that of `CentripetalSGD`; `None` prunes by NISP."""

    collapse: float | None = None
    teacher: bool = False


ARMS = {
    "NISP, teacher": Arm(teacher=True),
    "C-SGD, early, teacher": Arm(0.25, True),
    "C-SGD, teacher": Arm(0.8, True),
    "C-SGD": Arm(0.8),
    "NISP": Arm(),
    "C-SGD, early": Arm(0.25),
}


def run(lab: Lab, rows: Rows, seed: int) -> None:
    rows.once({"seed": seed, "arm": "base"}, lambda: {"accuracy": lab.accuracy(lab.base(seed))})
    for name, arm in ARMS.items():
        rows.once({"seed": seed, "arm": name}, _train, lab, arm, seed, name)


def _train(lab, arm, seed, name):
    base, network = lab.base(seed), lab.base(seed)
    x, _ = lab.calibration(seed, IMAGES)
    keras.utils.set_random_seed(seed)
    schedule = keras.optimizers.schedules.CosineDecay(lab.task.rate, lab.steps * lab.task.tune)
    monitors = []
    if arm.collapse is None:
        plan = kn.plan_pruning(
            base, kn.NISP(x), flops_reduction=REDUCTION, allocation="uniform", calibration=x
        )
        network = kn.recalibrate(kn.rebuild(base, plan), x, base, plan)
        optimizer = keras.optimizers.SGD(schedule, 0.9, True, 10 * L2)
    else:
        plan = kn.plan_merging(network, flops_reduction=REDUCTION, seed=seed)
        optimizer = kn.CentripetalSGD(schedule, 0.9, True, L2, plan=plan, collapse=arm.collapse)
        monitors = [kn.CentripetalMonitor(plan)]

    def learner(network):
        whole = kn.distiller(network, base) if arm.teacher else network
        whole.compile(optimizer, base.loss, jit_compile=False)
        return whole

    key = f"collapse_{name.replace(', ', '_')}_{seed}"
    curve = lab.fit(network, lab.task.tune, None, key, monitors, wrap=learner)
    small = network if arm.collapse is None else kn.rebuild(network, plan)
    return {"accuracy": lab.accuracy(small), "curve": curve, **reductions(small, base)}


def tables(results: dict[str, list[dict]]) -> str:
    """Mean and deviation over the seeds, one table for each task."""
    return by_task(results, _table)


def _table(rows):
    head, lines = ["", "FLOPs", "first epoch", "last epoch", "seeds"], []
    for name in dict.fromkeys(row["arm"] for row in rows):
        chosen = [row for row in rows if row["arm"] == name]
        gone = [100 * row["flops_removed"] for row in chosen if "flops_removed" in row]
        first = [row["curve"][0] for row in chosen if "curve" in row]
        last = mean_and_deviation(row["accuracy"] for row in chosen)
        cells = [f"-{gone[0]:.1f} %" if gone else "", mean_and_deviation(first), last]
        lines.append([name, *cells, str(len(chosen))])
    return markdown(head, lines)
