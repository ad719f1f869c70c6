"""What a prune of a large network costs, in passes of the network over the same images.

    python benchmarks/passes.py

Random weights and 64 random images at 224x224: scores by NISP, widths by damage (beyond the scores)
and the refit, each over the median of three `predict`s in the same process, by wall time and by CPU
time. Each model has a process of its own, whose peak memory is read after every part.

The rows of 2026-11-27 were measured on two cores, on which short commands ran meanwhile.
"""

import argparse
import json
import os
import resource
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MODELS = ("ResNet50", "MobileNetV2", "EfficientNetB0")
IMAGES = 64


def timed(function):
    """What a function gives, and its seconds: by the clock, and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def peak() -> float:
    """Of this process, in GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def measure(name: str) -> dict:
    import keras
    import numpy as np

    import keras_nisp as kn

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None)
    x = np.random.default_rng(0).normal(size=(IMAGES, 224, 224, 3)).astype("float32")
    passes = [timed(lambda: model.predict(x, verbose=0))[1] for _ in range(4)][1:]
    one = [statistics.median(part) for part in zip(*passes, strict=True)]
    row = {"model": name, "pass": [round(s, 2) for s in one], "peak_before": peak()}

    def plan(**keywords):
        return kn.plan_pruning(model, kn.NISP(x), flops_reduction=0.5, **keywords)

    _, scored = timed(lambda: plan(allocation="uniform"))
    row["peak_scores"] = peak()
    chosen, both = timed(lambda: plan(calibration=x))
    row["peak_allocation"] = peak()
    small = kn.rebuild(model, chosen)
    _, refitted = timed(lambda: kn.recalibrate(small, x, model, chosen))
    row["peak_refit"] = peak()
    allocated = [b - s for b, s in zip(both, scored, strict=True)]
    for part, seconds in (("scores", scored), ("allocation", allocated), ("refit", refitted)):
        row[part] = [round(s / unit, 1) for s, unit in zip(seconds, one, strict=True)]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    from results import measure_apart

    measure_apart("passes", __file__, args.models)


if __name__ == "__main__":
    main()
