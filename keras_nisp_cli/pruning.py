"""`keras-nisp prune` and `keras-nisp apply`."""

import contextlib
import shlex
import sys
from pathlib import Path

import click

from keras_nisp_cli.loading import load_model, load_samples
from keras_nisp_cli.options import (
    FORCE,
    INPUT_SHAPE,
    PATH,
    SAMPLES_HELP,
    check_ending,
    check_outputs,
    data_options,
    model_options,
    parse_shape,
)

NEEDS_DATA = ("nisp", "layer-by-layer", "optimal-brain-surgeon", "lrp", "taylor")
IMPORTANCES = (
    *NEEDS_DATA,
    "nisp-mag",
    "synflow",
    "magnitude",
    "geometric-median",
    "bn-scale",
    "random",
)
DAMAGES = ("predicted", "measured")
SHARE = click.FloatRange(0, 1, max_open=True)
COMPENSATE = click.option(
    "--compensate",
    type=click.Choice(["linear", "mean", "none"]),
    show_default="linear, with --calibration",
    help="How calibration data make up for removed channels: in kernels, in biases alone, or not.",
)
TEACH_STEPS = click.option(
    "--teach-steps",
    type=click.IntRange(0),
    default=0,
    help="Train the smaller model to answer as the original does, on so many batches of the "
    "calibration data, without labels; 200 are a good number.",
)


@click.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The smaller model, .keras.")
@click.option("--flops", type=SHARE, help="Share of the FLOPs to remove, such as 0.5.")
@click.option("--params", type=SHARE, help="Share of the parameters to remove.")
@click.option("--memory", type=SHARE, help="Share of the bytes of all activations to remove.")
@click.option("--ratio", type=SHARE, help="Share of the channels of every group to remove.")
@click.option("--latency", type=SHARE, help="Share of the latency on this machine to remove.")
@click.option(
    "--quantization", type=click.Choice(["float32", "int8"]), help="For --latency: of such models."
)
@click.option("--threads", type=click.IntRange(1), default=1, help="For --latency.")
@click.option("--calibration", metavar="DATA", help=f"Unlabelled samples: {SAMPLES_HELP}")
@click.option(
    "--importance",
    type=click.Choice(IMPORTANCES),
    default="nisp",
    show_default=True,
    help=f"What decides which channels go. {', '.join(NEEDS_DATA)} look at data.",
)
@click.option(
    "--allocation",
    type=click.Choice(["auto", "uniform", "global", *DAMAGES]),
    help="Which groups lose channels: all the same share, those of the least scores, or those "
    "whose loss changes the outputs least, with --calibration. By default the last, predicted, "
    "for all but --ratio.",
)
@click.option("--ranking", type=click.Choice(["local", "global"]), hidden=True, deprecated=True)
@click.option("--round-to", type=click.IntRange(1), help="Keep multiples of this many channels.")
@click.option("--target", type=click.Choice(["x86", "arm", "gpu"]), help="Round for this hardware.")
@click.option(
    "--min-channels", type=float, default=1, help="Keep at least this many of a group, or a share."
)
@click.option("--exclude", multiple=True, metavar="NAME", help="Layer or pattern that stays whole.")
@click.option(
    "--recalibrate/--no-recalibrate",
    default=True,
    help="Repair BatchNormalization and biases on the calibration data (default: yes).",
)
@COMPENSATE
@TEACH_STEPS
@click.option("--plan", "plan_path", type=PATH, help="Keep the plan in this .json file, too.")
@click.option("--report", "report_path", type=PATH, help="Draw the plan as an .html page.")
@click.option("--seed", type=int, default=0, help="For sampling and for --importance random.")
@INPUT_SHAPE
@data_options
@model_options
@FORCE
@click.pass_obj
def prune(console, model: Path, force: bool, **options):
    """Remove the least important channels of MODEL; save the smaller model.

    The smaller model is compared with the original whose removed channels are zeroed. It is not
    compiled; fine-tune it before you ship it.

    \b
    keras-nisp prune model.keras --calibration data.npz --flops 0.5 -o small.keras
    """
    amount = _amount(options)
    if options["importance"] in NEEDS_DATA and options["calibration"] is None:
        raise click.UsageError(
            f"--importance {options['importance']} looks at data: give --calibration, or choose "
            "--importance nisp-mag, which does not."
        )
    if options["allocation"] in DAMAGES and options["calibration"] is None:
        raise click.UsageError(
            f"--allocation {options['allocation']} looks at data: give --calibration."
        )
    _check(console, force, options, repairs=options["recalibrate"])
    network = load_model(model, options["custom_objects"], options["unsafe"], console)
    labels = options["importance"] == "taylor"
    samples = load_samples(network, options, "calibration", console, labels=labels)

    importance = importance_named(options["importance"], network, samples, options["seed"])
    from keras_nisp.pruning.pruning import pruned

    budget = _budget(amount, options)
    with console.stage("Choosing channels"):
        shape = parse_shape(options["input_shape"])
        result = pruned(network, importance, budget, shape, samples=samples)
    _finish(console, result, samples if options["recalibrate"] else None, options)


@click.command()
@click.argument("plan", type=PATH)
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The smaller model, .keras.")
@click.option("--calibration", metavar="DATA", help=f"Repair the result on these: {SAMPLES_HELP}")
@COMPENSATE
@TEACH_STEPS
@click.option("--report", "report_path", type=PATH, help="Draw the plan as an .html page.")
@data_options
@model_options
@FORCE
@click.pass_obj
def apply(console, plan: Path, model: Path, force: bool, **options):
    """Apply PLAN, as `prune --plan` wrote it, to MODEL: one of the same structure."""
    _check(console, force, options)
    from keras_nisp.plans.plan import Plan

    loaded = Plan.load(plan)
    network = load_model(model, options["custom_objects"], options["unsafe"], console)
    samples = load_samples(network, options, "calibration", console)
    from keras_nisp.pruning.pruning import Pruned
    from keras_nisp.surgery.rebuilding import rebuild

    small = rebuild(network, loaded, verbose=0)
    channel_map = loaded.trace(network)
    result = Pruned(channel_map, loaded, loaded.unit_map(channel_map), small)
    _finish(console, result, samples, options)


def _check(console, force: bool, options: dict, repairs: bool = True) -> None:
    """Raises unless files can be written, and there are the data that a repair needs."""
    how, steps = options["compensate"], options["teach_steps"]
    asked = [f"--compensate {how}"] if how in ("linear", "mean") else []
    asked += [f"--teach-steps {steps}"] if steps else []
    if asked and not (repairs and options["calibration"]):
        without = "" if repairs else ", without --no-recalibrate"
        raise click.UsageError(f"{asked[0]} looks at data: give --calibration{without}.")
    check_ending(options["output"], ".keras")
    files = [options.get(name) for name in ("output", "plan_path", "report_path")]
    check_outputs(console, force, *files)


def _amount(options: dict) -> dict:
    """How much to remove, as an argument of `Budget`."""
    kinds = {
        "flops": "flops_reduction",
        "params": "params_reduction",
        "memory": "memory_reduction",
        "ratio": "ratio",
        "latency": "latency_reduction",
    }
    given = {name: options[name] for name in kinds if options[name] is not None}
    if len(given) != 1:
        raise click.UsageError(
            "Say how much to remove by exactly one of --flops, --params, --memory, --ratio and "
            "--latency."
        )
    ((name, amount),) = given.items()
    return {kinds[name]: amount}


def _budget(amount: dict, options: dict):
    from keras_nisp.latency.table import LatencyTable
    from keras_nisp.plans.budget import RANKINGS, Budget

    limits = {name: options[name] for name in ("round_to", "target", "exclude")}
    limits["allocation"] = options["allocation"] or RANKINGS.get(options["ranking"], "auto")
    limits["min_channels"] = _count_or_share(options["min_channels"])
    if "latency_reduction" in amount:
        limits["latency"] = LatencyTable(options["quantization"], options["threads"])
    return Budget(**amount, **limits)


def _count_or_share(value: float) -> int | float:
    return int(value) if value >= 1 else value


def importance_named(name: str, network, samples, seed: int):
    """The importance that an option names."""
    import keras_nisp as kn

    if name == "taylor":
        return kn.Taylor(samples, loss=_loss(network, samples))
    if name == "random":
        return kn.Random(seed)
    looking = {
        "nisp": kn.NISP,
        "layer-by-layer": kn.LayerByLayer,
        "optimal-brain-surgeon": kn.OptimalBrainSurgeon,
        "lrp": kn.LRP,
    }
    if name in looking:
        return looking[name](samples)
    others = {
        "nisp-mag": kn.NISPMag,
        "synflow": kn.SynFlow,
        "magnitude": kn.Magnitude,
        "geometric-median": kn.GeometricMedian,
        "bn-scale": kn.BNScale,
    }
    return others[name]()


def _loss(network, samples):
    """Cross-entropy for the labels that there are: indices or one-hot, for logits or not."""
    import keras

    from keras_nisp.keras_graph import keras_models

    if len(keras_models.output_names(network)) != 1 or getattr(samples.labels, "ndim", 0) not in (
        1,
        2,
    ):
        raise click.UsageError(
            "--importance taylor needs a classifier with one output and one label for each sample."
        )
    losses = keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy
    return losses[samples.labels.ndim - 1](from_logits=keras_models.ending(network) != "softmax")


def _finish(console, result, samples, options: dict) -> None:
    """Proves the smaller model, repairs it on samples if there are any, and writes all files."""
    note = None if result.latency is None else str(result.latency)
    output, compensate = options["output"], options["compensate"] or "linear"
    steps = options["teach_steps"]
    with console.stage("Comparing it with the original"):
        checked = result.verified(samples)
    if samples is not None:
        with console.stage("Recalibrating"):
            result.repair(samples, None if compensate == "none" else compensate, steps)
    with console.stage(f"Writing {output.name}"):
        text, facts = _write(result.plan, result.small, options)
    repaired = "not recalibrated (no --calibration)"
    if samples is not None:
        how = "" if compensate == "linear" else f" (--compensate {compensate})"
        how += f", taught for {steps:,} steps" if steps else ""
        repaired = f"recalibrated on {len(samples):,} samples{how}"
    elif options["calibration"]:
        repaired = "not recalibrated (--no-recalibrate)"
    for line in (text, note, str(checked), f"{output}: {facts['bytes']:,} bytes, {repaired}"):
        if line:
            console.say(line)
    console.result(
        {
            **facts,
            "latency": note,
            "difference": checked.relative,
            "recalibrated_on": len(samples) if samples is not None else 0,
            "compensate": compensate if samples is not None else "none",
            "teach_steps": steps,
        }
    )


def _write(plan, small, options: dict) -> tuple[str, dict]:
    """Writes all files or none; gives what there is to say about the plan, as text and data."""
    from keras_nisp.io.files import replacing

    text = plan.summary()
    with contextlib.ExitStack() as files:  # what is opened first, the model, is moved last
        model = files.enter_context(replacing(options["output"]))
        if options.get("plan_path"):
            plan.save(files.enter_context(replacing(options["plan_path"])))
        if options["report_path"]:
            page = files.enter_context(replacing(options["report_path"]))
            plan.report(page, command=shlex.join(["keras-nisp", *sys.argv[1:]]))
        small.save(model)
        size = model.stat().st_size
    return text, {
        "output": str(options["output"]),
        "bytes": size,
        "importance": plan.importance,
        "budget": plan.budget_text,
        "parameters": [plan.before.parameters, plan.after.parameters],
        "flops": [plan.before.flops, plan.after.flops],
        "widths": {row.layer: [row.channels, row.kept] for row in plan.creators},
    }
