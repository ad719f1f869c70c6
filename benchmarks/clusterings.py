"""Which channels to make identical: the clusterings compared.

    python benchmarks/clusterings.py [--dataset digits] [--seeds 5]

For each seed a network is trained once. Each clustering plans the same widths. Measured: the
deviation before training; test accuracy when clusters are merged at once and BatchNormalization
is re-estimated; and after C-SGD, merged.
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from recipes import DATASETS, accuracy, compile_for, load, residual_cnn
from results import save_results

import keras_nisp as kn

RATE = 0.05


def clusterings(x):
    return {
        "kmeans, all owners": {"clustering": "kmeans"},
        "kmeans, pacesetter": {"clustering": "kmeans", "owners": "pacesetter"},
        "activations": {"clustering": "activations", "calibration": x},
        "even": {"clustering": "even"},
        "imbalanced": {"clustering": "imbalanced"},
    }


def run_seed(seed, data, args, rows):
    (x, y), test = data
    keras.utils.set_random_seed(seed)
    base = residual_cnn(x.shape[1:])
    steps = -(-len(x) // args.batch_size) * args.epochs
    compile_for(base, steps, RATE)
    base.fit(x, y, args.batch_size, args.epochs, verbose=0)
    for name, arguments in clusterings(x).items():
        plan = kn.plan_merging(base, flops_reduction=args.flops_reduction, seed=seed, **arguments)
        at_once = kn.rebuild(base, plan, force=True, verbose=0)
        kn.recalibrate(at_once, x)
        model = keras.models.clone_model(base)
        model.set_weights(base.get_weights())
        schedule = keras.optimizers.schedules.CosineDecay(RATE, steps)
        optimizer = kn.CentripetalSGD(schedule, 0.9, True, 5e-4, plan=plan)
        model.compile(optimizer, base.loss, jit_compile=False)
        keras.utils.set_random_seed(seed)
        monitor = kn.CentripetalMonitor(plan)
        model.fit(x, y, args.batch_size, args.epochs, verbose=0, callbacks=[monitor])
        row = {
            "seed": seed,
            "clustering": name,
            "base": accuracy(base, *test),
            "deviation": kn.deviation(base, plan).relative,
            "at_once": accuracy(at_once, *test),
            "csgd": accuracy(kn.rebuild(model, plan, verbose=0), *test),
        }
        rows.append(row)
        print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--flops-reduction", type=float, default=0.6)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    data = load(args.dataset, args.data_dir)
    rows = []
    for seed in range(args.seeds):
        run_seed(seed, data, args, rows)
        save_results("clusterings", {"rows": rows}, args)
    for name in dict.fromkeys(row["clustering"] for row in rows):
        chosen = [row for row in rows if row["clustering"] == name]
        cells = (f"{np.mean([r[k] for r in chosen]):.4f}" for k in ("deviation", "at_once", "csgd"))
        print(f"{name:20}", *cells)


if __name__ == "__main__":
    main()
