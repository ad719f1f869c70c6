"""Merging collapsed clusters in every layer at once: is it free of loss?

    python benchmarks/merges.py [--data-dir DIR] [--networks resnet20 ...]

Each network gets random weights and BatchNormalization statistics. k-means puts the channels of
every coupled group into 5/8 as many clusters; all members get the mean of their cluster, as at
the end of C-SGD; the merged network is compared with the unmerged one on test images of CIFAR-10
(or on noise, without --data-dir).
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import models
from nets import randomise
from recipes import load
from results import save_results

import keras_nisp as kn
from keras_nisp.centripetal.merging import level

NETWORKS = {
    "resnet20": lambda: models.cifar_resnet(20),
    "resnet56": lambda: models.cifar_resnet(56),
    "resnet110": lambda: models.cifar_resnet(110),
    "densenet40": models.densenet,
    "vgg16": models.vgg16,
    "mobilenet": lambda: models.mobilenet(input_shape=(32, 32, 3), classes=10),
    "inception": models.inception,
    "squeeze_excite": models.squeeze_excite,
}


def measure(name, images, labels):
    model = randomise(NETWORKS[name]())
    plan = kn.plan_merging(model, ratio=3 / 8)
    level(model, plan)
    small = kn.rebuild(model, plan)
    before, after = (net.predict(images, batch_size=100, verbose=0) for net in (model, small))
    row = {
        "network": name,
        "layers": len(plan.creators),
        "flops_removed": plan.flops_reduction,
        "parameters_removed": plan.params_reduction,
        "difference": float(np.abs(before - after).max() / np.abs(before).max()),
        "same_prediction": float((before.argmax(-1) == after.argmax(-1)).mean()),
    }
    if labels is not None:
        for key, outputs in (("unmerged", before), ("merged", after)):
            row[f"accuracy_{key}"] = float((outputs.argmax(-1) == labels).mean())
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    if args.data_dir:
        _, (images, labels) = load("cifar10", args.data_dir)
        images, labels = (images[: args.images] - 0.45) * 4, labels[: args.images]
    else:
        images, labels = np.random.default_rng(0).normal(size=(args.images, 32, 32, 3)), None
    rows = []
    for name in args.networks:
        rows.append(measure(name, images.astype("float32"), labels))
        print(rows[-1], flush=True)
    save_results("merges", {"rows": rows}, args)


if __name__ == "__main__":
    main()
