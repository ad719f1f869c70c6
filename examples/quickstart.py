"""Makes a small residual CNN half as costly, step by step, down to an int8 file for a phone.

    python examples/quickstart.py                       scikit-learn's digits, no download
    python examples/quickstart.py --data-dir DIR        Fashion-MNIST, from a folder of TFDS

Trains the network, prunes it with NISP, repairs it without labels, fine-tunes it and writes TFLite
files. One table shows the size, FLOPs, latency and test accuracy after each step.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from recipes import DATASETS, accuracy, compile_for, load, residual_cnn, tflite_accuracy
from rich.console import Console
from rich.table import Table

import keras_nisp as kn

EPOCHS = {"digits": (40, 10), "mnist": (2, 1), "fashion_mnist": (2, 1), "cifar10": (12, 6)}


def train(model, data, epochs, batch_size, rate=0.05):
    x, y = data
    compile_for(model, epochs * (len(x) // batch_size), rate)
    model.fit(x, y, batch_size, epochs, verbose=2)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=DATASETS, help="default: fashion_mnist or digits")
    parser.add_argument("--data-dir", help="TFDS data directory")
    parser.add_argument("--flops-reduction", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for results")
    args = parser.parse_args()
    args.dataset = args.dataset or ("fashion_mnist" if args.data_dir else "digits")
    return args


def stages(args, training, test):
    """The network after each step, with its accuracy: the original first."""
    training_epochs, tuning_epochs = EPOCHS[args.dataset]
    original = residual_cnn(training[0].shape[1:])
    train(original, training, training_epochs, args.batch_size)
    right = {"original": accuracy(original, *test)}
    yield "original", original, right["original"]

    calibration = training[0][:1000]  # images, no labels
    budget = kn.Budget(flops_reduction=args.flops_reduction)
    plan = kn.plan_pruning(original, kn.NISP(), budget=budget, calibration=calibration)
    plan.save(args.out / "plan.json")
    pruned = kn.rebuild(original, plan)
    right["pruned"] = accuracy(pruned, *test)
    yield "pruned", pruned, right["pruned"]

    # All of this in one call: plan, rebuild, verify, repair.
    small = kn.prune(original, kn.NISP(), budget=budget, calibration=calibration)
    right["repaired"] = accuracy(small, *test)
    yield "repaired, no labels", small, right["repaired"]

    train(small, training, tuning_epochs, args.batch_size, rate=0.02)
    kn.recalibrate(small, calibration)  # moving averages of BatchNorm lag behind a few epochs
    path = args.out / "small.keras"
    small.save(path)
    keras.models.load_model(path, compile=False).save(path)  # without the optimizer's slots
    right["fine-tuned"] = accuracy(small, *test)
    told = ", ".join(f"{name} {value:.4f}" for name, value in right.items())
    outcome = {"accuracy, test": told}
    outcome["surgery"] = kn.verify(pruned, original, plan, calibration)
    plan.report(args.out / "report.html", "python examples/quickstart.py", outcome)
    ending = "epoch" if tuning_epochs == 1 else "epochs"
    yield f"fine-tuned, {tuning_epochs} {ending}", small, right["fine-tuned"]


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    tf.get_logger().setLevel("ERROR")  # each model is traced: it would count them
    share = {"test_share": 0.5} if args.dataset == "digits" else {}
    training, test = load(args.dataset, args.data_dir, **share)
    rows = list(stages(args, training, test))

    models = [model for _, model, _ in rows]
    original, small = models[0], models[-1]
    large_file, small_file, int8_file = (
        args.out / name for name in ("original.tflite", "small.tflite", "small_int8.tflite")
    )
    kn.export_tflite(original, large_file, verbose=0)
    kn.export_tflite(small, small_file, verbose=0)
    kn.export_tflite(small, int8_file, "int8", calibration=training[0], verbose=0)
    rows.append(("int8", small, tflite_accuracy(int8_file.read_bytes(), *test)))
    files = [large_file, *[small_file] * (len(models) - 1), int8_file]  # one structure, one size

    table = Table("", *("KB", "FLOPs", "latency", "accuracy"))
    for column in table.columns[1:]:
        column.justify = "right"
    faster = {file: kn.benchmark(large_file, file).speedup for file in (small_file, int8_file)}
    for (name, model, right), file in zip(rows, files, strict=True):
        latency = f"{100 / faster[file]:.0f} %" if file in faster else "100 %"
        size, flops = file.stat().st_size / 1000, kn.profile(model).total.flops
        table.add_row(name, f"{size:,.0f}", f"{flops:,}", latency, f"{right:.4f}")
    error = (rows[-1][2] * (1 - rows[-1][2]) / len(test[0])) ** 0.5
    console = Console()
    console.print(table)
    console.print(
        f"Size and latency: TFLite files, one image, one thread. Accuracy: {len(test[0]):,} test "
        f"images of {args.dataset}, standard error {error:.4f}.\n"
        f"{args.out / 'small.keras'}: a plain Keras model, which needs no keras_nisp. "
        f"{args.out / 'report.html'}: what was removed, and why."
    )


if __name__ == "__main__":
    main()
