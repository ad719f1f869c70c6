"""The oracle over whole model zoos: rebuilt model against zeroed original.

    python benchmarks/zoo.py [--zoo applications|keras-hub|FILE.keras] [--models NAME] [--seed 0]

Each network gets random weights (gamma and beta of BatchNorm too), BatchNorm statistics of
random images (random ones would let a net of 1,000 layers amplify rounding errors to any
size), an odd input size, and a plan that removes a random 30 to 60 % of the channels of
every coupled group at random. The largest difference of the outputs over their scale must
be at most 1e-5. Backbones of keras-hub are converted by `as_functional` and get a
classifier; a model from a file keeps its weights. Rows that are there are not computed again.
"""

import argparse
import functools
import inspect
import re
import sys
import time
import warnings
from pathlib import Path

import keras
from results import Rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from nets import random_plan, randomise

import keras_nisp as kn
from keras_nisp.data.random_samples import random_samples

TOLERANCE = 1e-5


def names() -> list[str]:
    """The functions of keras.applications."""
    members = inspect.getmembers(keras.applications, inspect.isfunction)
    return [name for name, _ in members]


def backbone_names() -> list[str]:
    """The image backbones of keras-hub."""
    from keras_hub_backbones import BACKBONES

    return list(BACKBONES)


ZOOS = {"applications": names, "keras-hub": backbone_names}


def build(name: str):
    """A network with ten logits at the smallest odd size that it takes."""
    function = getattr(keras.applications, name)
    for size in (65, 97):
        try:
            return function(
                weights=None,
                input_shape=(size, size, 3),
                classes=10,
                classifier_activation=None,
            )
        except ValueError as error:
            last = error
    raise last


def build_backbone(name: str):
    """A backbone of keras-hub, converted, with ten logits on its last output."""
    from keras_hub_backbones import BACKBONES

    declare_layers()
    backbone = kn.as_functional(BACKBONES[name]())
    x = keras.tree.flatten(backbone.outputs)[-1]
    if len(x.shape) > 2:
        x = keras.layers.Reshape((-1, x.shape[-1]))(x)
        x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(backbone.inputs, keras.layers.Dense(10)(x), name=name)


@functools.cache
def declare_layers() -> None:
    """What keras_nisp must be told of custom layers of keras-hub."""
    from keras_hub.src.models.hgnetv2.hgnetv2_layers import HGNetV2LearnableAffineBlock
    from keras_hub.src.models.mit import mit_layers
    from keras_hub.src.models.swin_transformer import swin_transformer_layers

    # One scale and one offset for all channels; a drop of whole branches in training.
    drops = mit_layers.DropPath, swin_transformer_layers.DropPath
    kn.register_rule(HGNetV2LearnableAffineBlock, *drops)(kn.PassThrough)
    # Its config holds what its constructor does not take, and a layer in place of a rate.
    attention = swin_transformer_layers.WindowAttention
    keys = ("name", "dtype", "dim", "num_heads", "head_dim", "window_size", "qkv_bias")
    given = attention.get_config
    attention.get_config = lambda layer: {k: given(layer)[k] for k in keys}


def network(zoo: str, name: str, seed: int):
    """A network of a zoo, with random weights, and statistics of random images in the range that it
    takes: `verify` draws such images, and others would be amplified beyond all rounding."""
    keras.utils.set_random_seed(seed)
    if zoo not in ZOOS:
        return keras.saving.load_model(zoo)
    model = randomise((build if zoo == "applications" else build_backbone)(name), seed)
    shapes = [tensor.shape[1:] for tensor in model.inputs]
    kn.recalibrate(model, random_samples(model, shapes, 32))
    return model


def check(name: str, seed: int, zoo: str = "applications") -> dict:
    """Prunes one network and compares it with its oracle."""
    model = network(zoo, name, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", kn.UnknownLayerWarning)
        started = time.perf_counter()
        plan = random_plan(model, seed)
        planned = time.perf_counter()
        small = kn.rebuild(model, plan)
        rebuilt = time.perf_counter()
        result = kn.verify(small, model, plan, tolerance=TOLERANCE)
    warned = [str(w.message) for w in caught if issubclass(w.category, kn.UnknownLayerWarning)]
    kinds = {kind for message in warned for kind in re.findall(r"' \((\w+)\)", message)}
    return {
        "size": model.inputs[0].shape[1],
        "difference": result.relative,
        "ok": result.ok,
        "mixing_layers": len(plan.inexact),
        "parameters": [plan.before.parameters, plan.after.parameters],
        "flops": [plan.before.flops, plan.after.flops],
        "groups": len(plan.groups),
        "plan_seconds": planned - started,
        "rebuild_seconds": rebuilt - planned,
        "without_rule": sorted(kinds),
    }


def reported(name: str, args: argparse.Namespace) -> dict:
    """What `check` finds, or its error."""
    try:
        row = check(name, args.seed, args.zoo)
    except (ValueError, TypeError) as error:  # listed with its reason
        row = {"error": str(error).splitlines()[0]}
    print(f"{name}: {row.get('error') or format(row['difference'], '.1e')}", flush=True)
    keras.backend.clear_session()
    return row


def show(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Rebuilt against oracle, tolerance {TOLERANCE:g}")
    titles = ("model", "input", "difference", "exact", "parameters", "FLOPs", "groups", "s")
    for title in titles:
        table.add_column(title, justify="left" if title in ("model", "exact") else "right")
    for row in rows:
        table.add_row(
            row["model"],
            str(row["size"]),
            f"{row['difference']:.1e}" + ("" if row["ok"] else " FAILED"),
            "yes" if not row["mixing_layers"] else f"but for {row['mixing_layers']} layers",
            *(f"{before:,} -> {after:,}" for before, after in (row["parameters"], row["flops"])),
            str(row["groups"]),
            f"{row['plan_seconds'] + row['rebuild_seconds']:.1f}",
        )
    Console(width=140).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", default="applications", metavar="applications|keras-hub|FILE")
    parser.add_argument("--models", nargs="+", metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    every = ZOOS.get(args.zoo, lambda: [Path(args.zoo).stem])()
    if args.models is None and args.zoo in ZOOS:
        kept = Rows("zoo" if args.zoo == "applications" else "zoo_keras_hub", args)
        rows = [
            kept.once({"model": name, "seed": args.seed}, reported, name, args) for name in every
        ]
    else:
        rows = [{"model": name, **reported(name, args)} for name in args.models or every]
    checked = [row for row in rows if "error" not in row]
    show(checked)
    exact = sum(row["ok"] for row in checked)
    print(f"{exact} of {len(rows)} networks within {TOLERANCE:g} of their oracle")
    sys.exit(exact < len(rows))


if __name__ == "__main__":
    main()
