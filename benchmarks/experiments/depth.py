"""How the error at the final responses grows with depth (the paper's WARE figure).

Plain networks of 2 to 10 convolutions, without BatchNormalization. Half of the channels of every
layer but the final response layer are removed, nothing is repaired. Measured on test images: the
weighted average reconstruction error of the final responses, sum_i s_i sum_m |y'_im - y_im| over
sum_i s_i sum_m |y_im|, where s are the scores of Inf-FS. (The paper divides each difference by its
own response, which is zero for many ReLUs.)
"""

import keras
import numpy as np
from results import Rows
from training import DEPTHS, Lab

import keras_nisp as kn
from experiments.tables import markdown, mean_and_deviation

TASKS = tuple(f"plain{depth}_fashion" for depth in DEPTHS)
FINAL = "hidden"


def importances(x, seed):
    return {
        "NISP": kn.NISP(x),
        "NISPMag": kn.NISPMag(),
        "LayerByLayer": kn.LayerByLayer(x),
        "L1": kn.Magnitude(1),
        "Random": kn.Random(seed),
    }


def run(lab: Lab, rows: Rows, seed: int) -> None:
    base = lab.base(seed)
    x, _ = lab.calibration(seed)
    for name, importance in importances(x, seed).items():
        rows.once({"seed": seed, "importance": name}, _measure, lab, base, importance, x)


def _measure(lab, base, importance, x):
    plan = kn.plan_pruning(base, importance, ratio=lab.task.ratio, exclude=[FINAL])
    plain = kn.rebuild(base, plan)
    linear = kn.recalibrate(kn.rebuild(base, plan), x, base, plan, compensate="linear")
    test = lab.data[1][0][:2000]
    return {
        "base": lab.accuracy(base),
        "accuracy": lab.accuracy(plain),
        "ware": ware(base, plain, test),
        "accuracy_compensated": lab.accuracy(linear),
        "ware_compensated": ware(base, linear, test),
    }


def ware(before, after, images) -> float:
    """Weighted average reconstruction error of the final responses."""
    responses = [
        keras.Model(net.inputs, net.get_layer(FINAL).output).predict(images, 500, verbose=0)
        for net in (before, after)
    ]
    scores = kn.inf_fs(responses[0])
    error = np.abs(responses[1] - responses[0]).sum(0)
    return float(scores @ error / (scores @ np.abs(responses[0]).sum(0)))


def tables(results: dict[str, list[dict]]) -> str:
    """WARE by importance and depth, without repair and compensated, and accuracy before pruning."""
    head = ["", *(f"{task.removeprefix('plain').split('_')[0]} layers" for task in results)]
    names = dict.fromkeys(row["importance"] for rows in results.values() for row in rows)
    parts = []
    for title, key in (("not repaired", "ware"), ("compensated", "ware_compensated")):
        lines = [
            [name]
            + [
                mean_and_deviation(r[key] for r in rows if r["importance"] == name)
                for rows in results.values()
            ]
            for name in names
        ]
        parts.append(f"WARE, {title}:\n\n{markdown(head, lines)}")
    bases = [{row["seed"]: row["base"] for row in rows} for rows in results.values()]
    line = ["base", *(mean_and_deviation(base.values()) for base in bases)]
    return "\n\n".join([*parts, f"Accuracy before pruning:\n\n{markdown(head, [line])}"])
