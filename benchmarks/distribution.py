"""`tf.distribute.MirroredStrategy` on logical CPU devices beside one device, same global batch.

    python benchmarks/distribution.py [--replicas 2 4] [--cases CentripetalSGD ...]

Each case trains, scores, prunes or repairs a small network on one device and on several replicas
with the same global batches, and compares weights: the largest difference, over the largest
weight. Cases that begin with "Keras" are plain training, for comparison. What Keras cannot do with
replicas, or does otherwise (clipping each replica's gradients alone), is said in the row.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_nisp as kn

TOLERANCE = 1e-4
strategy = tf.distribute.get_strategy()
BATCH, EPOCHS, SAMPLES = 16, 3, 64


def network() -> keras.Model:
    x = inputs = keras.Input((8, 8, 2))
    for index in range(2):
        y = layers.Conv2D(8, 3, padding="same", name=f"conv{index}")(x)
        y = layers.BatchNormalization(synchronized=True, name=f"norm{index}")(y)
        x = layers.Add()([layers.Conv2D(8, 1, name=f"short{index}")(x), layers.ReLU()(y)])
    x = layers.GlobalAveragePooling2D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="network")


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 8, 8, 2)).astype("float32")
    return x, np.abs(x.mean((1, 2)) @ rng.normal(size=(2, 3))).argmax(1)


def sgd(**settings) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9, **settings)


def adam() -> keras.optimizers.Optimizer:
    # A small epsilon would divide rounding errors by gradients that are near zero.
    return keras.optimizers.Adam(1e-3, epsilon=1e-3)


def fit(model, make_optimizer: Callable, callbacks=(), **settings) -> None:
    """Compiles in the scope in which the model was built, and trains."""
    x, y = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with strategy.scope():
        model.compile(make_optimizer(), loss, jit_compile=False, **settings)
        model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
    model.fit(x, y, BATCH, EPOCHS, shuffle=False, verbose=0, callbacks=list(callbacks))


def plain_training(**optimizer) -> Callable:
    def run(model):
        fit(model, lambda: sgd(**optimizer))
        return model

    return run


def pruner_with(importance: Callable, compiled: dict | None = None, **optimizer) -> Callable:
    def run(model):
        pruner = kn.NISPPruner(importance=importance(), ratio=0.5, verbose=0)
        fit(model, lambda: sgd(**optimizer), [pruner], **(compiled or {}))
        return pruner.pruned_model

    return run


def centripetal_sgd(compiled: dict | None = None, **optimizer) -> Callable:
    def run(model):
        plan = kn.plan_merging(model, ratio=0.5)
        steps = SAMPLES // BATCH * EPOCHS
        given = {"plan": plan, "strength": 0.5, "steps": steps, **optimizer}
        make = functools.partial(kn.CentripetalSGD, 0.05, momentum=0.9, **given)
        fit(model, make, **(compiled or {}))
        return model

    return run


def centripetal(model):
    plan = kn.plan_merging(model, ratio=0.5)
    fit(model, lambda: kn.Centripetal(adam(), plan, strength=0.5))
    return model


def prune_with(importance: Callable) -> Callable:
    def run(model):
        x, _ = data()
        return kn.prune(model, importance(), ratio=0.5, calibration=x, verbose=0)

    return run


def repaired_by_means(model):
    x, _ = data()
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    small = kn.rebuild(model, plan)
    return kn.recalibrate(small, x, model, plan, compensate="mean")


def slots_carried(model):
    """Training continues in the small model, with the optimizer's slots."""
    fit(model, sgd)
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    with strategy.scope():
        small = kn.rebuild(model, plan, optimizer_state=True)
    x, y = data()
    small.fit(x, y, BATCH, 1, shuffle=False, verbose=0)
    return small


several = {"steps_per_execution": 2}
CASES = {
    "Keras, SGD": plain_training(),
    "Keras, accumulation": plain_training(gradient_accumulation_steps=2),
    "Keras, clipping": plain_training(global_clipnorm=0.1),
    "NISPPruner, NISP": pruner_with(lambda: kn.NISP(data()[0])),
    "NISPPruner, Magnitude": pruner_with(kn.Magnitude),
    "NISPPruner, steps_per_execution": pruner_with(kn.Magnitude, several),
    "NISPPruner, accumulation": pruner_with(kn.Magnitude, gradient_accumulation_steps=2),
    "NISPPruner, EMA": pruner_with(kn.Magnitude, use_ema=True, ema_momentum=0.5),
    "CentripetalSGD": centripetal_sgd(),
    "CentripetalSGD, steps_per_execution": centripetal_sgd(several),
    "CentripetalSGD, accumulation": centripetal_sgd(gradient_accumulation_steps=2),
    "CentripetalSGD, EMA": centripetal_sgd(use_ema=True, ema_momentum=0.5),
    "CentripetalSGD, clipping": centripetal_sgd(global_clipnorm=0.1),
    "Centripetal": centripetal,
    "prune, NISP": prune_with(lambda: kn.NISP(data()[0])),
    "prune, Taylor": prune_with(lambda: kn.Taylor(data(), loss="sparse_categorical_crossentropy")),
    "recalibrate, means": repaired_by_means,
    "rebuild with optimizer slots": slots_carried,
}


def outcome(case: Callable, replicas: int) -> list[np.ndarray]:
    """The weights that a case ends with."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    global strategy
    strategy = tf.distribute.get_strategy()  # of one device
    if replicas > 1:
        devices = [f"CPU:{index}" for index in range(replicas)]
        together = tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy(devices, together)
    with strategy.scope():
        model = network()
    return case(model).get_weights()


def difference(expected: list[np.ndarray], received: list[np.ndarray]) -> float:
    """The largest difference of any weight, over the largest weight; infinite for other shapes."""
    if [w.shape for w in expected] != [w.shape for w in received]:
        return float("inf")
    scale = max(np.abs(w).max() for w in expected)
    pairs = zip(expected, received, strict=True)
    return float(max(np.abs(x - y).max() for x, y in pairs) / scale)


def compared(case: Callable, expected: Callable, replicas: int) -> tuple[float | None, str | None]:
    """The difference, or why there is none: Keras cannot accumulate gradients of replicas."""
    try:
        received = outcome(case, replicas)
        return difference(expected(), received), None
    except (RuntimeError, ValueError) as error:
        if "merge_call" in str(error):
            return None, "Keras: `merge_call` inside of a conditional"
        if "gradient_accumulation_steps" in str(error):
            return None, f"ValueError: {str(error).split(',')[0]}"
        raise


def as_keras(row: dict, rows: list[dict]) -> bool:
    """Whether plain training fails, or differs, in the same way."""
    setting = row["case"].rsplit(", ", 1)[-1]
    twin = {"case": f"Keras, {setting}", "replicas": row["replicas"]}
    twins = [other for other in rows if twin.items() <= other.items()]
    if not twins or row["case"].startswith("Keras"):
        return row["case"].startswith("Keras")
    return bool(row["error"]) == bool(twins[0]["error"]) and (twins[0]["difference"] or 1) > 1e-2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    help = "these alone; prints JSON, saves none"
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=help)
    args = parser.parse_args()
    (cpu,) = tf.config.list_physical_devices("CPU")
    logical = [tf.config.LogicalDeviceConfiguration()] * max(args.replicas)
    tf.config.set_logical_device_configuration(cpu, logical)
    rows = []
    for name in args.cases or CASES:
        expected = functools.cache(functools.partial(outcome, CASES[name], 1))
        for replicas in args.replicas:
            worst, error = compared(CASES[name], expected, replicas)
            row = {"case": name, "replicas": replicas, "difference": worst, "error": error}
            rows.append(row)
            text = f"{worst:.1e}" if error is None else error
            print(f"{name:<40}{replicas} replicas: {text}", file=sys.stderr, flush=True)
    if args.cases:
        print(json.dumps(rows))
        return
    from results import save_results

    save_results("distribution", {"rows": rows}, args)
    wrong = [r for r in rows if r["error"] or not r["difference"] <= TOLERANCE]
    sys.exit(not all(as_keras(row, rows) for row in wrong))


if __name__ == "__main__":
    main()
