"""`keras-nisp inspect`."""

from pathlib import Path

import click

from keras_nisp_cli.loading import load_model
from keras_nisp_cli.options import INPUT_SHAPE, PATH, Command, model_options, parse_shape

MOST_NAMED = 6  # layers in a line


@click.command(cls=Command)
@click.argument("model", type=PATH)
@INPUT_SHAPE
@model_options
@click.pass_obj
def inspect(console, model: Path, input_shape, custom_objects, unsafe):
    """Layers, coupled groups and costs of MODEL; what can be pruned, and what not and why.

    Layers of one group share their channels and lose them together. FLOPs are multiply-adds for
    one sample.
    """
    shape = parse_shape(input_shape)
    network = load_model(model, custom_objects, unsafe, console)
    from keras_nisp.channels.tracing import trace

    channel_map = trace(network, shape)
    facts = _facts(channel_map)
    console.result({"file": str(model), "bytes": model.stat().st_size, **facts})
    console.say(_text(model, facts, console.wide))
    if facts["groups"]:
        pruning = ("--calibration", "DATA", "--flops", 0.5, "-o", "small.keras")
        console.next("keras-nisp", "prune", model, *pruning)


def _facts(channel_map) -> dict:
    """All that is known of a traced model, as plain data."""
    from keras_nisp.channels.cost import CostModel, notes

    costs = CostModel(channel_map)
    by_layer = costs.layers(costs.everything)
    creators = {creator.layer: creator.units for creator in channel_map.creators}
    group_of = {
        channel_map.creators[i].layer: index
        for index, group in enumerate(channel_map.groups)
        for i in group.creators
    }
    layers = [
        {
            "layer": path,
            "type": kind,
            "channels": len(creators[path]) if path in creators else None,
            "prunable": int(channel_map.free[creators[path]].sum()) if path in creators else None,
            "group": group_of.get(path),
            "parameters": cost.parameters,
            "flops": cost.flops,
            "fixed_because": _reasons(channel_map, creators.get(path, ())),
        }
        for path, kind, cost in _rows(channel_map, by_layer)
    ]
    groups = [
        {
            "channels": len(group.units),
            "layers": list(dict.fromkeys(channel_map.creators[i].layer for i in group.creators)),
        }
        for group in channel_map.groups
    ]
    total = {
        "parameters": sum(cost.parameters for cost in by_layer.values()),
        "flops": sum(cost.flops for cost in by_layer.values()),
        "activation_bytes": sum(cost.memory for cost in by_layer.values()),
        "cache_bytes": sum(cost.cache for cost in by_layer.values()),
    }
    return {
        "model": channel_map.model.name,
        "input_shapes": [list(shape) for shape in channel_map.input_shapes],
        **total,
        "layers": layers,
        "groups": groups,
        "notes": notes(channel_map),
    }


def _rows(channel_map, by_layer):
    """Path, class and cost of the layers that cost anything, and of all that create channels."""
    from keras_nisp.channels.cost import Cost

    kinds = {call.path: type(call.layer).__name__ for call in channel_map.calls}
    created = dict.fromkeys(creator.layer for creator in channel_map.creators)
    for path, cost in by_layer.items():
        if cost.parameters or path in created:
            yield path, kinds[path], cost
    for path in created:  # heads and key channels are in no tensor
        if path not in by_layer:
            yield path, kinds.get(path.partition(":")[0], ""), Cost()


def _reasons(channel_map, units) -> list[str]:
    reasons = (r for unit in list(units) for r in channel_map.reasons.get(int(unit), ()))
    return list(dict.fromkeys(reasons))


def _text(path: Path, facts: dict, wide: bool) -> str:
    shapes = ", ".join("x".join(map(str, shape)) for shape in facts["input_shapes"])
    title = f"{facts['model']} ({path.name}, {path.stat().st_size:,} bytes), input {shapes}"
    lines = [_table(title, facts, wide), *facts["notes"]]
    reasons: dict[str, list[str]] = {}
    for row in facts["layers"]:
        for reason in row["fixed_because"]:
            reasons.setdefault(reason, []).append(row["layer"])
    lines += [f"kept whole: {_listed(names, wide)} ({why})" for why, names in reasons.items()]
    prunable = sum(group["channels"] for group in facts["groups"])
    if not facts["groups"]:
        lines.append("No channel can be removed.")
        return "\n".join(lines)
    lines.append(f"{prunable:,} channels in {len(facts['groups'])} groups can be removed.")
    for index, group in enumerate(facts["groups"]):
        if len(group["layers"]) > 1:
            lines.append(f"group {index} couples {_listed(group['layers'], wide)}")
    return "\n".join(lines)


def _listed(names: list[str], wide: bool) -> str:
    more = 0 if wide else len(names) - MOST_NAMED
    return ", ".join(names if more <= 0 else names[:MOST_NAMED]) + (
        f" and {more} more" if more > 0 else ""
    )


def _table(title: str, facts: dict, wide: bool) -> str:
    from keras_nisp.io.tables import Column, brief, render_table

    titles = ("channels", "group", "parameters", "FLOPs", "of all")
    columns = [Column("layer"), Column("type", optional=True)]
    columns += [Column(title, True) for title in titles]
    layers = facts["layers"]
    plain = [r for r in layers if not wide and not r["flops"] and r["channels"] is None]
    show = "{:,}".format if wide else brief
    rows = [
        (
            row["layer"],
            row["type"],
            _channels(row),
            "" if row["group"] is None else row["group"],
            show(row["parameters"]),
            show(row["flops"]),
            f"{100 * row['flops'] / facts['flops']:.1f} %" if facts["flops"] else "",
        )
        for row in layers
        if row not in plain
    ]
    if plain:
        held = sum(row["parameters"] for row in plain)
        rows.append((f"{len(plain)} without FLOPs", "", "", "", show(held), "0", ""))
    total = ("total", "", "", "", show(facts["parameters"]), show(facts["flops"]), "")
    return render_table(title, columns, rows, [total], wide)


def _channels(row: dict) -> str:
    if row["channels"] is None:
        return ""
    if row["prunable"] in (0, row["channels"]):
        return f"{row['channels']:,}" if row["prunable"] else f"{row['channels']:,} fixed"
    return f"{row['channels']:,} ({row['prunable']:,} free)"
