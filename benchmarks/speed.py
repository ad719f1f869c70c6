"""Speed of ranking, scoring and surgery, as ratios in one run.

    python benchmarks/speed.py

* Inf-FS on 2000 samples of 2048 features.
* NISP's propagation through ResNet-50 at 224x224 against one training step at batch 32.
* trace + plan + rebuild (half of the FLOPs, random scores) against `clone_model` and
  `set_weights` of the same model.
* Growth of memory by a rebuild at its peak, in a process of its own (on Linux), beside the
  size of the new weights.

Every pair is measured in turns (A B A B ...); the figures are medians.
"""

import argparse
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from results import save_results

import keras_nisp as kn
from keras_nisp.importance.final_response import find_final_responses
from keras_nisp.importance.nisp import Ranking, propagate


def medians(*functions, rounds=5):
    """Median seconds of each function, called in turns after one warm-up."""
    times = [[] for _ in functions]
    for round_ in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            gc.collect()  # what one leaves behind is not charged to the other
            started = time.perf_counter()
            function()
            if round_:
                seconds.append(time.perf_counter() - started)
    return [float(np.median(seconds)) for seconds in times]


def measure_inf_fs():
    x = np.maximum(np.random.default_rng(0).normal(size=(2000, 2048)), 0).astype(np.float32)
    (seconds,) = medians(lambda: kn.inf_fs(x))
    return {"inf_fs_seconds": seconds}


def measure_nisp():
    model = keras.applications.ResNet50(weights=None)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    x, y = np.random.rand(32, 224, 224, 3).astype("float32"), np.zeros(32, int)
    channel_map = kn.trace(model)
    (final,) = find_final_responses(channel_map)
    units = np.unique(final.tensor.names)
    ranking = Ranking(final, units, np.random.rand(len(units)))
    scoring, step = medians(
        lambda: propagate(channel_map, [ranking]), lambda: model.train_on_batch(x, y)
    )
    return {"propagation_seconds": scoring, "step_seconds": step, "ratio": scoring / step}


def prune_half(model):
    return kn.rebuild(model, kn.plan_pruning(model, kn.Random(), flops_reduction=0.5))


def clone(model):
    keras.models.clone_model(model).set_weights(model.get_weights())


def measure_surgery():
    rows = []
    for name in ("ResNet50", "MobileNetV2", "DenseNet121"):
        model = getattr(keras.applications, name)(weights=None)
        ours, theirs = medians(lambda: prune_half(model), lambda: clone(model), rounds=7)  # noqa: B023
        row = {"model": name, "ours_seconds": ours, "clone_seconds": theirs, "ratio": ours / theirs}
        rows.append(row)
    return {"surgery": rows}


def memory(kind):
    """Bytes of resident memory of this process: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def peak_of_rebuild(name):
    """Growth of the process's peak memory by a rebuild, over old and new weights."""
    model = getattr(keras.applications, name)(weights=None)
    plan = kn.plan_pruning(model, kn.Random(), flops_reduction=0.5)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    small = kn.rebuild(model, plan)
    grown = memory("VmHWM") - before
    old, new = (4 * m.count_params() for m in (model, small))
    print(f"{grown} {old} {new}")


def measure_memory():
    rows = []
    for name in ("ResNet50", "VGG16"):
        command = [sys.executable, __file__, "--peak-of", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        grown, old, new = map(int, output.split()[-3:])
        rows.append({"model": name, "grown_bytes": grown, "old_bytes": old, "new_bytes": new})
    return {"memory": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        peak_of_rebuild(args.peak_of)
        return
    results = {}
    for measure in (measure_inf_fs, measure_nisp, measure_surgery, measure_memory):
        part = measure()
        print(part, flush=True)
        results.update(part)
    save_results("speed", results)


if __name__ == "__main__":
    main()
