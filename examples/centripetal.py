"""C-SGD from training to a merged network, beside pruning and training from scratch.

    python examples/centripetal.py                       scikit-learn's digits, no download
    python examples/centripetal.py --dataset fashion_mnist --data-dir DIR

Trains a network; trains it on with CentripetalSGD until the channels of each cluster are
identical; merges them, without fine-tuning. Beside it, with the same FLOPs and as many
epochs: NISP and fine-tuning, and the small network from scratch. Each begins with the learning
rate at which the network was trained.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from recipes import DATASETS, accuracy, compile_for, load, residual_cnn
from rich.console import Console
from rich.table import Table

import keras_nisp as kn

EPOCHS = {"digits": (30, 30), "mnist": (4, 4), "fashion_mnist": (4, 4), "cifar10": (12, 12)}
RATE = 0.05


class Curve(keras.callbacks.Callback):
    """Test accuracy after each epoch."""

    def __init__(self, data):
        super().__init__()
        self.data = data
        self.accuracies = []

    def on_epoch_end(self, epoch, logs=None):
        self.accuracies.append(accuracy(self.model, *self.data))


def train(model, data, epochs, args, callbacks=()):
    """Trains a compiled model; returns its test accuracy after each epoch."""
    (x, y), test = data
    curve = Curve(test)
    model.fit(x, y, args.batch_size, epochs, verbose=2, callbacks=[*callbacks, curve])
    return curve.accuracies


def centripetal(model, plan, data, epochs, args):
    """Trains with C-SGD and merges; returns the merged model, accuracies and deviations."""
    steps = epochs * -(-len(data[0][0]) // args.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(RATE, steps)
    optimizer = kn.CentripetalSGD(schedule, 0.9, nesterov=True, weight_decay=5e-4, plan=plan)
    model.compile(optimizer, model.loss, metrics=["accuracy"], jit_compile=False)
    monitor = kn.CentripetalMonitor(plan)
    accuracies = train(model, data, epochs, args, [monitor])
    small = kn.rebuild(model, plan)
    deviations = [(row["deviation"].relative, row["predicted"]) for row in monitor.history]
    return small, accuracies, deviations


def from_plan(small, data, epochs, args):
    compile_for(small, epochs * -(-len(data[0][0]) // args.batch_size), RATE)
    return train(small, data, epochs, args)


def show(console, base, base_accuracy, rows):
    table = Table(title="Accuracy on the test set")
    for title in ("model", "parameters", "FLOPs", "epochs", "accuracy"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for name, model, epochs, value in (("original", base, "", base_accuracy), *rows):
        cost = kn.profile(model).total
        table.add_row(name, f"{cost.parameters:,}", f"{cost.flops:,}", str(epochs), f"{value:.4f}")
    console.print(table)


def plot(curves, deviations, base_accuracy, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    measured, predicted = zip(*deviations, strict=True)
    left.semilogy(range(len(measured)), measured, marker="o", markersize=3, label="measured")
    left.semilogy(range(1, len(predicted)), predicted[1:], "k:", label="predicted before training")
    left.set(xlabel="epochs of C-SGD", ylabel="deviation inside clusters")
    right.axhline(100 * base_accuracy, color="black", linestyle=":", label="original")
    for name, accuracies in curves.items():
        epochs = range(1, len(accuracies) + 1)
        right.plot(epochs, [100 * a for a in accuracies], marker="o", markersize=3, label=name)
    best = max(max(accuracies) for accuracies in curves.values())
    right.set(
        xlabel="epochs", ylabel="accuracy, test set, %", ylim=(100 * best - 15, 100 * best + 1)
    )
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--data-dir", help="TFDS data directory; default: download")
    parser.add_argument("--flops-reduction", type=float, default=0.6)
    parser.add_argument("--clustering", default="kmeans", choices=("kmeans", "even", "imbalanced"))
    parser.add_argument("--epochs", type=int, help="for each method; default: by dataset")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    keras.utils.set_random_seed(args.seed)

    data = load(args.dataset, args.data_dir)
    (x, _), test = data
    base_epochs, epochs = EPOCHS[args.dataset]
    epochs = args.epochs or epochs
    base = residual_cnn(x.shape[1:])
    compile_for(base, base_epochs * -(-len(x) // args.batch_size), RATE)
    train(base, data, base_epochs, args)
    base_accuracy = accuracy(base, *test)

    plan = kn.plan_merging(
        base, flops_reduction=args.flops_reduction, clustering=args.clustering, seed=args.seed
    )
    print(plan.summary())
    plan.save(args.out / "clusters.json")
    budget = kn.Budget(flops_reduction=args.flops_reduction, allocation="uniform")
    nisp_plan = kn.plan_pruning(base, kn.NISP(x[:2000]), budget=budget)
    nisp = kn.rebuild(base, nisp_plan)
    kn.recalibrate(nisp, x, base, nisp_plan, compensate="mean")
    scratch = keras.models.clone_model(nisp)

    console.print("[bold]C-SGD[/bold]")
    wide = keras.models.clone_model(base)
    wide.set_weights(base.get_weights())
    wide.loss = base.loss
    merged, curve, deviations = centripetal(wide, plan, data, epochs, args)
    curves = {"C-SGD": curve}
    console.print("[bold]NISP, fine-tuned[/bold]")
    curves["NISP, fine-tuned"] = from_plan(nisp, data, epochs, args)
    console.print("[bold]from scratch[/bold]")
    total = base_epochs + epochs
    curves["from scratch"] = from_plan(scratch, data, total, args)

    rows = [
        ("C-SGD, before merging", wide, epochs, curve[-1]),
        ("C-SGD, merged", merged, epochs, accuracy(merged, *test)),
        ("NISP, fine-tuned", nisp, epochs, curves["NISP, fine-tuned"][-1]),
        ("from scratch", scratch, total, curves["from scratch"][-1]),
    ]
    show(console, base, base_accuracy, rows)
    plot(curves, deviations, base_accuracy, args.out / "centripetal.png")
    merged.save(args.out / "merged.keras")
    console.print(f"Plot: {args.out / 'centripetal.png'}. Model: {args.out / 'merged.keras'}")


if __name__ == "__main__":
    main()
