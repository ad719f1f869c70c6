"""One-shot accuracy of every importance, before and after fine-tuning for one epoch.

    python benchmarks/importances.py --data-dir DIR [--seeds 3] [--dataset fashion_mnist]

For each seed a network is trained once; then each importance removes the same share of
every coupled group. Accuracy on the test set: without any repair, after BatchNorm is
re-estimated, and after one epoch of fine-tuning at a tenth of the learning rate.
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from recipes import DATASETS, accuracy, compile_for, load, residual_cnn
from results import save_results

import keras_nisp as kn

RATIOS = (0.125, 0.25, 0.375, 0.5)


def importances(x, y, seed):
    """Every importance under its name; calibration data are training data."""
    return {
        "NISP": kn.NISP(x),
        "NISPMag": kn.NISPMag(),
        "LayerByLayer": kn.LayerByLayer(x),
        "L1": kn.Magnitude(1),
        "BNScale": kn.BNScale(),
        "Taylor": kn.Taylor((x, y)),
        "GeometricMedian": kn.GeometricMedian(),
        "Random": kn.Random(seed),
    }


def run_seed(seed, data, args, rows):
    (x, y), (x_test, y_test) = data
    keras.utils.set_random_seed(seed)
    model = residual_cnn(x.shape[1:])
    steps = len(x) // args.batch_size
    compile_for(model, steps * args.epochs)
    model.fit(x, y, args.batch_size, args.epochs, verbose=0)
    base = accuracy(model, x_test, y_test)
    print(f"seed {seed}: {model.count_params()} parameters, accuracy {base:.4f}", flush=True)
    calibration = np.random.default_rng(seed).choice(len(x), 2000, replace=False)
    for name, importance in importances(x[calibration], y[calibration], seed).items():
        for ratio in args.ratios:
            started = time.perf_counter()
            plan = kn.plan_pruning(model, importance, ratio=ratio)
            small = kn.rebuild(model, plan)
            seconds = time.perf_counter() - started
            raw = accuracy(small, x_test, y_test)
            reference = (model, plan) if args.fold else ()
            kn.recalibrate(small, x, *reference, max_samples=4000)
            recalibrated = accuracy(small, x_test, y_test)
            tuned = None
            if args.fine_tune:
                keras.utils.set_random_seed(seed)
                compile_for(small, steps, 0.005)
                small.fit(x, y, args.batch_size, 1, verbose=0)
                tuned = accuracy(small, x_test, y_test)
            rows.append(
                {
                    "seed": seed,
                    "importance": name,
                    "ratio": ratio,
                    "base": base,
                    "one_shot": raw,
                    "recalibrated": recalibrated,
                    "fine_tuned": tuned,
                    "parameters": small.count_params(),
                    "seconds": seconds,
                }
            )
            print(f"  {name:16}{ratio:6} {raw:.4f} {recalibrated:.4f} {tuned}", flush=True)


def table(rows):
    """Means over the seeds, as Markdown."""
    lines = ["| importance | " + " | ".join(f"{100 * r:g} %" for r in RATIOS) + " |"]
    lines.append("|---" * (len(RATIOS) + 1) + "|")
    for name in dict.fromkeys(row["importance"] for row in rows):
        cells = []
        for ratio in RATIOS:
            chosen = [r for r in rows if r["importance"] == name and r["ratio"] == ratio]
            stages = ("one_shot", "recalibrated", "fine_tuned")
            means = [
                np.mean([r[s] for r in chosen]) if chosen and chosen[0][s] is not None else np.nan
                for s in stages
            ]
            cells.append(" / ".join(f"{mean:.3f}" for mean in means))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="fashion_mnist", choices=DATASETS)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--fold", action="store_true", help="fold means into biases, too")
    parser.add_argument("--no-fine-tune", dest="fine_tune", action="store_false")
    args = parser.parse_args()
    data = load(args.dataset, args.data_dir)
    rows = []
    for seed in range(args.seeds):
        run_seed(seed, data, args, rows)
        name = "importances_folded" if args.fold else "importances"
        save_results(name, {"rows": rows}, args)
    print(table(rows))


if __name__ == "__main__":
    main()
