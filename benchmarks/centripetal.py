"""Accuracy of C-SGD beside pruning and fine-tuning, and training from scratch.

    python benchmarks/centripetal.py --dataset fashion_mnist --data-dir DIR
    python benchmarks/centripetal.py --dataset cifar10 --data-dir DIR --weights FILE --seeds 1

Each seed trains a base network (or adapts given ResNet-20 weights to the data). Then,
for each share of the FLOPs to remove, with the same number of epochs, learning rate and
schedule:

* C-SGD: k-means clusters, strength "auto", merged at the end, not fine-tuned;
* NISP and L1: pruned, recalibrated, fine-tuned;
* at once: the same clusters merged without C-SGD, recalibrated, fine-tuned;
* scratch: the width that NISP leaves, fresh weights, for the epochs of base and method together;
* base: trained on as it is.

Rows that are in the results file already are not computed again; --fresh starts anew.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from networks import load_resnet, resnet
from recipes import accuracy, augmented, compile_for, load, residual_cnn
from results import FOLDER, save_results

import keras_nisp as kn

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATE, L2 = 0.05, 5e-4


class Experiment:
    """Data, base network and rows of one dataset."""

    def __init__(self, args):
        self.args = args
        (x, y), (x_test, y_test) = load(args.dataset, args.data_dir)
        if args.dataset == "cifar10":
            x, x_test = (((a - MEAN) / DEVIATION).astype("float32") for a in (x, x_test))
        self.train, self.test = (x, y), (x_test, y_test)
        self.steps = len(x) // args.batch_size
        path = FOLDER / f"{self.name}.json"
        self.rows = json.loads(path.read_text())["rows"] if path.exists() and not args.fresh else []

    @property
    def name(self):
        return f"centripetal_{self.args.dataset}"

    def network(self):
        if self.args.dataset == "cifar10":
            return resnet(20)
        return residual_cnn(self.train[0].shape[1:])

    def fit(self, model, epochs, callbacks=()):
        x, y = self.train
        if self.args.dataset == "cifar10":
            data = augmented(x, y, self.args.batch_size)
            model.fit(data, epochs=epochs, verbose=0, callbacks=list(callbacks))
        else:
            model.fit(
                x[: self.steps * self.args.batch_size],
                y[: self.steps * self.args.batch_size],
                self.args.batch_size,
                epochs,
                verbose=0,
                callbacks=list(callbacks),
            )
        return model

    def accuracy(self, model):
        return accuracy(model, *self.test)

    def base(self, seed):
        """The base network of a seed, kept in a file."""
        path = Path(self.args.out) / f"{self.name}_{seed}.keras"
        if path.exists() and not self.args.fresh:
            return keras.models.load_model(path)
        if self.args.weights:
            model = load_resnet(self.args.weights)
            print(f"weights as given: accuracy {self.accuracy(model):.4f}", flush=True)
        else:
            model = self.network()
        epochs = self.args.base_epochs
        compile_for(model, self.steps * epochs, 0.01 if self.args.weights else RATE)
        self.fit(model, epochs)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
        return model

    def run(self, seed, method, reduction):
        if any(
            (r["seed"], r["method"], r["reduction"]) == (seed, method, reduction) for r in self.rows
        ):
            return
        keras.utils.set_random_seed(seed)
        base = self.base(seed)
        keras.utils.set_random_seed(seed)
        started = time.perf_counter()
        row = getattr(self, f"run_{method}")(base, seed, reduction)
        row = {"seed": seed, "method": method, "reduction": reduction, **row}
        row["seconds"] = round(time.perf_counter() - started)
        self.rows.append(row)
        save_results(self.name, {"rows": self.rows}, self.args)
        print(row, flush=True)

    def describe(self, model, base):
        before, after = kn.profile(base).total, kn.profile(model).total
        return {
            "accuracy": self.accuracy(model),
            "flops_removed": 1 - after.flops / before.flops,
            "parameters_removed": 1 - after.parameters / before.parameters,
        }

    def run_base(self, base, seed, reduction):
        start = self.accuracy(base)
        compile_for(base, self.steps * self.args.epochs, RATE)
        self.fit(base, self.args.epochs)
        return {"accuracy": start, "trained_on": self.accuracy(base)}

    def plan(self, base, seed, reduction):
        return kn.plan_merging(base, flops_reduction=reduction, seed=seed)

    def run_csgd(self, base, seed, reduction):
        plan = self.plan(base, seed, reduction)
        steps = self.steps * self.args.epochs
        optimizer = kn.CentripetalSGD(
            keras.optimizers.schedules.CosineDecay(RATE, steps), 0.9, True, L2, plan=plan
        )
        base.compile(optimizer, base.loss, metrics=["accuracy"], jit_compile=False)
        monitor = kn.CentripetalMonitor(plan)
        self.fit(base, self.args.epochs, [monitor])
        unmerged = self.accuracy(base)
        small = kn.rebuild(base, plan)
        deviations = [row["deviation"].relative for row in monitor.history]
        row = self.describe(small, base)
        return {**row, "unmerged": unmerged, "deviation": deviations}

    def tune(self, small, base, start):
        compile_for(small, self.steps * self.args.epochs, RATE)
        self.fit(small, self.args.epochs)
        return {**self.describe(small, base), "before_tuning": start}

    def prune(self, base, importance, reduction):
        plan = kn.plan_pruning(base, importance, flops_reduction=reduction)
        small = kn.rebuild(base, plan)
        kn.recalibrate(small, self.train[0], base, plan)
        return self.tune(small, base, self.accuracy(small))

    def run_nisp(self, base, seed, reduction):
        return self.prune(base, kn.NISP(self.train[0], seed=seed), reduction)

    def run_l1(self, base, seed, reduction):
        return self.prune(base, kn.Magnitude(1), reduction)

    def run_at_once(self, base, seed, reduction):
        small = kn.rebuild(base, self.plan(base, seed, reduction), force=True, verbose=0)
        kn.recalibrate(small, self.train[0])
        return self.tune(small, base, self.accuracy(small))

    def run_scratch(self, base, seed, reduction):
        plan = kn.plan_pruning(base, kn.NISPMag(), flops_reduction=reduction)
        small = keras.models.clone_model(kn.rebuild(base, plan))
        epochs = self.args.base_epochs + self.args.epochs
        compile_for(small, self.steps * epochs, RATE)
        self.fit(small, epochs)
        return {**self.describe(small, base), "epochs": epochs}


def table(rows):
    """Mean and deviation over the seeds, as Markdown."""
    reductions = sorted({row["reduction"] for row in rows if row["reduction"]})
    lines = ["| method | " + " | ".join(f"-{100 * r:g} % FLOPs" for r in reductions) + " |"]
    lines.append("|---" * (len(reductions) + 1) + "|")
    for method in dict.fromkeys(row["method"] for row in rows if row["reduction"]):
        cells = []
        for reduction in reductions:
            chosen = [
                r["accuracy"] for r in rows if (r["method"], r["reduction"]) == (method, reduction)
            ]
            cells.append(
                f"{np.mean(chosen):.4f} ± {np.std(chosen):.4f} ({len(chosen)})" if chosen else ""
            )
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    for name in ("accuracy", "trained_on"):
        values = [row[name] for row in rows if row["method"] == "base"]
        lines.append(f"base, {name}: {np.mean(values):.4f} ± {np.std(values):.4f}")
    return "\n".join(lines)


METHODS = ("csgd", "nisp", "l1", "at_once", "scratch")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="fashion_mnist", choices=("fashion_mnist", "cifar10"))
    parser.add_argument("--data-dir")
    parser.add_argument("--weights", help="ResNet-20 weights to start from (CIFAR-10)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--reductions", type=float, nargs="+", default=(0.4, 0.6))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--out", default="out", help="folder for base networks")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    experiment = Experiment(args)
    for seed in range(args.seeds):
        experiment.run(seed, "base", 0.0)
        for method in args.methods:
            for reduction in args.reductions:
                experiment.run(seed, method, reduction)
    print(table(experiment.rows))


if __name__ == "__main__":
    main()
