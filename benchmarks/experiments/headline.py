"""The papers' headlines: ResNet-56 on CIFAR-10, NISP at 43.6 % and C-SGD at 60.85 % of the FLOPs.

Published weights are adapted to the data first; that accuracy is the baseline. NISP removes a
quarter of the channels of every layer, is compensated and fine-tuned. C-SGD makes every layer 5/8
as wide and is not fine-tuned. Both get the same epochs at the same rate, and so does the baseline
that is trained on without pruning.
"""

import keras
from results import Rows
from training import Lab, reductions

import keras_nisp as kn
from experiments.centripetal import train_centripetal
from experiments.tables import by_task, markdown

TASKS = ("resnet56_cifar10",)


def run(lab: Lab, rows: Rows, seed: int) -> None:
    if seed:
        return  # there is one set of published weights
    rows.once({"method": "baseline"}, _base, lab)
    for method, train in (("C-SGD", _csgd), ("NISP", _nisp), ("baseline, trained on", _train_on)):
        rows.once({"method": method, "epochs": lab.task.tune}, train, lab)


def _base(lab):
    return {"curve": [lab.accuracy(lab.base(0))]}


def _nisp(lab):
    base = lab.base(0)
    x, _ = lab.calibration(0)
    plan = kn.plan_pruning(base, kn.NISP(x), ratio=lab.task.ratio)
    small = kn.rebuild(base, plan)
    at_once = lab.accuracy(small)
    kn.recalibrate(small, x, base, plan, compensate="linear")
    start = lab.accuracy(small)
    keras.utils.set_random_seed(0)
    curve = lab.fit(small, lab.task.tune, lab.task.rate, "headline_nisp")
    return {"one_shot": at_once, "compensated": start, "curve": curve, **reductions(small, base)}


def _csgd(lab):
    model = lab.base(0)
    plan = kn.plan_merging(model, ratio=3 / 8, seed=0)
    keras.utils.set_random_seed(0)
    curve, _ = train_centripetal(lab, model, plan, lab.task.tune, "headline_csgd")
    small = kn.rebuild(model, plan)
    return {"merged": lab.accuracy(small), "curve": curve, **reductions(small, model)}


def _train_on(lab):
    keras.utils.set_random_seed(0)
    return {"curve": lab.fit(lab.base(0), lab.task.tune, lab.task.rate, "headline_base")}


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
        figures = [row.get("one_shot"), row.get("compensated"), *row["curve"]]
        figures += [None] * (epochs - len(row["curve"])) + [row.get("merged")]
        cells += ["" if figure is None else f"{figure:.4f}" for figure in figures]
        lines.append([row["method"], *cells])
    return markdown(head, lines)
