"""Time of a training step with C-SGD over one with plain SGD of the same settings.

    python benchmarks/step_time.py [--models resnet20 resnet56 mlp] [--rounds 30]

All optimizers train copies of one network in turns (A B C A B C ...): keras.optimizers.SGD,
CentripetalSGD, and CentripetalSGD with the paper's c x c matrices for every variable.
The figures are medians over many short rounds: of the time of a step, and of its ratio to SGD's of
the same round. CPU time says more than time where others use the same cores.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from models import cifar_resnet
from results import save_results

import keras_nisp as kn
from keras_nisp.centripetal import cluster_mean

SETTINGS = {"learning_rate": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}


def mlp():
    inputs = keras.Input((784,))
    x = keras.layers.Dense(2048, activation="relu")(inputs)
    x = keras.layers.Dense(2048, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x), name="mlp")


MODELS = {
    "resnet20": (lambda: cifar_resnet(20), 1),
    "resnet56": (lambda: cifar_resnet(56), 1),
    "mlp": (mlp, 3),
}


def train_step(model, optimizer, x, y):
    """One compiled step; what `fit` does, without its loop."""
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    model.train_on_batch(x, y)
    step = model.make_train_function()
    data = [(tf.constant(x), tf.constant(y))]
    return lambda: step(iter(data))


def matrix_form(plan, optimizer_class=kn.CentripetalSGD):
    """CentripetalSGD by matrices of any width."""
    optimizer = optimizer_class(**SETTINGS, plan=plan, strength=3e-3)
    limit, cluster_mean.MATRIX_LIMIT = cluster_mean.MATRIX_LIMIT, sys.maxsize
    return optimizer, limit


def measure(name, rounds, batch_size):
    build, repeats = MODELS[name]
    model = build()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch_size, *model.input_shape[1:])).astype("float32")
    y = rng.integers(0, 10, batch_size)
    plan = kn.plan_merging(model, ratio=0.5)
    steps = {"sgd": train_step(build(), keras.optimizers.SGD(**SETTINGS), x, y)}
    csgd = kn.CentripetalSGD(**SETTINGS, plan=plan, strength=3e-3)
    steps["centripetal"] = train_step(build(), csgd, x, y)
    optimizer, limit = matrix_form(plan)
    steps["matrix form"] = train_step(build(), optimizer, x, y)
    cluster_mean.MATRIX_LIMIT = limit
    clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    spent = {clock: {kind: [] for kind in steps} for clock in clocks}
    for round_ in range(rounds + 1):
        for kind, step in steps.items():
            started = {clock: read() for clock, read in clocks.items()}
            for _ in range(repeats):
                step()
            for clock, read in clocks.items():
                if round_:  # the first round warms up
                    spent[clock][kind].append((read() - started[clock]) / repeats)
    row = {"model": name, "batch_size": batch_size}
    for clock, name_of_ratio in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
        taken = spent[clock]
        row[clock] = {kind: float(np.median(values)) for kind, values in taken.items()}
        row[name_of_ratio] = {
            kind: float(np.median(np.divide(values, taken["sgd"])))
            for kind, values in taken.items()
        }
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    rows = []
    for name in args.models:
        rows.append(measure(name, args.rounds, args.batch_size))
        print(rows[-1], flush=True)
    save_results("step_time", {"rows": rows}, args)


if __name__ == "__main__":
    main()
