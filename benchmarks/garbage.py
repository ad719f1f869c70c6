"""Garbage for the command line: one clear line and exit code 2, and files as they were.

    python benchmarks/garbage.py [--rounds 5] [--seed 0]

Every input of every command (models, samples, plans, labels, earlier results, modules) is empty,
cut off, noise, another kind of file, a folder, missing, changed in some bytes, or has content of
the wrong kind. Commands run in one process, by click's runner. A case is bad if another error than
a user's comes through, if it says more than one line or nothing, or if a file is changed, added or
left over. A file that can be read in spite of its damage may succeed.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
from click.testing import CliRunner
from results import save_results

from keras_nisp_cli import loading, main
from keras_nisp_cli.console import Console

PRUNE = ("prune", "model.keras", "-o", "old.keras", "-f", "--ratio", "0.5")
APPLY = ("apply", "plan.json", "model.keras", "-o", "old.keras", "-f")
DATA = ("--data", "data.npz", "--ratios", "0.5")
SENSITIVITY = ("sensitivity", "model.keras", *DATA, "-o", "results.json")
EXPORT = ("export", "model.keras", "--tflite", "old.tflite", "-f", "--quantization", "int8")
# The commands, by which of their inputs is damaged.
COMMANDS = {
    "model.keras": [
        ("inspect", "model.keras"),
        (*PRUNE, "--importance", "random"),
        ("apply", "plan.json", "model.keras", "-o", "old.keras", "-f"),
        ("export", "model.keras", "--serving", "served"),
        ("diff", "model.keras", "old.keras"),
        ("benchmark", "model.keras", "--rounds", "1", "--repeats", "1"),
        SENSITIVITY,
    ],
    "model.h5": [
        ("inspect", "model.h5"),
        ("apply", "plan.json", "model.h5", "-o", "old.keras", "-f"),
        ("diff", "old.keras", "model.h5"),
    ],
    "model.tflite": [("benchmark", "model.tflite", "--rounds", "1", "--repeats", "1")],
    "data.npz": [
        (*PRUNE, "--calibration", "data.npz"),
        (*PRUNE, "--calibration", "data.npz", "--importance", "taylor"),
        ("apply", "plan.json", "model.keras", "--calibration", "data.npz", "-o", "old.keras", "-f"),
        ("diff", "model.keras", "old.keras", "--data", "data.npz"),
        SENSITIVITY,
        (*EXPORT, "--data", "data.npz"),
    ],
    "data.npy": [
        (*PRUNE, "--calibration", "data.npy"),
        ("diff", "model.keras", "old.keras", "--data", "data.npy"),
    ],
    "plan.json": [
        ("apply", "plan.json", "model.keras", "-o", "old.keras", "-f"),
        ("apply", "plan.json", "model.keras", "-o", "old.keras", "--report", "old.html", "-f"),
    ],
    "results.json": [
        SENSITIVITY,
    ],
    "labels.txt": [
        ("export", "model.keras", "--serving", "served", "--top-k", "2", "--labels", "labels.txt"),
    ],
    "module.py": [("inspect", "model.keras", "--custom-objects", "module")],
}  # fmt: skip


# Garbage -----------------------------------------------------------------------------


def damages(path: Path, rng: random.Random):
    """Ways to damage a file: a name, and a function that does it."""
    whole = path.read_bytes()
    others = [p for p in path.parent.iterdir() if p.is_file() and p.suffix != path.suffix]

    def write(data: bytes):
        return lambda: path.write_bytes(data)

    def flipped() -> bytes:
        data = bytearray(whole)
        for _ in range(rng.choice([1, 4, 32])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)

    def folder():
        path.unlink()
        path.mkdir()

    place = rng.randrange(1, len(whole))
    yield "empty", write(b"")
    yield "cut off", write(whole[:place])
    yield "noise", write(rng.randbytes(rng.choice([1, 100, 10_000])))
    yield "beginning, then noise", write(whole[:64] + rng.randbytes(2000))
    yield "bytes changed", write(flipped())
    yield "a part overwritten", write(whole[:place] + rng.randbytes(16) + whole[place + 16 :])
    yield "twice", write(whole + whole)
    yield "another kind", write(rng.choice(others).read_bytes())
    yield "a folder", folder
    yield "missing", path.unlink
    if path.suffix in (".npz", ".npy"):
        for name, arrays in contents(rng).items():
            yield name, lambda arrays=arrays: _save(path, arrays)


def contents(rng: random.Random) -> dict[str, dict]:
    """Arrays of the wrong kind."""
    x = np.random.default_rng(rng.randrange(99)).normal(size=(8, 6, 6, 3)).astype("float32")
    y = np.arange(8) % 3
    return {
        "no samples": {"x": x[:0], "y": y[:0]},
        "a number": {"x": np.float32(1), "y": np.float32(1)},
        "NaN": {"x": np.where(x > 1, np.nan, x), "y": y},
        "words": {"x": np.full(x.shape, "a"), "y": y},
        "fields": {"x": np.zeros(8, [("a", "f4"), ("b", "i4")]), "y": y},
        "complex": {"x": x.astype("complex64"), "y": y},
        "another size": {"x": x[:, :5], "y": y},
        "few labels": {"x": x, "y": y[:3]},
        "labels out of range": {"x": x, "y": y + 1000},
        "labels in words": {"x": x, "y": np.array(list("abcdefgh"))},
        "labels, NaN": {"x": x, "y": np.full(8, np.nan)},
        "labels of rank 3": {"x": x, "y": np.zeros((8, 2, 2))},
        "objects": {"x": np.array([None, {}], object), "y": y},
        "other names": {"a": x, "b": x},
        "nothing": {},
    }


def _save(path: Path, arrays: dict) -> None:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif arrays:
        np.save(path, next(iter(arrays.values())))
    else:
        path.write_bytes(b"\x93NUMPY")


# Files to damage -----------------------------------------------------------------------


def make(folder: Path) -> None:
    """Whole files of every kind."""
    import keras_nisp as kn

    rng = np.random.default_rng(0)
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.BatchNormalization()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 3)), *layers])
    plan = kn.plan_pruning(model, kn.Magnitude(), ratio=0.5)
    x, y = rng.normal(size=(32, 6, 6, 3)).astype("float32"), np.arange(32) % 3
    for name in ("model.keras", "model.h5"):
        model.save(folder / name)
    kn.rebuild(model, plan).save(folder / "old.keras")
    plan.save(folder / "plan.json")
    np.savez(folder / "data.npz", x=x, y=y)
    np.save(folder / "data.npy", x)
    kn.export_tflite(model, folder / "model.tflite", verbose=0)
    shutil.copy(folder / "model.tflite", folder / "old.tflite")
    (folder / "old.html").write_text("old")
    (folder / "labels.txt").write_text("a\nb\nc\n")
    (folder / "module.py").write_text("value = 1\n")
    network = keras.models.load_model(folder / "model.keras", compile=False)
    metric = {"ratios": [0.5], "calibration": (x, y), "path": folder / "results.json"}
    kn.sensitivity(network, kn.Magnitude(), (x, y), **metric)


def snapshot(folder: Path) -> dict:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# Running -------------------------------------------------------------------------------


def run(arguments: tuple[str, ...]) -> tuple[int, str, BaseException | None]:
    """Exit code, standard error, and an exception that came through."""
    import click

    @click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def whole(arguments):
        console = Console()
        with main._errors(console):
            main.cli(list(arguments), prog_name="keras-nisp", standalone_mode=False, obj=console)

    result = CliRunner().invoke(whole, list(arguments))
    error = None if isinstance(result.exception, SystemExit) else result.exception
    return result.exit_code, result.stderr, error


def judged(code: int, text: str, error, before: dict, after: dict) -> str:
    """What is wrong with an outcome, or "" if nothing is."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if not line.startswith(("Warning:", "Usage:", "Try "))]
    if error is not None:
        return f"raw {type(error).__name__}: {str(error)[:200]}"
    if code == 0:
        return ""
    if code != 2:
        return f"exit code {code}: {text[:300]}"
    if len(errors) != 1 or "Traceback" in text:
        return f"{len(errors)} lines: {text[:300]}"
    changed = [name for name in {*before, *after} if before.get(name, 0) != after.get(name, 0)]
    return f"changed {changed}" if changed else ""


def cases(rng: random.Random, rounds: int):
    """The command, the input that is damaged, and how: an index among its damages."""
    for _ in range(rounds):
        for name, commands in COMMANDS.items():
            for index in range(25 if name.startswith("data") else 10):
                yield rng.choice(commands), name, index


def benchmark():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    loading._silence_native_code = lambda: None  # the runner reads standard error
    rng, counts, bad = random.Random(args.seed), collections.Counter(), []
    with tempfile.TemporaryDirectory() as root:
        whole = Path(root, "whole")
        whole.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            make(whole)
        for number, (command, name, index) in enumerate(cases(rng, args.rounds)):
            folder = Path(root, str(number))
            shutil.copytree(whole, folder)
            os.chdir(folder)
            how, damage = list(damages(folder / name, rng))[index]
            damage()
            before = snapshot(folder)
            code, text, error = run(command)
            after = {k: v for k, v in snapshot(folder).items() if "__pycache__" not in k}
            wrong = judged(code, text, error, before, after)
            counts["bad" if wrong else f"exit {code}"] += 1
            if wrong:
                row = {"command": " ".join(command), "input": name, "damage": how, "wrong": wrong}
                bad.append(row)
                print(json.dumps(row), flush=True)
            sys.modules.pop("module", None)
            os.chdir(root)
            shutil.rmtree(folder)
    summary = {"cases": sum(counts.values()), **dict(sorted(counts.items()))}
    print(summary)
    save_results("garbage", {"summary": summary, "others": bad}, args)
    sys.exit(bool(bad))


if __name__ == "__main__":
    benchmark()
