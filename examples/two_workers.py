"""Pruning and C-SGD on several workers, in a training loop of one's own.

    python examples/two_workers.py [--method pruning|centripetal]

Starts two processes on this machine that train one model together by
`tf.distribute.MultiWorkerMirroredStrategy`, as two machines would: each has its own `TF_CONFIG`
and half of every batch. All of them choose the same channels, since they score the same weights on
the same calibration data, and build the same smaller model in the end.

Why a loop of one's own: `fit` of Keras 3 does not work with this strategy (keras#20585).
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

BATCH, SAMPLES = 32, 512


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(method: str, out: Path, steps: int, workers: int) -> None:
    """Runs this script once for each worker, and waits for all of them."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes = []
    for index in range(workers):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, __file__, "--method", method, "--out", str(out)]
        command += ["--steps", str(steps), "--worker", str(index)]
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        processes.append(subprocess.Popen(command, env=environment))
    if any([process.wait() for process in processes]):
        sys.exit("A worker failed.")


def digits():
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images[:SAMPLES].reshape(-1, 8, 8, 1).astype("float32") / 16
    return images, labels[:SAMPLES].astype(np.int32)


def build():
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)  # all workers begin with the same weights
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same", name="first")(inputs)
    x = layers.BatchNormalization(synchronized=True)(x)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="second")(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)), name="digits")


def train(method: str, worker: int, out: Path, steps: int) -> None:
    """What each worker does."""
    import keras
    import tensorflow as tf

    import keras_nisp as kn

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
    images, labels = digits()
    with strategy.scope():
        model = build()
        if method == "centripetal":
            plan = kn.plan_merging(model, ratio=0.5, clustering="even")
            optimizer = kn.CentripetalSGD(0.05, momentum=0.8, plan=plan, steps=steps)
            callback = kn.CentripetalMonitor(plan)
        else:
            optimizer = keras.optimizers.SGD(0.05, momentum=0.8)
            schedule = kn.PolynomialSchedule(0.5, 0, steps // 2, frequency=20)
            callback = kn.NISPPruner(images[:128], ratio=0.5, schedule=schedule, verbose=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        model.compile(optimizer, loss)  # `fit` is not called; the callback finds the optimizer
        optimizer.build(model.trainable_variables)
        callback.set_model(model)
        callback.on_train_begin()

    @tf.function
    def step(x, y):
        def on_replica(x, y):
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True)) / BATCH
            gradients = tape.gradient(value, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return value

        parts = strategy.run(on_replica, args=(x, y))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

    data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().batch(BATCH)
    batches = iter(strategy.experimental_distribute_dataset(data))
    callback.on_epoch_begin(0)
    for index in range(steps):
        callback.on_train_batch_begin(index)
        value = step(*next(batches))
        callback.on_train_batch_end(index)
    callback.on_epoch_end(0)
    callback.on_train_end()
    if method == "centripetal":
        small = kn.rebuild(model, plan, verbose=int(worker == 0))
    else:
        small = callback.pruned_model
    small.save(out / f"worker{worker}.keras")  # the same on all workers
    if worker == 0:
        print(
            f"{method}: loss {float(value):.3f}, {model.count_params():,} parameters become "
            f"{small.count_params():,}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=["pruning", "centripetal"], default="pruning")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--worker", type=int, help="index of this worker; else two are started")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.worker is None:
        start_workers(args.method, args.out, args.steps, workers=2)
    else:
        train(args.method, args.worker, args.out, args.steps)


if __name__ == "__main__":
    main()
