"""Trains a wider network and squeezes it to the original width, beside training at that width.

    python examples/squeeze.py                           scikit-learn's digits, no download
    python examples/squeeze.py --dataset fashion_mnist --data-dir DIR

The wide network is trained for half of the epochs and squeezed by C-SGD for the other half; the
network of the original width is trained for all of them. Three seeds; networks are small, so
that width matters.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from recipes import DATASETS, accuracy, compile_for, load, residual_cnn
from rich.console import Console
from rich.table import Table

import keras_nisp as kn

EPOCHS = {"digits": 40, "mnist": 6, "fashion_mnist": 6, "cifar10": 16}
RATE = 0.05


def narrow(x, width):
    return residual_cnn(x.shape[1:], widths=(width, 2 * width, 3 * width))


def train_narrow(data, args, epochs):
    (x, y), test = data
    model = narrow(x, args.width)
    compile_for(model, epochs * steps_of(x, args), RATE)
    model.fit(x, y, args.batch_size, epochs, verbose=0)
    return accuracy(model, *test)


def steps_of(x, args):
    return -(-len(x) // args.batch_size)


def train_wide_and_squeeze(data, args, epochs):
    """Accuracies of the wide network and of the squeezed one."""
    (x, y), test = data
    original = narrow(x, args.width)
    wide = kn.widen(original, args.factor)
    first = epochs // 2
    compile_for(wide, first * steps_of(x, args), RATE)
    wide.fit(x, y, args.batch_size, first, verbose=0)
    wide_accuracy = accuracy(wide, *test)
    plan = kn.plan_merging(wide, widths=original)
    schedule = keras.optimizers.schedules.CosineDecay(RATE, (epochs - first) * steps_of(x, args))
    optimizer = kn.CentripetalSGD(schedule, 0.9, nesterov=True, weight_decay=5e-4, plan=plan)
    wide.compile(optimizer, wide.loss, metrics=["accuracy"], jit_compile=False)
    monitor = kn.CentripetalMonitor(plan)
    wide.fit(x, y, args.batch_size, epochs - first, verbose=0, callbacks=[monitor])
    small = kn.rebuild(wide, plan)
    assert small.count_params() == original.count_params()
    return wide_accuracy, accuracy(small, *test)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--data-dir", help="TFDS data directory; default: download")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage")
    parser.add_argument("--factor", type=float, default=1.6)
    parser.add_argument("--epochs", type=int, help="in all; default: by dataset")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    return parser.parse_args()


def run(args):
    """Accuracies of the three networks for each seed."""
    data = load(args.dataset, args.data_dir)
    args.epochs = args.epochs or EPOCHS[args.dataset]
    rows = []
    for seed in range(args.seeds):
        keras.utils.set_random_seed(seed)
        at_width = train_narrow(data, args, args.epochs)
        keras.utils.set_random_seed(seed)
        wide, squeezed = train_wide_and_squeeze(data, args, args.epochs)
        rows.append({"seed": seed, "at_width": at_width, "wide": wide, "squeezed": squeezed})
        print(rows[-1], flush=True)
    return rows


def show(rows, args):
    title = f"{args.dataset}: test accuracy, {args.epochs} epochs in all, {args.seeds} seeds"
    table = Table(title=title)
    for column in ("network", "mean", "standard deviation"):
        table.add_column(column, justify="left" if column == "network" else "right")
    names = {
        "at_width": "trained at the original width",
        "wide": f"{args.factor:g} times as wide, half of the epochs",
        "squeezed": "the wide one squeezed to the original width",
    }
    for key, name in names.items():
        values = [row[key] for row in rows]
        table.add_row(name, f"{np.mean(values):.4f}", f"{np.std(values):.4f}")
    Console().print(table)


if __name__ == "__main__":
    arguments = parse()
    show(run(arguments), arguments)
