"""The papers' headlines: ResNet-56 on CIFAR-10, NISP at 43.6 % and C-SGD at 60.85 % of the FLOPs.

Published weights are adapted to the data first; that accuracy is the baseline. NISP removes a
quarter of the channels of every layer, is compensated and fine-tuned. C-SGD makes every layer 5/8
as wide and is not fine-tuned. "With our means" takes the same share of the FLOPs, with widths by
damage and the baseline as teacher: NISP is refitted and taught on 512 images before it is
fine-tuned ("labels alone": by labels, without the teacher), C-SGD's clusters collapse early. "After
4 of the epochs" NISP prunes the network that was trained on for so long, which is then the teacher
for the others. All get the same epochs (`--epochs`, by default those of the task) at the same rate,
and so does the baseline that is trained on without pruning.
"""

import functools

import keras
from results import Rows
from training import Lab, reductions

import keras_nisp as kn
from experiments.centripetal import L2, train_centripetal
from experiments.tables import by_task, markdown

TASKS = ("resnet56_cifar10",)
NISP_FLOPS, CSGD_FLOPS = 0.4361, 0.6085
IMAGES = 512
BEFORE = 4  # epochs that the network to be pruned is trained on for, where it is


def run(lab: Lab, rows: Rows, seed: int) -> None:
    if seed:
        return  # there is one set of published weights
    rows.once({"method": "baseline"}, _base, lab)
    for epochs in lab.args.epochs:
        epochs = epochs or lab.task.tune
        for method in lab.args.methods or METHODS:
            rows.once({"method": method, "epochs": epochs}, METHODS[method], lab, epochs)


def _base(lab):
    return {"curve": [lab.accuracy(lab.base(0))]}


def _nisp(lab, epochs):
    base = lab.base(0)
    x, _ = lab.calibration(0)
    plan = kn.plan_pruning(base, kn.NISP(x), ratio=lab.task.ratio)
    small = kn.rebuild(base, plan)
    at_once = lab.accuracy(small)
    kn.recalibrate(small, x, base, plan, compensate="linear")
    start = lab.accuracy(small)
    keras.utils.set_random_seed(0)
    curve = lab.fit(small, epochs, lab.task.rate, f"headline_nisp_{epochs}")
    return {"one_shot": at_once, "compensated": start, "curve": curve, **reductions(small, base)}


def _csgd(lab, epochs):
    model = lab.base(0)
    plan = kn.plan_merging(model, ratio=3 / 8, seed=0)
    keras.utils.set_random_seed(0)
    curve, _ = train_centripetal(lab, model, plan, epochs, f"headline_csgd_{epochs}")
    small = kn.rebuild(model, plan)
    return {"merged": lab.accuracy(small), "curve": curve, **reductions(small, model)}


def _nisp_with_means(lab, epochs, taught=True, before=0):
    base = _trained_further(lab, before) if before else lab.base(0)
    x, _ = lab.calibration(0, IMAGES)
    plan = kn.plan_pruning(base, kn.NISP(x), flops_reduction=NISP_FLOPS, calibration=x)
    small = kn.rebuild(base, plan)
    at_once = lab.accuracy(small)
    flip = keras.layers.RandomFlip("horizontal", seed=0)
    kn.recalibrate(small, x, base, plan, teach_steps=600, augment=flip)
    start = lab.accuracy(small)
    keras.utils.set_random_seed(0)
    key = f"headline_nisp_means_{epochs}" + ("" if taught else "_labels")
    key += f"_{before}_before" if before else ""
    wrap = (lambda student: kn.distiller(student, base)) if taught else None
    curve = lab.fit(small, epochs - before, lab.task.rate, key, wrap=wrap)
    row = {"base": lab.accuracy(base), "one_shot": at_once, "compensated": start, "curve": curve}
    return {**row, **reductions(small, base)}


def _trained_further(lab, epochs):
    def make():
        keras.utils.set_random_seed(0)
        model = lab.base(0)
        lab.fit(model, epochs, lab.task.rate, f"headline_further_{epochs}")
        return model

    return lab.kept(f"further_{epochs}", make)


def _csgd_with_means(lab, epochs):
    base, model = lab.base(0), lab.base(0)
    x, _ = lab.calibration(0, IMAGES)
    plan = kn.plan_merging(model, flops_reduction=CSGD_FLOPS, calibration=x, seed=0)
    keras.utils.set_random_seed(0)
    schedule = keras.optimizers.schedules.CosineDecay(lab.task.rate, lab.steps * epochs)
    optimizer = kn.CentripetalSGD(schedule, 0.9, True, L2, plan=plan, collapse=0.25)

    def learner(network):
        whole = kn.distiller(network, base)
        whole.compile(optimizer, base.loss, jit_compile=False)
        return whole

    monitor = kn.CentripetalMonitor(plan)
    curve = lab.fit(model, epochs, None, f"headline_csgd_means_{epochs}", [monitor], wrap=learner)
    small = kn.rebuild(model, plan)
    row = {"base": lab.accuracy(base), "merged": lab.accuracy(small), "curve": curve}
    return {**row, **reductions(small, model)}


def _train_on(lab, epochs):
    keras.utils.set_random_seed(0)
    return {"curve": lab.fit(lab.base(0), epochs, lab.task.rate, f"headline_base_{epochs}")}


METHODS = {
    "C-SGD": _csgd,
    "NISP": _nisp,
    "baseline, trained on": _train_on,
    "NISP with our means": _nisp_with_means,
    "NISP with our means, labels alone": functools.partial(_nisp_with_means, taught=False),
    f"NISP with our means, after {BEFORE} of the epochs": functools.partial(
        _nisp_with_means, before=BEFORE
    ),
    "C-SGD with our means": _csgd_with_means,
}


def tables(results: dict[str, list[dict]]) -> str:
    """Accuracy against epochs, as Markdown."""
    return by_task(results, _table)


def _table(rows):
    epochs = max(len(row["curve"]) for row in rows)
    head = ["", "FLOPs", "parameters", "at once", "repaired"]
    head += [f"epoch {i + 1}" for i in range(epochs)] + ["merged"]
    lines = []
    for row in rows:
        gone = [row.get("flops_removed"), row.get("parameters_removed")]
        cells = ["" if share is None else f"-{100 * share:.2f} %" for share in gone]
        before = row.get("epochs", len(row["curve"])) - len(row["curve"])
        figures = [row.get("one_shot"), row.get("compensated"), *[None] * before, *row["curve"]]
        figures += [None] * (epochs - before - len(row["curve"])) + [row.get("merged")]
        cells += ["" if figure is None else f"{figure:.4f}" for figure in figures]
        lines.append([row["method"], *cells])
    return markdown(head, lines)
