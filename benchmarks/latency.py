"""FLOPs are not time: how much of a FLOPs reduction arrives as speed, and what rounding does.

    python benchmarks/latency.py

ResNet-50, MobileNetV2 and EfficientNetB0 at 224x224, batch 1, 1 thread, float32 and int8, random
weights and scores (time depends on neither). Half of the FLOPs is removed with widths in steps of
1 and of 8, with `target="x86"` (16) and in the steps in which convolutions get faster here
(`LatencyTable.block`); and half of the latency. Each model is timed in turns with the original;
figures are medians. Rows are saved as they come, and `--resume` continues from there.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from results import FOLDER, save_results

import keras_nisp as kn
from keras_nisp.data.random_samples import random_samples
from keras_nisp.export.interpreter import runtime_name
from keras_nisp.export.tflite import convert
from keras_nisp.latency.benchmarking import benchmark
from keras_nisp.latency.table import LatencyTable
from keras_nisp.pruning.pruning import pruned

MODELS = ("ResNet50", "MobileNetV2", "EfficientNetB0")
VARIANTS = {
    "FLOPs, round_to=1": {"flops_reduction": 0.5, "round_to": 1},
    "FLOPs, round_to=8": {"flops_reduction": 0.5, "round_to": 8},
    "FLOPs, target=x86": {"flops_reduction": 0.5, "target": "x86"},
    "FLOPs, measured block": {"flops_reduction": 0.5, "round_to": None},  # of the table
    "latency": {"latency_reduction": 0.5},
}


def as_tflite(model, quantization):
    shapes = [tensor.shape[1:] for tensor in model.inputs]
    return convert(model, quantization, random_samples(model, shapes, 8))


def planned(model, table, limits):
    """A plan and its model; latency budgets are proven by measuring, as `prune` does it."""
    if "latency_reduction" in limits:
        result = pruned(model, kn.Random(), kn.Budget(latency=table, **limits))
        print(result.latency, flush=True)
        return result.plan, result.small, result.latency.tries
    if "target" not in limits:
        limits = {**limits, "round_to": limits["round_to"] or table.block}
    plan = kn.plan_pruning(model, kn.Random(), **limits)
    return plan, kn.rebuild(model, plan), 1


def measure(model, original, table, variant, rounds):
    """One row: FLOPs, the table's word and the measured latencies."""
    started = time.perf_counter()
    plan, small, tries = planned(model, table, VARIANTS[variant])
    channel_map = plan.trace(model)
    estimated = table.reduction(channel_map, ~plan.removed_units(channel_map))
    seconds = time.perf_counter() - started
    result = benchmark(original, as_tflite(small, table.quantization), rounds=rounds)
    before, after = (latency.median for latency in result.latencies)
    ratio = plan.before.flops / plan.after.flops
    return {
        "block": table.block,
        "flops_reduction": plan.flops_reduction,
        "params_reduction": plan.params_reduction,
        "seconds_before": before,
        "seconds_after": after,
        "table_reduction": estimated,
        "latency_reduction": 1 - 1 / result.speedup,
        "flops_ratio": ratio,
        "speedup": result.speedup,
        "speedup_over_flops_ratio": result.speedup / ratio,
        "tries": tries,
        "planning_seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    path, rows = FOLDER / "latency.json", []
    if args.resume and path.exists():
        rows = json.loads(path.read_text())["rows"]
    done = {(row["model"], row["quantization"], row["variant"]) for row in rows}
    for name in args.models:
        model = getattr(keras.applications, name)(weights=None)
        for quantization in (None, "int8"):
            missing = [v for v in VARIANTS if (name, quantization, v) not in done]
            original = as_tflite(model, quantization) if missing else None
            table = LatencyTable(quantization)
            for variant in missing:
                row = {"model": name, "quantization": quantization, "variant": variant}
                row |= measure(model, original, table, variant, args.rounds)
                rows.append(row)
                print(row, flush=True)
                save_results("latency", {"runtime": runtime_name(), "rows": rows}, args)


if __name__ == "__main__":
    main()
