"""Random graphs x random plans through the whole chain, in large numbers.

    python benchmarks/fuzzing.py [--count 2000] [--first 0] [--workers 2] [--rows FILE]

Each graph is that of `tests/random_graphs.py` for its seed; half are pruned, half merged. All are
planned, rebuilt and verified; those that are pruned are scored by NISP and compensated linearly
and by means, too. Each is saved and loaded where the original can be, one in ten in a fresh
process. One in ten trains with `NISPPruner`; one in twenty becomes a TFLite file. What fails is
printed as Keras code. Rows go to a file as they are made: run again, it computes what is missing,
and what failed.
"""

import argparse
import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras.src import backend
from results import save_results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import random_chain as chain
from nets import randomise
from random_graphs import build, sample

CHUNK = 20  # graphs of a task
AGREES, NOTHING, KERAS_ADD = "agrees", "nothing to do", "fault of keras.ops.add"
GRAPPLER = "fault of TensorFlow's graph optimiser"
GOOD = (AGREES, NOTHING, KERAS_ADD, GRAPPLER)


def check(seed: int, folder: Path) -> dict:
    """One graph and one plan, through the whole chain."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    code, kind = sample(seed), ("removal", "merging")[seed % 2]
    row, steps = {"seed": seed, "kind": kind, "layers": code.count("\n")}, []
    try:
        outcome = run(code, seed, kind, folder, row, steps)
    except chain.Wrong as error:
        outcome = f"WRONG: {error}"
    except Exception as error:
        outcome = f"crash: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    if outcome not in GOOD:
        print(f"\nseed {seed}, {kind}, {'/'.join(steps)}: {outcome}\n{code}", flush=True)
    return {**row, "outcome": outcome, "steps": steps}


def run(code: str, seed: int, kind: str, folder: Path, row: dict, steps: list[str]) -> str:
    """The steps of the chain, noted in `steps` as they begin."""
    steps.append("build")
    model = randomise(build(code), seed)
    if not np.isfinite(chain.outputs(model)).all():
        return NOTHING
    steps.append("plan")
    plan = chain.make_plan(model, seed, kind)
    if plan is None:
        return NOTHING
    steps.append("rebuild")
    row["removed"] = plan.params_reduction
    try:
        small = chain.rebuilt(model, plan)
    except chain.Wrong:
        if without_bias_add(lambda: succeeds(chain.rebuilt, model, plan)):
            return KERAS_ADD
        raise
    if kind == "removal":
        steps.append("repair")
        chain.repair(model, plan)
    steps.append("save")
    name = f"{seed}.keras" if seed // 2 % 10 == 0 else "last/model.keras"
    if not chain.saved(model, small, folder / name):
        steps[-1] = "not loadable"
    if seed // 2 % 10 == 1 and kind == "removal":
        steps.append("train")
        chain.masked_training(model, seed)
    if seed // 2 % 20 == 2:
        steps.append("tflite")
        path = folder / "last" / "model.tflite"
        row["tflite"] = chain.exported(small, path)
        if "optimiser of graphs" in (row["tflite"] or ""):
            # Plain networks at these widths fail in `predict`, too, and so do not without it.
            with without_arithmetic_optimization():
                row["tflite"] = chain.exported(small, path)
            return GRAPPLER
    return AGREES


def succeeds(function, *args) -> bool:
    try:
        function(*args)
    except chain.Wrong:
        return False
    return True


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


@contextlib.contextmanager
def without_arithmetic_optimization():
    """Runs graphs as they are: one of TensorFlow's optimisations merges products that it must not
    ("Matrix size-incompatible")."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})


def check_chunk(seeds: list[int]) -> list[dict]:
    """Some graphs; what they saved is loaded by a fresh process."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "last").mkdir()
        rows = [check(seed, folder) for seed in seeds]
        wrong = chain.loaded_elsewhere(folder) if any(folder.glob("*.keras")) else {}
    for row in rows:
        if fault := wrong.get(f"{row['seed']}.keras"):
            row["outcome"] = f"WRONG: in a fresh process: {fault}"
            print(f"\nseed {row['seed']}: {row['outcome']}\n{sample(row['seed'])}", flush=True)
    return rows


def is_good(row: dict) -> bool:
    return row["outcome"] in GOOD


def read_rows(path: Path) -> list[dict]:
    """The rows of an earlier run; of a seed that was tried again the last one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return list({row["seed"]: row for row in map(json.loads, lines)}.values())


def summarise(rows: list[dict]) -> dict:
    done = [row for row in rows if row["outcome"] == AGREES]
    refused = Counter(row["tflite"] for row in done if row.get("tflite"))
    return {
        "graphs": len(rows),
        "agree": len(done),
        "nothing_to_do": sum(row["outcome"] == NOTHING for row in rows),
        "wrong": sum(row["outcome"].startswith("WRONG") for row in rows),
        "crashed": sum(row["outcome"].startswith("crash") for row in rows),
        "faults_of_keras_add": sum(row["outcome"] == KERAS_ADD for row in rows),
        "faults_of_the_graph_optimiser": sum(row["outcome"] == GRAPPLER for row in rows),
        "merged": sum(row["kind"] == "merging" for row in done),
        "steps": dict(Counter(step for row in done for step in row["steps"])),
        "tflite_refused": dict(refused.most_common()),
        "parameters_removed": float(np.mean([row["removed"] for row in done])),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("out/fuzzing.jsonl"))
    args = parser.parse_args()
    started, seeds = time.perf_counter(), range(args.first, args.first + args.count)
    rows = [row for row in read_rows(args.rows) if row["seed"] in seeds and is_good(row)]
    left = sorted(set(seeds) - {row["seed"] for row in rows})
    chunks = [left[i : i + CHUNK] for i in range(0, len(left), CHUNK)]
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with (
        spawn.Pool(args.workers, maxtasksperchild=5) as pool,
        args.rows.open("a", encoding="utf-8") as file,
    ):
        for part in pool.imap(check_chunk, chunks):
            rows += part
            file.write("".join(json.dumps(row) + "\n" for row in part))
            file.flush()
            bad, seconds = sum(not is_good(row) for row in rows), time.perf_counter() - started
            print(f"{len(rows)} graphs, {bad} bad, {seconds:.0f} s", flush=True)
    summary = summarise(rows)
    for key, value in summary.items():
        print(f"{key}: {value}")
    others = [row for row in rows if row["outcome"] not in (AGREES, NOTHING)]
    if args.first == 0:
        save_results("fuzzing", {"summary": summary, "others": others}, args)
    sys.exit(bool(summary["wrong"] + summary["crashed"]))


if __name__ == "__main__":
    main()
