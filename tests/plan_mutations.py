"""Plan files with damages, and what becomes of them: the right model, or an error that says so."""

import contextlib
import json
import random
from pathlib import Path

import numpy as np
from plan_subjects import Subject

import keras_nisp as kn
from keras_nisp.centripetal.cluster_mean import ClusteredVariables

DEEP = "[" * 100_000 + "]" * 100_000
JUNK = [
    *(None, True, False, "", "x", "0", "\ud800", "[/b]", "%s{}", -1, 0, 1, 2, 7, 1.0, 0.5, -0.0),
    *(2**31, 2**63, 10**30, -(10**400), 1e308, -1e308, float("nan"), float("inf"), 1e-320),
    *([], {}, [[]], [None], [0], {"": 0}, {"layer": "x"}, [[0, [0, 0]]], list(range(100))),
]


# Mutations ---------------------------------------------------------------------------


def nodes(data, path=()):
    """The paths of all parts of plain data."""
    yield path
    rows = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, part in rows:
        yield from nodes(part, (*path, key))


def at(data, path):
    for key in path:
        data = data[key]
    return data


def mutate_data(data, others, rng: random.Random):
    """One change of plain data, in place."""
    paths = [path for path in nodes(data) if path]
    # Each part of the file gets its turn, however many entries it has.
    part = rng.choice(list(data))
    path = rng.choice([p for p in paths if p[0] == part])
    holder, key = at(data, path[:-1]), path[-1]
    other = rng.choice([p for p in paths if len(p) == len(path)])
    kinds = [
        "junk",
        "delete",
        "copy",
        "foreign",
        "swap",
        "step",
        "step",
        "extra",
        "rename",
        "order",
    ]
    kind = rng.choice(kinds)
    value = holder[key]
    if kind == "junk":
        holder[key] = rng.choice(JUNK)
    elif kind == "delete":
        del holder[key]
    elif kind == "copy":  # of another place of the same file
        holder[key] = json.loads(json.dumps(at(data, other)))
    elif kind == "foreign":  # of the same place of another file
        with contextlib.suppress(KeyError, IndexError, TypeError):
            holder[key] = json.loads(json.dumps(at(rng.choice(others), path)))
    elif kind == "swap":
        if other[: len(path)] != path and path[: len(other)] != other:
            target = at(data, other[:-1])
            holder[key], target[other[-1]] = target[other[-1]], value
    elif kind == "step" and isinstance(value, (int, float)):
        holder[key] = value + rng.choice([-2, -1, 1, 2])
    elif kind == "step" and isinstance(value, list) and value:
        value.insert(rng.randrange(len(value) + 1), rng.choice(value))
    elif kind == "extra" and isinstance(value, dict):
        value[rng.choice(["x", "scores", "clusters", "version"])] = rng.choice(JUNK)
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice([str(key) + "s", "layer", "removed", "groups"])] = holder.pop(key)
    elif kind == "order" and isinstance(value, list):
        rng.shuffle(value)
    return kind


def mutate_text(text: str, rng: random.Random) -> str:
    """A change that only text can have."""
    kind = rng.choice(["double", "deep", "long", "constant"])
    if kind == "double":
        key = rng.choice(['"channels": ', '"removed": ', '"model": ', '"version": '])
        return text.replace(key, f"{key}0, {key}", 1)
    if kind == "deep":
        return text.replace("[]", DEEP, 1) if "[]" in text else DEEP
    if kind == "long":
        return text.replace('"channels": ', f'"channels": {"9" * 5000}', 1)
    return text.replace('"flops": ', f'"flops": {rng.choice(["NaN", "-Infinity", "1e999"])} ', 1)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    changed, kind = bytearray(data), rng.choice(["flip", "flip", "cut", "noise", "drop", "twice"])
    place = rng.randrange(len(data))
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "noise":
        changed[place : place + 8] = rng.randbytes(rng.choice([1, 4, 16]))
    elif kind == "drop":
        del changed[place : place + rng.choice([1, 2, 16, 256])]
    else:
        changed += data[: rng.choice([1, 100, len(data)])]
    return bytes(changed)


def mutant(seed: int, files: list[dict]) -> tuple[int, str, bytes]:
    """The index of a file, what was done to it, and what came out."""
    rng = random.Random(seed)
    index = rng.randrange(len(files))
    whole = json.dumps(files[index]).encode()
    kind, changed = _changed(whole, files, rng)
    while changed == whole:
        kind, changed = _changed(whole, files, rng)
    return index, kind, changed


def _changed(whole: bytes, files: list[dict], rng: random.Random) -> tuple[str, bytes]:
    if rng.random() < 0.25:
        return "bytes", mutate_bytes(whole, rng)
    data = json.loads(whole)
    kinds = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if data:
            kinds.append(mutate_data(data, files, rng))
            data = json.loads(json.dumps(data))  # no part is there twice, as one object
    text = json.dumps(data)
    if rng.random() < 0.05:
        return "text", mutate_text(text, rng).encode()
    return kinds[0], text.encode()


# What a plan is for --------------------------------------------------------------------


def decisions(plan: kn.Plan):
    """All that the model depends on."""
    rows = [(row.channels, row.removed, set(row.clusters)) for row in plan.creators]
    clusters = [(row.shape, row.clusters) for row in plan.variables]
    return rows, clusters, plan.fingerprint, plan.input_shapes, plan.whole_groups


def read_aloud(plan: kn.Plan, folder: Path) -> None:
    """Everything that needs no model."""
    str(plan)
    plan.summary()
    plan.report(folder / "report.html")
    for name in {row.layer for row in (*plan.creators, *plan.layers)}:
        plan.explain(name)
    if plan.merges:
        plan.check(steps=100, learning_rate=0.1, strength=0.1)
        kn.CentripetalSGD(0.1, plan=plan, strength=0.1)
    assert kn.Plan.from_dict(plan.to_dict()) == plan


def used(plan: kn.Plan, subject: Subject) -> str:
    """Rebuilds, verifies and repairs; says whether the model is right."""
    model = subject.model
    small = kn.rebuild(model, plan, force=True, verbose=0)
    if plan.merges:
        ClusteredVariables(plan, model.trainable_variables)
        kn.CentripetalSGD(0.1, plan=plan, strength=0.1).build(model.trainable_variables)
    right = kn.verify(small, model, plan).ok
    right &= small.count_params() == plan.after.parameters
    if decisions(plan) == decisions(subject.plan):
        pairs = zip(small.get_weights(), subject.weights, strict=True)
        right &= all(np.array_equal(a, b) for a, b in pairs)
    kn.recalibrate(small, subject.samples, model, plan, compensate="mean")
    return "right" if right else "WRONG"


def outcome(data: bytes, subject: Subject, folder: Path, whole: bool) -> str:
    """What becomes of one file."""
    path = folder / "plan.json"
    path.write_bytes(data)
    try:
        plan = kn.Plan.load(path)
        read_aloud(plan, folder)
        if whole or decisions(plan) != decisions(subject.plan):
            return used(plan, subject)
        plan.unit_map(subject.channel_map)
        return "right"
    except kn.PlanFileError:
        return "PlanFileError"
    except kn.PlanMismatchError:
        return "PlanMismatchError"
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return f"raw {type(error).__name__}: {lines[0][:200]}"
