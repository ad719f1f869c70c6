"""Accuracy of the CIFAR-10 ResNets with published weights, in both forms of their shortcuts.

    python benchmarks/trained_weights.py --data-dir DIR --weights-dir DIR

The weights are those of the PyTorch implementation by Y. Idelbayev, whose shortcuts have no
parameters. "projection" computes the same by 1x1 convolutions. `--data-dir` holds CIFAR-10 for
TensorFlow Datasets; a copy that was compressed again gives less than the published accuracy.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import models
from recipes import load
from results import save_results

import keras_nisp as kn

# Accuracies that the implementation states for its weights, on the original images.
PUBLISHED = {"resnet20": 0.917, "resnet56": 0.934}


def measure(path, shortcut, images, labels):
    model = models.load_cifar_resnet(path, shortcut=shortcut)
    cost = kn.profile(model).total
    outputs = model.predict(images, batch_size=500, verbose=0)
    row = {
        "network": model.name,
        "shortcut": shortcut,
        "parameters": cost.parameters,
        "flops": cost.flops,
        "accuracy": float((outputs.argmax(-1) == labels).mean()),
        "published": PUBLISHED[model.name],
    }
    return row, outputs


def measured(weights_dir, images, labels):
    """A row for each network and shortcut; how far the outputs of the two shortcuts are apart."""
    rows, differences = [], {}
    for network in PUBLISHED:
        path, outputs = Path(weights_dir) / f"{network}_cifar10.npz", {}
        for shortcut in ("padded", "projection"):
            row, outputs[shortcut] = measure(path, shortcut, images, labels)
            rows.append(row)
        padded, projection = outputs.values()
        difference = np.abs(padded - projection).max() / np.abs(padded).max()
        differences[network] = float(difference)
    return rows, differences


def show(rows, differences):
    table = Table(title="CIFAR-10, published weights")
    for title in ("network", "shortcut", "parameters", "FLOPs", "accuracy", "published"):
        table.add_column(title, justify="left" if title in ("network", "shortcut") else "right")
    for row in rows:
        table.add_row(
            row["network"],
            row["shortcut"],
            f"{row['parameters']:,}",
            f"{row['flops']:,}",
            f"{row['accuracy']:.4f}",
            f"{row['published']:.3f}",
        )
    Console().print(table)
    for network, difference in differences.items():
        print(f"{network}: outputs of both shortcuts differ by {difference:.1e} of their scale")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--weights-dir", required=True)
    args = parser.parse_args()
    _, (images, labels) = load("cifar10", args.data_dir)
    rows, differences = measured(args.weights_dir, models.preprocess_cifar(images), labels)
    show(rows, differences)
    save_results("trained_weights", {"rows": rows, "differences": differences}, args)


if __name__ == "__main__":
    main()
