"""`keras-nisp sensitivity`."""

import contextlib
from pathlib import Path

import click

from keras_nisp_cli.loading import load_model, load_samples
from keras_nisp_cli.options import (
    FORCE,
    PATH,
    SAMPLES_HELP,
    Command,
    Named,
    check_outputs,
    data_options,
    model_options,
)
from keras_nisp_cli.pruning import IMPORTANCES, importance_named


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.option("--data", metavar="DATA", help=f"Labelled samples: {SAMPLES_HELP}")
@click.option(
    "--calibration",
    metavar="DATA",
    help="Unlabelled samples, instead of --data: damages to the outputs, refitted, in the place of "
    "accuracies.",
)
@click.option("-o", "--output", type=PATH, required=True, help="Results, .json; continued if kept.")
@click.option("--plot", type=PATH, help="A picture, .png or .svg.")
@click.option("--importance", type=Named(list(IMPORTANCES)), default="magnitude", show_default=True)
@click.option("--ratios", default="0.25,0.5,0.75", show_default=True, help="Shares to remove.")
@click.option(
    "--recalibrate/--no-recalibrate",
    default=True,
    help="Repair BatchNormalization and biases on the samples first (default: yes).",
)
@click.option("--seed", type=click.IntRange(0), default=0)
@data_options
@model_options
@FORCE
@click.pass_obj
def sensitivity(console, model: Path, output: Path, plot, force, **options):
    """Accuracy of MODEL if one coupled group loses channels, for each group and ratio.

    With --calibration instead of --data, it is the damage to the outputs, which needs no labels.

    Results are kept after each measurement. After an interruption the same command resumes;
    --force starts again.
    """
    if (options["data"] is None) == (options["calibration"] is None):
        raise click.UsageError("Give --data, with labels, or --calibration, without.")
    labelled = options["data"] is not None
    check_outputs(console, True, output, plot)
    ratios = _ratios(options["ratios"])
    network = load_model(
        model, options["custom_objects"], options["unsafe"], console, compiled=True
    )
    source = "data" if labelled else "calibration"
    samples = load_samples(network, options, source, console, labels=labelled)
    import keras_nisp as kn

    with _set_aside(output, force), console.watching() as verbose:
        result = kn.sensitivity(
            network,
            importance_named(options["importance"], network, samples, options["seed"]),
            samples if labelled else None,
            ratios=ratios,
            calibration=samples if options["recalibrate"] or not labelled else None,
            path=output,
            max_samples=options["samples"],
            verbose=verbose,
        )
    if plot is not None:
        result.plot(plot)
    console.say(str(result))
    if result.accuracies:
        worst = min(zip(result.accuracies, result.groups, strict=True))[1][0]
        pruning = ("--calibration", "DATA", "--flops", 0.5, "--exclude", worst)
        console.next("keras-nisp", "prune", model, *pruning, "-o", "small.keras")
    console.result(result.to_dict())


@contextlib.contextmanager
def _set_aside(path: Path, force: bool):
    """Takes old results away, and brings them back if nothing comes in their place."""
    old = path.read_bytes() if force and path.is_file() else None
    if old is not None:
        path.unlink()
    try:
        yield
    finally:
        if old is not None and not path.exists():
            path.write_bytes(old)


def _ratios(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"Expected --ratios such as 0.25,0.5. Received: {text!r}"
        ) from None
