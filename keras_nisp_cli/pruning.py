"""`keras-nisp prune` and `keras-nisp apply`."""

import contextlib
import datetime
import shlex
import sys
from pathlib import Path

import click

from keras_nisp_cli.console import InputError
from keras_nisp_cli.loading import load_model, load_samples
from keras_nisp_cli.options import (
    AMOUNTS,
    FORCE,
    INPUT_SHAPE,
    PATH,
    SAMPLES_HELP,
    SHARE,
    Command,
    Named,
    all_of,
    amount_options,
    check_ending,
    check_outputs,
    chosen_amount,
    data_options,
    grouped,
    limit_options,
    limits,
    model_options,
    parse_shape,
    with_model,
)

# The options' names of classes of keras_nisp, which is imported where it is used.
NEEDS_DATA = {
    "nisp": "NISP",
    "layer-by-layer": "LayerByLayer",
    "optimal-brain-surgeon": "OptimalBrainSurgeon",
    "lrp": "LRP",
    "taylor": "Taylor",
}
IMPORTANCES = {
    **NEEDS_DATA,
    "nisp-mag": "NISPMag",
    "synflow": "SynFlow",
    "magnitude": "Magnitude",
    "geometric-median": "GeometricMedian",
    "bn-scale": "BNScale",
    "random": "Random",
}
DAMAGES = ("predicted", "measured")
_data = grouped("Data")
_choice, _repair = grouped("What goes"), grouped("Repair")
_latency, _files = grouped("Latency"), grouped("Files")
CALIBRATION = "Unlabelled samples, to choose by and to repair on; with labels, accuracies are told"
REPORT = _files("--report", "report_path", type=PATH, help="Draw the plan as an .html page.")
repair_options = all_of(
    _repair(
        "--compensate",
        type=Named(["linear", "mean", "none"]),
        show_default="linear, with --calibration",
        help="How calibration data make up for removed channels: in kernels, in biases alone, or "
        "not.",
    ),
    _repair(
        "--teach-steps",
        type=click.IntRange(0),
        default=0,
        help="Train the smaller model to answer as the original does, on so many batches of the "
        "calibration data, without labels; 200 are a good number.",
    ),
)


@click.command(cls=Command)
@click.argument("model", type=PATH)
@_files("-o", "--output", type=PATH, required=True, help="The smaller model, .keras.")
@_files("--plan", "plan_path", type=PATH, help="Keep the plan in this .json file, too.")
@REPORT
@amount_options
@grouped("How much to remove: one of these")(
    "--latency", type=SHARE, help="Share of the latency on this machine."
)
@_latency("--quantization", type=Named(["float32", "int8"]), help="For --latency: of such models.")
@_latency("--threads", type=click.IntRange(1), default=1, help="For --latency.")
@_choice(
    "--importance",
    type=Named(list(IMPORTANCES)),
    metavar="NAME",
    default="nisp",
    show_default=True,
    help=f"What decides which channels go. These look at data: {', '.join(NEEDS_DATA)}. These do "
    f"not: {', '.join(name for name in IMPORTANCES if name not in NEEDS_DATA)}.",
)
@_choice(
    "--allocation",
    type=Named(["auto", "uniform", "global", *DAMAGES]),
    help="Which groups lose channels: all the same share, those of the least scores, or those "
    "whose loss changes the outputs least, with --calibration. By default the last, predicted, "
    "for all but --ratio.",
)
@click.option("--ranking", type=click.Choice(["local", "global"]), hidden=True, deprecated=True)
@_choice(
    "--seed", type=click.IntRange(0), default=0, help="For sampling and for --importance random."
)
@limit_options
@_data("--calibration", metavar="DATA", help=f"{CALIBRATION}: {SAMPLES_HELP}")
@data_options
@_repair(
    "--recalibrate/--no-recalibrate",
    default=True,
    help="Repair BatchNormalization and biases on the calibration data (default: yes).",
)
@repair_options
@INPUT_SHAPE
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
    amount = chosen_amount(options, tuple(AMOUNTS))
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
    network = load_model(
        model, options["custom_objects"], options["unsafe"], console, compiled=True
    )
    labels = options["importance"] == "taylor"
    samples = load_samples(network, options, "calibration", console, labels=labels)

    importance = importance_named(options["importance"], network, samples, options["seed"])
    from keras_nisp.pruning.pruning import pruned

    shape = parse_shape(options["input_shape"])
    budget = _budget(with_model(amount, options, console), options)
    with console.watching() as verbose:
        result = pruned(network, importance, budget, shape, samples=samples, verbose=verbose)
    _finish(console, model, result, samples, options, repairs=options["recalibrate"])


@click.command(cls=Command)
@click.argument("plan", type=PATH)
@click.argument("model", type=PATH)
@_files("-o", "--output", type=PATH, required=True, help="The smaller model, .keras.")
@REPORT
@_data("--calibration", metavar="DATA", help=f"Repair the result on these: {SAMPLES_HELP}")
@data_options
@repair_options
@model_options
@FORCE
@click.pass_obj
def apply(console, plan: Path, model: Path, force: bool, **options):
    """Apply PLAN, as `prune --plan` wrote it, to MODEL: one of the same structure."""
    _check(console, force, options)
    from keras_nisp.plans.plan import Plan

    loaded = Plan.load(plan)
    network = load_model(
        model, options["custom_objects"], options["unsafe"], console, compiled=True
    )
    samples = load_samples(network, options, "calibration", console)
    from keras_nisp.errors import NotCollapsedError
    from keras_nisp.pruning.pruning import Pruned
    from keras_nisp.surgery.rebuilding import rebuild

    try:
        small = rebuild(network, loaded, verbose=0)
    except NotCollapsedError as error:  # `--force` is for files here
        text = str(error).replace("pass `force=True`", "merge in Python by `rebuild(force=True)`")
        raise InputError(text) from None
    channel_map = loaded.trace(network)
    result = Pruned(channel_map, loaded, loaded.unit_map(channel_map), small)
    _finish(console, model, result, samples, options)


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


def _budget(amount: dict, options: dict):
    from keras_nisp.latency.table import LatencyTable
    from keras_nisp.plans.budget import RANKINGS, Budget

    settings = limits(options)
    settings["allocation"] = options["allocation"] or RANKINGS.get(options["ranking"], "auto")
    if "latency_reduction" in amount:
        settings["latency"] = LatencyTable(options["quantization"], options["threads"])
    return Budget(**amount, **settings)


def importance_named(name: str, network, samples, seed: int):
    """The importance that an option names."""
    import keras_nisp

    make = getattr(keras_nisp, IMPORTANCES[name])
    if name == "taylor":
        return make(samples, loss=_loss(network, samples))
    if name == "random":
        return make(seed)
    return make(samples) if name in NEEDS_DATA else make()


def _loss(network, samples):
    """The cross-entropy for the labels, unless the model was saved with its loss: then `None`."""
    import keras

    from keras_nisp.data.samples import class_labels
    from keras_nisp.keras_graph import keras_models, keras_training
    from keras_nisp.keras_graph.output_kinds import ending_of

    outputs = keras_models.body(network).outputs
    if (keras_training.compile_arguments(network) or {}).get("loss") is not None:
        return None
    if len(outputs) != 1 or class_labels(samples) is None:
        raise click.UsageError(
            "--importance taylor needs a classifier with one output and one label for each sample, "
            "or a model that was saved with its loss."
        )
    logits = ending_of(network) is None
    if outputs[0].shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=logits)
    indices = samples.labels.ndim == 1 or samples.labels.shape[1:] == (1,)
    losses = keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy
    return losses[indices](from_logits=logits)


def _finish(console, path: Path, result, samples, options: dict, repairs: bool = True) -> None:
    """Proves the smaller model, repairs it on samples if there are any, and writes all files."""
    from keras_nisp.pruning.sensitivity import known_accuracies

    note = None if result.latency is None else str(result.latency)
    output, compensate = options["output"], options["compensate"] or "linear"
    steps, repairs = options["teach_steps"], repairs and samples is not None
    with console.watching() as verbose:
        checked = result.verified(samples, verbose)
        if repairs:
            how = None if compensate == "none" else compensate
            result.repair(samples, how, steps, verbose=verbose)
    right: list[float] = []
    if samples is not None and samples.labels is not None:
        with console.stage("Comparing accuracies"):
            right = known_accuracies((result.channel_map.model, result.small), samples)
    with console.stage(f"Writing {output.name}"):
        outcome = {"surgery": checked, "repair": _repaired(samples, repairs, options)}
        if right:
            change = f"{right[0]:.4f} -> {right[1]:.4f} on the {len(samples):,} calibration samples"
            outcome = {"accuracy": change, **outcome}
        if note:
            outcome["latency"] = note.removeprefix("latency: ")
        facts = _write(result.plan, result.small, options, outcome)
    lines = [result.plan.summary(console.wide), note, f"surgery {checked}"]
    if right:
        lines.append(f"accuracy {outcome['accuracy']}")
    lines.append(f"{output}: {facts['bytes']:,} bytes, {outcome['repair']}")
    for line in filter(None, lines):
        console.say(line)
    labelled = ("--data", options["calibration"] or "LABELLED")
    if output.samefile(path):
        console.say(f"next: fine-tune '{output}', which has taken the original's place")
    else:
        console.say(f"next: fine-tune '{output}', then compare")
        console.next("keras-nisp", "diff", path, output, *labelled)
    console.result(
        {
            **facts,
            "latency": note,
            "difference": checked.relative,
            "accuracy": right or None,
            "recalibrated_on": len(samples) if repairs else 0,
            "compensate": compensate if repairs else "none",
            "teach_steps": steps,
        }
    )


def _repaired(samples, repairs: bool, options: dict) -> str:
    """How the model was repaired, or why not."""
    if not repairs:
        if options["calibration"]:
            return "not recalibrated (--no-recalibrate)"
        return "not recalibrated (no --calibration): it may be no better than chance"
    compensate, steps = options["compensate"] or "linear", options["teach_steps"]
    how = "" if compensate == "linear" else f" (--compensate {compensate})"
    how += f", taught for {steps:,} steps" if steps else ""
    return f"recalibrated on {len(samples):,} samples{how}"


def _write(plan, small, options: dict, outcome: dict) -> dict:
    """Writes all files or none; gives what there is to say about the plan, as data."""
    from keras_nisp.io.files import replacing

    with contextlib.ExitStack() as files:  # what is opened first, the model, is moved last
        model = files.enter_context(replacing(options["output"]))
        if options.get("plan_path"):
            plan.save(files.enter_context(replacing(options["plan_path"])))
        if options["report_path"]:
            page = files.enter_context(replacing(options["report_path"]))
            command = shlex.join(["keras-nisp", *sys.argv[1:]])
            plan.report(page, command, {**outcome, "written": f"{datetime.date.today()}"})
        small.save(model)
        size = model.stat().st_size
    return {
        "output": str(options["output"]),
        "bytes": size,
        "importance": plan.importance,
        "budget": plan.budget_text,
        "parameters": [plan.before.parameters, plan.after.parameters],
        "flops": [plan.before.flops, plan.after.flops],
        "widths": {row.layer: [row.channels, row.kept] for row in plan.creators},
    }
