"""Training that is killed at random steps, and started again: is the end that of the unbroken run?

    python benchmarks/kills.py [--runs 30] [--seed 0] [--cases NISP centripetal] [--quick]

Each run trains a small network in a process of its own, with `BackupAndRestore`, and is ended by
SIGKILL at a random batch or end of an epoch. Another process then runs the same script to its end.
Channels, weights of the large and of the small model and the optimizer's variables are compared
with those of a run that nobody killed, to the bit.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers
from results import save_results

import keras_nisp as kn

EPOCHS, BATCHES, BATCH = 6, 5, 8
MOMENTS = ("on_train_batch_begin", "on_train_batch_end", "on_epoch_begin", "on_epoch_end")


class Kill(keras.callbacks.Callback):
    """Ends this process at a moment of a step, without any farewell."""

    def __init__(self, step: int, moment: str):
        super().__init__()
        self.step, self.seen = step, 0
        setattr(self, moment, self.count)

    def count(self, index, logs=None):
        self.seen += 1
        if self.seen > self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(BATCHES * BATCH, 8)).astype("float32"), rng.integers(
        0, 3, BATCHES * BATCH
    )


def network(dropout: float = 0.0) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, name="a"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Dropout(dropout),
            layers.Dense(12, activation="relu", name="b"),
            layers.LayerNormalization(),
            layers.Dense(3, name="head"),
        ]
    )


def fit(model, optimizer, callbacks) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    x, y = data()
    model.fit(x, y, BATCH, EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)


def pruning(importance: str, schedule: str, order: str):
    """A script that prunes while it trains."""

    def run(backup, kill):
        given = {
            "schedule": kn.PolynomialSchedule(0.5, 0, 20, frequency=3)
            if schedule == "explicit schedule"
            else None
        }
        given |= {"calibration": data()[0]} if importance == "NISP" else {}
        given |= {"importance": kn.Magnitude()} if importance == "Magnitude" else {}
        pruner = kn.NISPPruner(ratio=0.5, verbose=0, **given)
        pair = [pruner, *backup] if order == "pruner first" else [*backup, pruner]
        model = network(dropout=0.1)
        fit(model, keras.optimizers.Adam(0.01), [*pair, *kill])
        removed = [np.asarray(row.removed) for row in pruner.plan.creators]
        return [*removed, *variables(model), *variables(pruner.pruned_model)]

    return run


def merging(backup, kill):
    """A script that trains with C-SGD; without dropout, whose random state Keras does not save."""
    model = network()
    plan = kn.plan_merging(model, ratio=0.5)
    optimizer = kn.CentripetalSGD(0.05, 0.9, plan=plan)
    fit(model, optimizer, [*backup, kn.CentripetalMonitor(plan), *kill])
    small = kn.rebuild(model, optimizer.plan, force=True, verbose=0)
    return [*variables(model), *variables(small)]


def variables(model) -> list[np.ndarray]:
    return [np.asarray(v) for v in (*model.weights, *model.optimizer.variables)]


CASES = {
    f"NISPPruner, {', '.join(case)}": pruning(*case)
    for case in itertools.product(
        ("NISP", "Magnitude"),
        ("default schedule", "explicit schedule"),
        ("pruner first", "backup first"),
    )
}
CASES["CentripetalSGD"] = merging


def in_a_process(run, backup: Path | None, kill: tuple | None, result: Path) -> int:
    """Runs a script in a process of its own; the signal that ended it, or 0."""
    child = os.fork()  # before TensorFlow has made its threads: this process only compares
    if child == 0:
        code = 1
        try:
            store = [keras.callbacks.BackupAndRestore(backup)] if backup else []
            end = run(store, [Kill(*kill)] if kill else [])
            np.savez(result, **{f"{i:04d}": array for i, array in enumerate(end)})
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError("a run failed; its error is above")
    return 0


def same(first: Path, second: Path) -> bool:
    with np.load(first) as one, np.load(second) as other:
        return one.files == other.files and all(
            np.array_equal(one[name], other[name]) for name in one.files
        )


def killed_once(run, rng, folder: Path, unbroken: Path) -> dict:
    """Kills a run at a random moment, runs it again, and compares."""
    moment = MOMENTS[rng.integers(len(MOMENTS))]
    step = int(rng.integers(EPOCHS * (BATCHES if "batch" in moment else 1)))
    backup, result = folder / "backup", folder / "result.npz"
    ended = in_a_process(run, backup, (step, moment), result)
    if ended != signal.SIGKILL:
        raise RuntimeError(f"expected the run to be killed. It ended with {ended}.")
    in_a_process(run, backup, None, result)
    outcome = {"step": step, "moment": moment, "same": same(unbroken, result)}
    shutil.rmtree(backup, ignore_errors=True)
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30, help="kills for each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of names of cases")
    parser.add_argument("--quick", action="store_true", help="one kill; prints JSON, saves none")
    args = parser.parse_args()
    rows = []
    for name, run in CASES.items():
        if not any(part in name for part in args.cases):
            continue
        rng = np.random.default_rng([args.seed, *name.encode()])
        with tempfile.TemporaryDirectory() as folder:
            unbroken = Path(folder) / "unbroken.npz"
            in_a_process(run, None, None, unbroken)
            runs = 1 if args.quick else args.runs
            kills = [killed_once(run, rng, Path(folder), unbroken) for _ in range(runs)]
        other = sum(not kill["same"] for kill in kills)
        rows.append({"case": name, "kills": len(kills), "other_results": other, "runs": kills})
        print(f"{name:<55}{len(kills)} kills, {other} other results", file=sys.stderr, flush=True)
        if not args.quick:
            save_results("kills", {"rows": rows}, args)
    if args.quick:
        print(json.dumps(rows))
    sys.exit(any(row["other_results"] for row in rows))


if __name__ == "__main__":
    main()
