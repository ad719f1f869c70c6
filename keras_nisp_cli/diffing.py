"""`keras-nisp diff`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from keras_nisp_cli.console import InputError
from keras_nisp_cli.loading import load_model, load_samples, optimizer_bytes
from keras_nisp_cli.options import (
    INPUT_SHAPE,
    PATH,
    SAMPLES_HELP,
    Command,
    data_options,
    model_options,
    parse_shape,
)


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.argument("other", type=PATH)
@click.option("--data", metavar="DATA", help=f"Compare outputs (and accuracy) on: {SAMPLES_HELP}")
@INPUT_SHAPE
@data_options
@model_options
@click.pass_obj
def diff(console, model: Path, other: Path, input_shape, **options):
    """What differs between MODEL and OTHER, layer by layer: widths, parameters, FLOPs."""
    shape = parse_shape(input_shape)
    first, second = (
        load_model(path, options["custom_objects"], options["unsafe"], console)
        for path in (model, other)
    )
    facts = [_facts(path, network, shape) for path, network in ((model, first), (other, second))]
    outputs, samples = None, load_samples(first, options, "data", console)
    if samples is not None:
        with console.stage("Comparing outputs"):
            outputs = _outputs(first, second, samples)
    layers = _layers(*facts)
    console.say(_text(facts, layers, outputs, console.wide))
    totals = [{k: v for k, v in f.items() if k != "layers"} for f in facts]
    console.result({"models": totals, "layers": layers, "outputs": outputs})


def _facts(path: Path, network, shape) -> dict:
    """Size, costs and widths of a model."""
    from keras_nisp.channels.cost import CostModel
    from keras_nisp.channels.tracing import trace

    channel_map = trace(network, shape)
    costs = CostModel(channel_map)
    layers = costs.layers(costs.everything)
    widths = {creator.layer: len(creator.units) for creator in channel_map.creators}
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "optimizer_bytes": optimizer_bytes(path),
        "parameters": sum(cost.parameters for cost in layers.values()),
        "flops": sum(cost.flops for cost in layers.values()),
        "activation_bytes": sum(cost.memory for cost in layers.values()),
        "cache_bytes": sum(cost.cache for cost in layers.values()),
        "layers": {
            name: (widths.get(name), cost.parameters, cost.flops)
            for name, cost in layers.items()
            if cost.parameters
        },
    }


def _layers(first: dict, second: dict) -> list[dict]:
    """Layers that are not alike in both, with what they have in each."""
    nothing = (None, 0, 0)
    rows = []
    for name in dict.fromkeys((*first["layers"], *second["layers"])):
        pair = [facts["layers"].get(name, nothing) for facts in (first, second)]
        if pair[0] != pair[1]:
            columns = zip(("channels", "parameters", "flops"), *pair, strict=True)
            rows.append({"layer": name, **{word: [a, b] for word, a, b in columns}})
    return rows


def _outputs(first, second, samples) -> dict:
    """How far outputs are apart, and how often each is right if there are labels."""
    import numpy as np

    from keras_nisp.data.samples import outputs_of
    from keras_nisp.pruning.sensitivity import known_accuracies

    rows = []
    for network in (first, second):
        rows.append([np.asarray(v, np.float64) for v in outputs_of(network, samples)])
    if [v.shape for v in rows[0]] != [v.shape for v in rows[1]]:
        raise InputError(
            f"The outputs have other shapes: {[v.shape[1:] for v in rows[0]]} and "
            f"{[v.shape[1:] for v in rows[1]]}."
        )
    pairs = list(zip(*rows, strict=True))
    result: dict[str, Any] = {
        "samples": len(samples),
        "largest_difference": max(float(np.abs(a - b).max()) for a, b in pairs),
        "scale": max(float(np.abs(a).max()) for a, _ in pairs),
    }
    a, b = pairs[0]
    if a.ndim == 2 and a.shape[-1] > 1:
        result["top1_agreement"] = float((a.argmax(-1) == b.argmax(-1)).mean())
    if accuracies := known_accuracies((first, second), samples):
        result["accuracy"] = accuracies
    return result


def _text(facts: list[dict], layers: list[dict], outputs: dict | None, wide: bool) -> str:
    """What differs as a whole, then layer by layer."""
    lines = [f"{facts[0]['file']} -> {facts[1]['file']}", *_totals(facts), *_agreement(outputs)]
    return "\n".join([*lines, "", _table(layers, wide) if layers else "All layers are alike."])


def _totals(facts: list[dict]) -> Iterator[str]:
    from keras_nisp.io.tables import percent

    slots = [f["optimizer_bytes"] for f in facts]
    names = {"parameters": "parameters", "flops": "FLOPs"}
    names |= {"activation_bytes": "activations, bytes"}
    if any(f["cache_bytes"] for f in facts):
        names["cache_bytes"] = "keys/values, bytes"
    names["bytes"] = "file, bytes"
    for word, name in names.items():
        a, b = (f[word] for f in facts)
        if word == "bytes" and slots[0] != slots[1]:  # like with like
            a, b = a - slots[0], b - slots[1]
        yield f"{name:<18} {a:>14,} -> {b:>14,}  {percent(a, b)}"
    for fact in facts:
        if fact["optimizer_bytes"] and slots[0] != slots[1]:
            yield (
                f"({fact['file']} also holds {fact['optimizer_bytes']:,} bytes of its optimizer, "
                "which are left out)"
            )


def _agreement(outputs: dict | None) -> Iterator[str]:
    if not outputs:
        return
    if "accuracy" in outputs:
        a, b = outputs["accuracy"]
        yield f"{'accuracy':<18} {a:>14.4f} -> {b:>14.4f}  {100 * (b - a):+.2f} points"
    yield (
        f"outputs differ by {outputs['largest_difference']:.3g} or less (their scale is "
        f"{outputs['scale']:.3g}) on {outputs['samples']:,} samples"
    )
    if "top1_agreement" in outputs:
        yield f"top-1 agrees for {100 * outputs['top1_agreement']:.2f} %"


def _table(layers: list[dict], wide: bool) -> str:
    """Layers that are not alike; those without FLOPs share a row."""
    from keras_nisp.io.tables import Column, change, render_table

    words = ("channels", "parameters", "flops")
    columns = [Column("layer"), *(Column(w.replace("flops", "FLOPs"), True) for w in words)]
    plain = [r for r in layers if not wide and r["flops"] == [0, 0] and r["channels"] == [None] * 2]
    rows = [
        (row["layer"], *(change(row[word][0], row[word][1], wide) for word in words))
        for row in layers
        if row not in plain
    ]
    if plain:
        before, after = (sum(row["parameters"][i] for row in plain) for i in (0, 1))
        rows.append((f"{len(plain)} without FLOPs", "", change(before, after, wide), "0"))
    return render_table("Layers that differ", columns, rows, wide=wide)
