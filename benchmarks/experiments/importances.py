"""Which importance keeps accuracy: NISP's first claim (research question 1 of the paper).

For each seed a base network is trained once. Each importance removes the same share of every
coupled group. Test accuracy: without any repair; recalibrated on 2,000 images without labels
(BatchNormalization, means of what was removed); compensated (`compensate="linear"`, likewise); and
after each epoch of fine-tuning the recalibrated network at a tenth of the learning rate, at the
task's ratio. "Scratch" is trained with the same widths for the epochs of base and fine-tuning
together, at the full rate; a base that starts from published weights has none.
"""

import keras
from results import Rows
from training import Lab, reductions

import keras_nisp as kn
from experiments.tables import by_task, markdown, mean_and_deviation

TASKS = (
    *("lenet_mnist", "quick_cifar10", "residual_fashion", "vgg_fashion", "vgg_cifar10"),
    *("resnet20_cifar10", "resnet20_fashion"),
)
RATIOS = (0.25, 0.5)
STAGES = ("one_shot", "recalibrated", "compensated")


def importances(x, y, seed):
    """Every importance under its name; calibration data are training data."""
    return {
        "NISP": kn.NISP(x),
        "NISPMag": kn.NISPMag(),
        "LayerByLayer": kn.LayerByLayer(x),
        "L1": kn.Magnitude(1),
        "Taylor": kn.Taylor((x, y)),
        "LRP": kn.LRP(x),
        "SynFlow": kn.SynFlow(),
        "OptimalBrainSurgeon": kn.OptimalBrainSurgeon(x),
        "BNScale": kn.BNScale(),
        "GeometricMedian": kn.GeometricMedian(),
        "Random": kn.Random(seed),
    }


def run(lab: Lab, rows: Rows, seed: int) -> None:
    x, y = lab.calibration(seed)
    base = lab.base(seed)
    rows.once({"seed": seed, "importance": "base"}, _base, lab, base)
    chosen = importances(x, y, seed)
    if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in base.layers):
        del chosen["BNScale"]
    for name, importance in chosen.items():
        for ratio in RATIOS:
            key = {"seed": seed, "importance": name, "ratio": ratio}
            rows.once(key, _pruned, lab, base, importance, ratio, seed, name)
    if lab.task.weights is None:
        key = {"seed": seed, "importance": "Scratch", "ratio": lab.task.ratio}
        rows.once(key, _scratch, lab, base, seed)


def _base(lab, base):
    return {"accuracy": lab.accuracy(base)}


def _pruned(lab, base, importance, ratio, seed, name):
    x, _ = lab.calibration(seed)
    plan = kn.plan_pruning(base, importance, ratio=ratio)
    row = {"one_shot": lab.accuracy(kn.rebuild(base, plan))}
    for stage, compensate in (("compensated", "linear"), ("recalibrated", "mean")):
        small = kn.recalibrate(kn.rebuild(base, plan), x, base, plan, compensate=compensate)
        row[stage] = lab.accuracy(small)
    if ratio == lab.task.ratio:
        keras.utils.set_random_seed(seed)
        key = f"importances_{name}_{seed}"
        row["curve"] = lab.fit(small, lab.task.tune, lab.task.rate / 10, key)
    return {**row, **reductions(small, base)}


def _scratch(lab, base, seed):
    plan = kn.plan_pruning(base, kn.Random(seed), ratio=lab.task.ratio)
    keras.utils.set_random_seed(seed)
    small = keras.models.clone_model(kn.rebuild(base, plan))
    epochs = lab.task.epochs + lab.task.tune
    return {"curve": lab.fit(small, epochs, lab.task.rate, f"importances_scratch_{seed}")}


def tables(results: dict[str, list[dict]]) -> str:
    """One table for each task, as Markdown."""
    return by_task(results, _table)


def _table(rows):
    base = [row["accuracy"] for row in rows if row["importance"] == "base"]
    pruned = [row for row in rows if "ratio" in row]
    tuned = sorted({row["ratio"] for row in pruned if "curve" in row})
    head = ["importance"]
    head += [f"-{100 * r:g} %: {stage.replace('_', '-')}" for r in RATIOS for stage in STAGES]
    head += [f"-{100 * r:g} %: epoch {when}" for r in tuned for when in ("1", "last")]
    lines = [
        _line([row for row in pruned if row["importance"] == name], name, tuned)
        for name in dict.fromkeys(row["importance"] for row in pruned)
    ]
    seeds = f"{len(base)} seed{'s' * (len(base) > 1)}"
    return f"Base: {mean_and_deviation(base)}, {seeds}.\n\n{markdown(head, lines)}"


def _line(rows, name, tuned):
    cells = [name]
    for ratio in RATIOS:
        chosen = [row for row in rows if row["ratio"] == ratio]
        cells += [mean_and_deviation(row[s] for row in chosen if s in row) for s in STAGES]
    for ratio in tuned:
        curves = [row["curve"] for row in rows if row["ratio"] == ratio and "curve" in row]
        cells += [mean_and_deviation(curve[i] for curve in curves) for i in (0, -1)]
    return cells
