"""Time of surgery against the number of layers.

    python benchmarks/scaling.py

`trace`, `plan_pruning` (L1 norms, half of the channels of each group) and `rebuild` of the
ResNets of `keras.applications` at 224x224, and of chains of small residual blocks with 500, 1,000
and 2,000 layers. A step grows linearly if its time per layer stays the same along the chains.
Planning and rebuilding each begin with a trace of their own, which is part of their time.

The figures are medians, taken in turns after one warm-up. `build` is what Keras takes to build the
model in the first place, once.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from keras import layers
from results import save_results
from rich.console import Console
from rich.table import Table
from speed import medians

import keras_nisp as kn

STEPS = ("trace", "plan", "rebuild")


def chain(count):
    """Residual blocks of 8 channels on 8x8, with `count` layers in all or up to 6 more."""
    x = inputs = keras.Input((8, 8, 8))
    layer_count = 3  # input, pooling, classifier
    while layer_count < count:
        y = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(8, 3, padding="same", use_bias=False)(y)
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)]))
        layer_count += 7
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x), name=f"chain{count}")


MODELS = {
    "ResNet50": lambda: keras.applications.ResNet50(weights=None),
    "ResNet101": lambda: keras.applications.ResNet101(weights=None),
    "ResNet152": lambda: keras.applications.ResNet152(weights=None),
    "chain500": lambda: chain(500),
    "chain1000": lambda: chain(1000),
    "chain2000": lambda: chain(2000),
}


def measure(name, runs):
    """Seconds of each step for one model."""
    keras.backend.clear_session()
    started = time.perf_counter()
    model = MODELS[name]()
    row = {"model": name, "layers": len(model.layers), "build": time.perf_counter() - started}

    def plan():
        return kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)

    done = plan()
    steps = (lambda: kn.trace(model), plan, lambda: kn.rebuild(model, done))
    row |= dict(zip(STEPS, medians(*steps, rounds=runs), strict=True))
    row["ms_per_layer"] = {s: 1000 * row[s] / row["layers"] for s in ("build", *STEPS)}
    return row


def show(rows):
    table = Table(title="Seconds, and milliseconds per layer")
    table.add_column("model")
    for title in ("layers", "build", *STEPS):
        table.add_column(title, justify="right")
    for row in rows:
        cells = (f"{row[s]:.2f} ({row['ms_per_layer'][s]:.2f})" for s in ("build", *STEPS))
        table.add_row(row["model"], f"{row['layers']:,}", *cells)
    Console(width=100).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    rows = []
    for name in args.models:
        rows.append(measure(name, args.runs))
        print(rows[-1], flush=True)
    show(rows)
    if args.models == list(MODELS):
        save_results("scaling", {"rows": rows}, args)


if __name__ == "__main__":
    main()
