"""Prunes a small residual CNN to half its FLOPs, from training to a file that runs anywhere.

    python examples/quickstart.py                       scikit-learn's digits, no download
    python examples/quickstart.py --dataset fashion_mnist --data-dir DIR

Trains, prunes with NISP, re-estimates BatchNorm, fine-tunes, compares with L1 and random
pruning at the same FLOPs, measures latency, saves the model and loads it in a process that
cannot import keras_nisp.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from recipes import DATASETS, accuracy, compile_for, load, residual_cnn
from rich.console import Console
from rich.table import Table

import keras_nisp as kn

EPOCHS = {"digits": (30, 10), "mnist": (4, 2), "fashion_mnist": (4, 2), "cifar10": (12, 6)}


def train(data, epochs, batch_size):
    (x, y), (x_test, y_test) = data
    model = residual_cnn(x.shape[1:])
    compile_for(model, epochs * (len(x) // batch_size))
    model.fit(x, y, batch_size, epochs, validation_data=(x_test, y_test), verbose=2)
    return model


def prune(model, importance, data, args, epochs):
    """Prunes, repairs and fine-tunes; returns the model and its accuracy after each stage."""
    (x, y), (x_test, y_test) = data
    budget = kn.Budget(flops_reduction=args.flops_reduction, allocation="uniform")
    small = kn.prune(model, importance, budget=budget)
    stages = [accuracy(small, x_test, y_test)]
    kn.recalibrate(small, x)
    stages.append(accuracy(small, x_test, y_test))
    compile_for(small, epochs * (len(x) // args.batch_size), rate=0.02)
    for _ in range(epochs):
        small.fit(x, y, args.batch_size, verbose=0)
        stages.append(accuracy(small, x_test, y_test))
    return small, stages


def latency(models, x, repeats=40):
    """Median seconds of a batch for each model, measured in turns."""
    steps = [keras_function(model) for model in models]
    times = [[] for _ in models]
    for repeat in range(repeats + 5):
        for step, seconds in zip(steps, times, strict=True):
            started = time.perf_counter()
            step(x)
            if repeat >= 5:
                seconds.append(time.perf_counter() - started)
    return [float(np.median(seconds)) for seconds in times]


def keras_function(model):
    import tensorflow as tf

    return tf.function(lambda x: model(x, training=False))


def fresh_process_accuracy(path, data):
    """Accuracy of a saved model in a process in which keras_nisp cannot be imported."""
    (_, _), (x_test, y_test) = data
    samples = path.with_suffix(".npz")
    np.savez(samples, x=x_test, y=y_test)
    code = (
        "import sys; sys.modules['keras_nisp'] = None\n"
        "import keras, numpy as np\n"
        "model, data = keras.models.load_model(sys.argv[1]), np.load(sys.argv[2])\n"
        "predicted = model.predict(data['x'], batch_size=500, verbose=0).argmax(-1)\n"
        "print((predicted == data['y']).mean())"
    )
    command = [sys.executable, "-c", code, str(path), str(samples)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    samples.unlink()
    return float(output.splitlines()[-1])


def show(console, base, base_accuracy, results):
    table = Table(title="Accuracy on the test set at the same FLOPs")
    for title in ("model", "parameters", "FLOPs", "pruned", "recalibrated", "fine-tuned"):
        table.add_column(title, justify="left" if title == "model" else "right")
    before = kn.profile(base).total
    row = (f"{before.parameters:,}", f"{before.flops:,}", f"{base_accuracy:.4f}", "", "")
    table.add_row("original", *row)
    for name, (small, stages) in results.items():
        cost = kn.profile(small).total
        accuracies = (f"{value:.4f}" for value in (stages[0], stages[1], stages[-1]))
        table.add_row(name, f"{cost.parameters:,}", f"{cost.flops:,}", *accuracies)
    console.print(table)


def plot(base_accuracy, results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.axhline(100 * (1 - base_accuracy), color="black", linestyle=":", label="original")
    for name, (_, stages) in results.items():
        errors = 100 * (1 - np.array(stages))
        axes.plot(range(-1, len(stages) - 1), errors, marker="o", markersize=3, label=name)
    epochs = len(next(iter(results.values()))[1]) - 2
    ticks = [-1, 0, *range(2, epochs + 1, 2)]
    axes.set_xticks(ticks, ["pruned", "recali-\nbrated", *map(str, ticks[2:])])
    axes.set_xlabel("epochs of fine-tuning")
    axes.set_yscale("log")  # from a collapsed model down to the last few mistakes
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.set_ylabel("error, test set")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--data-dir", help="TFDS data directory; default: download")
    parser.add_argument("--flops-reduction", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    keras.utils.set_random_seed(args.seed)

    data = load(args.dataset, args.data_dir)
    (x, _), (x_test, y_test) = data
    epochs, fine_tuning = EPOCHS[args.dataset]
    model = train(data, epochs, args.batch_size)
    base_accuracy = accuracy(model, x_test, y_test)

    calibration = x[:2000]
    plan = kn.plan_pruning(model, kn.NISP(calibration), flops_reduction=args.flops_reduction)
    print(plan.summary())  # a table of its own width
    plan.save(args.out / "plan.json")

    results = {}
    for name, importance in {
        "NISP": kn.NISP(calibration),
        "L1 norm": kn.Magnitude(),
        "random": kn.Random(args.seed),
    }.items():
        console.print(f"[bold]{name}[/bold]")
        results[name] = prune(model, importance, data, args, fine_tuning)
    show(console, model, base_accuracy, results)

    small = results["NISP"][0]
    batch = np.resize(x_test, (256, *x.shape[1:]))
    before, after = latency([model, small], batch)
    console.print(
        f"Latency, batches of 256 in TensorFlow: {1e3 * before:.1f} -> {1e3 * after:.1f} ms, "
        f"{before / after:.2f} times as fast"
    )
    path = args.out / "small.keras"
    small.save(path)
    keras.models.load_model(path, compile=False).save(path)  # without the optimizer's slots
    console.print(
        f"{path}: {path.stat().st_size:,} bytes; accuracy in a fresh process without keras_nisp "
        f"{fresh_process_accuracy(path, data):.4f}"
    )
    plot(base_accuracy, results, args.out / "quickstart.png")
    console.print(f"Plot: {args.out / 'quickstart.png'}")


if __name__ == "__main__":
    main()
