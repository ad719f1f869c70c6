"""Random graphs x random plans x the oracle, in large numbers.

    python benchmarks/fuzzing.py [--count 2000]

Each graph is that of `tests/random_graphs.py` for its seed; half are pruned, half merged. A silent
error would be a rebuilt model that does not compute what its oracle does; a crash or a wrong count
of parameters is counted as well. What fails is printed as Keras code.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras.src import backend
from results import save_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from nets import randomise
from random_graphs import build, sample
from test_random_graphs import make_plan, outputs

import keras_nisp as kn


def check(seed: int) -> dict:
    """One graph and one plan."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    code, kind = sample(seed), ("removal", "merging")[seed % 2]
    row = {"seed": seed, "kind": kind, "layers": code.count("\n")}
    try:
        model = randomise(build(code), seed)
        plan = make_plan(model, seed, kind) if np.isfinite(outputs(model)).all() else None
        if plan is None:
            return {**row, "outcome": "nothing to do"}
        small = kn.rebuild(model, plan, force=True, verbose=0)
        result = kn.verify(model, small, plan)
        if not result.ok and without_bias_add(lambda: kn.verify(model, small, plan)).ok:
            return {**row, "outcome": "fault of keras.ops.add"}
        counted = small.count_params() == plan.after.parameters
        agrees = result.ok and counted and kn.profile(small).total == plan.after
        row |= {"difference": result.relative, "removed": plan.params_reduction}
        outcome = "agrees" if agrees else "WRONG"
    except Exception as error:
        outcome = f"crash: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if outcome != "agrees":
        print(f"\nseed {seed}, {kind}: {outcome}\n{code}", flush=True)
    return {**row, "outcome": outcome}


def without_bias_add(function):
    """Runs a function with an addition that broadcasts as NumPy does.

    `keras.ops.add` on TensorFlow takes what squeezes to a vector for a bias, and adds it along
    the second axis if that is as long, though it would broadcast along another.
    """
    add = backend.numpy.add
    backend.numpy.add = tf.add
    try:
        return function()
    finally:
        backend.numpy.add = add


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    args = parser.parse_args()
    warnings.simplefilter("ignore", kn.UnknownLayerWarning)
    started, rows = time.perf_counter(), []
    for seed in range(args.count):
        rows.append(check(seed))
        if (seed + 1) % 100 == 0:
            print(f"{seed + 1} graphs, {time.perf_counter() - started:.0f} s", flush=True)
    done = [row for row in rows if row["outcome"] == "agrees"]
    differences = [row["difference"] for row in done]
    summary = {
        "graphs": len(rows),
        "agree": len(done),
        "nothing_to_do": sum(row["outcome"] == "nothing to do" for row in rows),
        "wrong": sum(row["outcome"] == "WRONG" for row in rows),
        "crashed": sum(row["outcome"].startswith("crash") for row in rows),
        "faults_of_keras_add": sum(row["outcome"] == "fault of keras.ops.add" for row in rows),
        "merged": sum(row["kind"] == "merging" for row in done),
        "within_1e-5": float(np.mean(np.array(differences) <= 1e-5)),
        "largest_difference": float(max(differences)),
        "parameters_removed": float(np.mean([row["removed"] for row in done])),
        "seconds": round(time.perf_counter() - started),
    }
    for key, value in summary.items():
        print(f"{key}: {value}")
    others = [row for row in rows if row["outcome"] not in ("agrees", "nothing to do")]
    save_results("fuzzing", {"summary": summary, "others": others}, args)
    sys.exit(bool(summary["wrong"] + summary["crashed"]))


if __name__ == "__main__":
    main()
