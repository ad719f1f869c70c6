"""What users do with a model, from the plan to the file, for random graphs."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from nets import random_plan
from random_parts import OPEN

import keras_nisp as kn
from keras_nisp.data.random_samples import random_samples
from keras_nisp.keras_graph import keras_models

REFUSALS = ("has no channels that", "Expected a reduction of")
# NISP: no final responses, or no channels before them.
NOT_BEFORE = ("no final response layer to rank", "Received NaN for all", "for BNScale")


class Wrong(AssertionError):  # noqa: N818
    """A step of the chain gives something else than it must."""


def shapes_of(model) -> list[tuple]:
    """Shapes of one sample for each input."""
    return [tuple(size or OPEN for size in tensor.shape[1:]) for tensor in model.inputs]


def samples_for(model, count: int = 2, seed: int = 0):
    """Random samples of a model's inputs, in its own structure."""
    inputs = random_samples(model, shapes_of(model), count, seed).inputs
    return keras_models.structured_inputs(model, inputs)


def outputs(model, inputs=None) -> np.ndarray:
    """All outputs for some samples, in one vector."""
    inputs = samples_for(model) if inputs is None else inputs
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    values = keras.tree.flatten(model(inputs, training=False))
    return np.concatenate([np.ravel(value) for value in values])


def make_plan(model, seed: int, kind: str) -> kn.Plan | None:
    """A random plan, if there is anything to remove or to merge."""
    ratio, shapes = np.random.default_rng(seed).uniform(0.1, 0.9), shapes_of(model)
    try:
        if kind == "removal":
            return random_plan(model, seed, low=0.1, high=0.9, input_shape=shapes)
        return kn.plan_merging(model, ratio=ratio, clustering="even", input_shape=shapes)
    except ValueError as error:
        if not any(words in str(error) for words in REFUSALS):
            raise
        return None


def rebuilt(model, plan) -> keras.Model:
    """The smaller model, compared with its oracle and with what the plan says of it."""
    small = kn.rebuild(model, plan, force=True, verbose=0)
    result = kn.verify(small, model, plan)
    if not result.ok:
        raise Wrong(f"verify: {result}")
    if small.output_shape != model.output_shape:
        raise Wrong(f"output shape {small.output_shape} instead of {model.output_shape}")
    counted = (model.count_params(), small.count_params())
    if counted != (plan.before.parameters, plan.after.parameters):
        raise Wrong(f"parameters {counted}, planned {plan.before}, {plan.after}")
    if kn.profile(small, shapes_of(small)).total != plan.after:
        raise Wrong(f"costs {kn.profile(small, shapes_of(small)).total}, planned {plan.after}")
    return small


def plan_by_nisp(model, data) -> kn.Plan | None:
    """A plan by scores on data, if there is anything that NISP scores."""
    try:
        return kn.plan_pruning(model, kn.NISP(data), ratio=0.3, input_shape=shapes_of(model))
    except ValueError as error:
        if not any(words in str(error) for words in NOT_BEFORE):
            raise
        return None


def repair(model, plan) -> None:
    """Scores on data, and both ways of compensation."""
    data = samples_for(model, 16, seed=1)
    scored = plan_by_nisp(model, data)
    before = [np.copy(weight) for weight in model.get_weights()]
    for compensate in ("linear", "mean"):
        small = kn.rebuild(model, plan, verbose=0)
        kn.recalibrate(small, data, model, plan, compensate=compensate)
        if not np.isfinite(outputs(small)).all():
            raise Wrong(f"compensate={compensate!r} gives values that are not finite")
    whole = None if scored is None else kn.rebuild(model, scored, verbose=0)
    if whole is not None and not kn.verify(whole, model, scored).ok:
        raise Wrong("the plan by NISP is not verified")
    after = model.get_weights()
    if not all(np.array_equal(x, y, equal_nan=True) for x, y in zip(before, after, strict=True)):
        raise Wrong("the original was changed")


def masked_training(model, seed: int) -> None:
    """Trains a model by `NISPPruner` for a few steps: the small one gives what it gave masked.

    Masks are taken off at the end of training. Where layers cannot leave out what is removed, the
    pruner says so, and nothing is promised.
    """
    data = keras.tree.map_structure(tf.convert_to_tensor, samples_for(model, 8, seed=2))
    targets = keras.tree.map_structure(np.asarray, model(data, training=False))
    model.compile("sgd", "mse", jit_compile=False)
    masked = []
    at_end = keras.callbacks.LambdaCallback(on_train_end=lambda _: masked.append(outputs(model)))
    pruner = kn.NISPPruner(importance=kn.Random(seed), ratio=0.4, verbose=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(data, targets, batch_size=2, verbose=0, callbacks=[at_end, pruner])
    if any("could not leave out what is removed" in str(warning.message) for warning in said):
        return
    (expected,), received = masked, outputs(pruner.pruned_model)
    scale = np.abs(expected).max() or 1.0
    if not np.allclose(expected, received, atol=1e-4 * scale):
        worst = np.abs(expected - received).max() / scale
        raise Wrong(f"pruned_model is off by {worst:.1e} from the masked model")


def is_loadable(model) -> bool:
    """Whether Keras can load a model that it has saved, by its config."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
        except (NotImplementedError, TypeError, ValueError):
            return False
    return True


def saved(model, small, path: Path) -> bool:
    """Saves the smaller model and loads it again, if that can be done with the original."""
    if not is_loadable(model):
        return False
    small.save(path)
    difference = np.abs(outputs(keras.models.load_model(path)) - outputs(small)).max()
    if not difference <= 1e-5 * max(np.abs(outputs(small)).max(), 1.0):
        raise Wrong(f"loaded from its file, the model is off by {difference:.1e}")
    np.save(path.with_suffix(".npy"), outputs(small))
    return True


def exported(small, path: Path) -> str | None:
    """A TFLite file, which the export compares with the model; else why it was refused."""
    try:
        kn.export_tflite(small, path, check_data=samples_for(small, 4), verbose=0)
    except kn.ExportError as error:
        return str(error).splitlines()[0]
    return None


FRESH = """
import json, pathlib, sys
import keras, numpy as np
import random_layers
from random_chain import outputs
wrong = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    expected = np.load(path.with_suffix(".npy"))
    try:
        difference = float(np.abs(outputs(keras.models.load_model(path)) - expected).max())
    except Exception as error:
        wrong[path.name] = repr(error)[:500]
        continue
    if not difference <= 1e-5 * max(float(np.abs(expected).max()), 1.0):
        wrong[path.name] = f"off by {difference:.1e}"
print(json.dumps(wrong))
"""


def loaded_elsewhere(folder: Path) -> dict[str, str]:
    """Loads all models of a folder in a fresh process; what is wrong there, by file name."""
    command = [sys.executable, "-c", FRESH, str(folder)]
    place = Path(__file__).parent
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise Wrong(f"a fresh process failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])
