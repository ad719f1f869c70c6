"""Prunes a network, trains it on in emulated int8 by TFMOT, and writes an int8 TFLite file.

    python examples/quantization_aware.py                scikit-learn's digits, no download
    python examples/quantization_aware.py --dataset fashion_mnist --data-dir DIR

Trains a small residual CNN, prunes it to half its FLOPs with NISP, fine-tunes it, converts it to
tf_keras and continues with TFMOT's quantization-aware training. Prints accuracy and file size of
each stage, measured in the TFLite interpreter, and those of post-training int8 beside them.
"""

import argparse
import contextlib
import io
import os
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from recipes import DATASETS, accuracy, compile_for, load, residual_cnn, tflite_accuracy
from rich.console import Console
from rich.table import Table

import keras_nisp as kn
from keras_nisp.export.tflite import convert

# Of training, fine-tuning, and quantization-aware training. TFMOT's ranges of activations begin
# at -6..6 and move by a thousandth of the way at each step: the last takes its time.
EPOCHS = {
    "digits": (30, 10, 40),
    "mnist": (4, 2, 2),
    "fashion_mnist": (4, 2, 2),
    "cifar10": (12, 6, 4),
}


def train_quantized(small, data, args, epochs):
    """The pruned model after quantization-aware training, which happens in tf_keras."""
    import tf_keras

    (x, y), _ = data
    model = kn.quantization_aware(small)
    steps = epochs * (len(x) // args.batch_size)
    rate = tf_keras.optimizers.schedules.CosineDecay(0.005, steps)
    model.compile(
        tf_keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, args.batch_size, epochs, verbose=0)
    return model


def convert_trained(model) -> bytes:
    """Content of the int8 TFLite file of a model that was trained quantization-aware."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")
        return converter.convert()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--data-dir", help="TFDS data directory; default: download")
    parser.add_argument("--flops-reduction", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    keras.utils.set_random_seed(args.seed)

    data = load(args.dataset, args.data_dir)
    (x, y), test = data
    steps = len(x) // args.batch_size
    epochs, fine_tuning, aware = EPOCHS[args.dataset]

    model = compile_for(residual_cnn(x.shape[1:]), epochs * steps)
    model.fit(x, y, args.batch_size, epochs, verbose=0)

    calibration = x[:2000]
    small = kn.prune(
        model,
        kn.NISP(calibration),
        flops_reduction=args.flops_reduction,
        calibration=calibration,
    )
    compile_for(small, fine_tuning * steps, rate=0.02)
    small.fit(x, y, args.batch_size, fine_tuning, verbose=0)
    trained = train_quantized(small, data, args, aware)

    table = Table(title="Accuracy on the test set")
    table.add_column("model")
    for title in ("in Keras", "as TFLite", "bytes"):
        table.add_column(title, justify="right")
    representative = x[np.random.default_rng(args.seed).choice(len(x), 200, replace=False)]
    rows = {
        "original, float32": (model, convert(model)),
        "pruned and fine-tuned, float32": (small, convert(small)),
        "  int8 after training": (small, convert(small, "int8", representative)),
        "  int8, trained quantization-aware": (trained, convert_trained(trained)),
    }
    for name, (net, content) in rows.items():
        values = (accuracy(net, *test), tflite_accuracy(content, *test))
        table.add_row(name, *(f"{value:.4f}" for value in values), f"{len(content):,}")
    console.print(table)

    path = args.out / "quantization_aware.tflite"
    path.write_bytes(content)
    print(f"{path}: int8 inside, float32 at its ends; needs neither TFMOT nor keras_nisp")


if __name__ == "__main__":
    main()
