"""Pruned networks of keras.applications in the runtimes they ship to.

    python benchmarks/exports.py --data-dir DIR [--models NAME ...] [--steps 200] [--out FOLDER]

Each of eight families is trained for some steps on CIFAR-10 at 64x64 pixels (75 for Inception),
loses 50 % of its FLOPs by NISP, and is trained on for as many steps. Then it is exported as
SavedModel and as TFLite in float32, float16 and int8, and each file is run on test images in a
process that cannot import keras_nisp (SavedModels: nor Keras; TFLite: nor TensorFlow), beside the
outputs of the Keras model. The accuracies are those of some hundred steps from scratch: they are
there to show that outputs mean something, and what int8 does to them.

An interrupted run resumes where it was; `--out` keeps the files.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import keras
import numpy as np
import tensorflow as tf
from recipes import load
from results import FOLDER, save_results

import keras_nisp as kn

FAMILIES = (
    "ResNet50",
    "MobileNetV2",
    "MobileNetV3Small",
    "DenseNet121",
    "EfficientNetB0",
    "InceptionV3",
    "NASNetMobile",
    "ConvNeXtTiny",
)
SIZES = {"InceptionV3": 75}
BATCH = 32
KINDS = {"float32": None, "float16": "float16", "int8": "int8"}

RUN_SAVED_MODEL = """
import sys, json
for name in ("keras_nisp", "keras", "tf_keras"):
    sys.modules[name] = None
import numpy as np, tensorflow as tf
data = np.load(sys.argv[2])
run = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
got = np.concatenate([run(image=tf.constant(x))["output_0"] for x in np.split(data["x"], 10)])
"""
RUN_TFLITE = """
import sys, json
for name in ("keras_nisp", "keras", "tf_keras", "tensorflow"):
    sys.modules[name] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter
data = np.load(sys.argv[2])
run = Interpreter(sys.argv[1], num_threads=2).get_signature_runner("serving_default")
(put,), (take,) = run.get_input_details().values(), run.get_output_details().values()
def one(x):
    if put["dtype"] == np.int8:
        scale, zero = put["quantization"]
        x = np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)
    y = run(image=x[None])["output_0"]
    if take["dtype"] == np.int8:
        scale, zero = take["quantization"]
        y = (y.astype(np.float32) - zero) * scale
    return y
got = np.concatenate([one(x) for x in data["x"]])
"""
REPORT = """
want = data["want"]
print(json.dumps({
    "difference": float(np.abs(got - want).max()),
    "scale": float(np.abs(want).max()),
    "top1_agreement": float((got.argmax(-1) == want.argmax(-1)).mean()),
    "accuracy": float((got.argmax(-1) == data["y"]).mean()),
}))
"""


def images(data, size, count, seed=0):
    """Some images at another size, and their labels."""
    x, y = data
    chosen = np.random.default_rng(seed).choice(len(x), count, replace=False)
    return tf.image.resize(x[chosen], (size, size)).numpy(), y[chosen]


def train(model, data, size, steps, rate):
    x, y = data
    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0).repeat()
    batches = batches.batch(BATCH).map(lambda a, b: (tf.image.resize(a, (size, size)), b))
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, jit_compile=False)
    model.fit(batches.take(steps).prefetch(2), verbose=0)


def build(name, size):
    """A network for pixels in [0, 1], as each function of keras.applications wants them."""
    arguments = {"weights": None, "classes": 10, "classifier_activation": None}
    image = keras.Input((size, size, 3), name="image")
    network = getattr(keras.applications, name)(input_shape=(size, size, 3), **arguments)
    rescales = any(isinstance(x, keras.layers.Rescaling) for x in network.layers)
    x = keras.layers.Rescaling(255.0)(image) if rescales else image
    return keras.Model(image, network(x), name=name)


def check(code, path, samples):
    """What a fresh process finds."""
    command = [sys.executable, "-c", code + REPORT, str(path), str(samples)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(name, data, args):
    size = SIZES.get(name, 64)
    keras.utils.set_random_seed(args.seed)
    model = build(name, size)
    train(model, data[0], size, args.steps, 1e-3)
    calibration, _ = images(data[0], size, 1000)
    plan = kn.plan_pruning(model, kn.NISP(calibration), flops_reduction=0.5)
    small = kn.rebuild(model, plan)
    verified = kn.verify(small, model, plan, calibration[:8])
    verified.check()
    kn.recalibrate(small, calibration, model, plan, compensate="mean")
    train(small, data[0], size, args.steps, 5e-4)
    kn.recalibrate(small, calibration)  # moving averages take longer than these few steps

    x, y = images(data[1], size, 500)
    folder = args.out / name
    folder.mkdir(parents=True, exist_ok=True)
    samples = folder / "samples.npz"
    want = small.predict(x, batch_size=50, verbose=0)
    np.savez(samples, x=x, y=y, want=want)
    row = {
        "model": name,
        "pixels": size,
        "flops_reduction": plan.flops_reduction,
        "params_reduction": plan.params_reduction,
        "verified": verified.relative,
        "accuracy": float((want.argmax(-1) == y).mean()),
        "parameters": small.count_params(),
    }
    exported = kn.export_serving(small, folder / "serving", check_data=x[:64])
    row["SavedModel"] = {"bytes": exported.bytes, **check(RUN_SAVED_MODEL, exported.path, samples)}
    for kind, quantization in KINDS.items():
        try:
            path = folder / f"{kind}.tflite"
            exported = kn.export_tflite(small, path, quantization, calibration)
            row[kind] = {"bytes": exported.bytes, **check(RUN_TFLITE, path, samples)}
        except kn.ExportError as error:
            row[kind] = {"error": str(error)}
    return row


def known_rows(args):
    """Rows of an earlier run with the same settings."""
    path = FOLDER / "exports.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    same = record.get("arguments", {}).get("steps") == args.steps
    return {row["model"]: row for row in record.get("rows", ())} if same else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="TFDS data directory; default: download")
    parser.add_argument("--models", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--steps", type=int, default=200, help="of training, before and after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/exports"))
    args = parser.parse_args()
    data = load("cifar10", args.data_dir)
    rows = known_rows(args)
    for name in args.models:
        if name not in rows:
            rows[name] = measure(name, data, args)
            print(json.dumps(rows[name]), flush=True)
            save_results("exports", {"rows": list(rows.values())}, args)
            keras.backend.clear_session()


if __name__ == "__main__":
    main()
