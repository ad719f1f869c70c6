"""The oracle over all of keras.applications: rebuilt model against zeroed original.

    python benchmarks/zoo.py [--models ResNet50 VGG16] [--seed 0]

Each network gets random weights (gamma and beta of BatchNorm too), BatchNorm statistics of
random images (random ones would let a net of 1,000 layers amplify rounding errors to any
size), an odd input size, and a plan that removes a random 30 to 60 % of the channels of
every coupled group at random. The largest difference of the outputs over their scale must
be at most 1e-5.
"""

import argparse
import inspect
import sys
import time
from pathlib import Path

import keras
import numpy as np
from results import save_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from nets import random_plan, randomise

import keras_nisp as kn

TOLERANCE = 1e-5


def names() -> list[str]:
    """The functions of keras.applications."""
    members = inspect.getmembers(keras.applications, inspect.isfunction)
    return [name for name, _ in members]


def build(name: str):
    """A network with ten logits at the smallest odd size that it takes."""
    function = getattr(keras.applications, name)
    for size in (65, 97):
        try:
            return function(
                weights=None,
                input_shape=(size, size, 3),
                classes=10,
                classifier_activation=None,
            )
        except ValueError as error:
            last = error
    raise last


def check(name: str, seed: int) -> dict:
    """Prunes one network and compares it with its oracle."""
    model = randomise(build(name), seed)
    images = np.random.default_rng(seed).normal(size=(32, *model.input_shape[1:]))
    kn.recalibrate(model, images)
    started = time.perf_counter()
    plan = random_plan(model, seed)
    planned = time.perf_counter()
    small = kn.rebuild(model, plan)
    rebuilt = time.perf_counter()
    result = kn.verify(model, small, plan, tolerance=TOLERANCE)
    return {
        "model": name,
        "size": model.input_shape[1],
        "difference": result.relative,
        "ok": result.ok,
        "mixing_layers": len(plan.inexact),
        "parameters": [plan.before.parameters, plan.after.parameters],
        "flops": [plan.before.flops, plan.after.flops],
        "groups": len(plan.groups),
        "plan_seconds": planned - started,
        "rebuild_seconds": rebuilt - planned,
    }


def show(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Rebuilt against oracle, tolerance {TOLERANCE:g}")
    for title in ("model", "input", "difference", "exact", "parameters", "FLOPs", "groups", "s"):
        table.add_column(title, justify="left" if title in ("model", "exact") else "right")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["size"]),
            f"{row['difference']:.1e}" + ("" if row["ok"] else " FAILED"),
            "yes" if not row["mixing_layers"] else f"but for {row['mixing_layers']} layers",
            *(f"{before:,} -> {after:,}" for before, after in (row["parameters"], row["flops"])),
            str(row["groups"]),
            f"{row['plan_seconds'] + row['rebuild_seconds']:.1f}",
        )
    Console(width=140).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=names(), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for name in args.models:
        rows.append(check(name, args.seed))
        print(f"{name}: {rows[-1]['difference']:.1e}", flush=True)
        keras.backend.clear_session()
    show(rows)
    if args.models == names():
        save_results("zoo", {"tolerance": TOLERANCE, "rows": rows}, args)
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
