"""`keras-nisp export`."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import click

from keras_nisp_cli.console import InputError
from keras_nisp_cli.loading import load_model, load_samples
from keras_nisp_cli.options import (
    FORCE,
    PATH,
    SAMPLES_HELP,
    Command,
    Named,
    check_ending,
    check_outputs,
    data_options,
    model_options,
)


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.option("--serving", type=PATH, help="Folder of a model for TF Serving: the next version.")
@click.option("--tflite", type=PATH, help="File for TFLite, .tflite.")
@click.option("--onnx", type=PATH, help="File for ONNX, .onnx.")
@click.option(
    "--quantization",
    type=Named(["float32", "float16", "dynamic", "int8"]),
    help="For --tflite; int8 takes ranges from --data.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="For --tflite and --onnx: fixes how many samples a run takes, 1 on most devices.",
)
@click.option("--data", metavar="DATA", help=f"Samples for int8 and the check: {SAMPLES_HELP}")
@click.option("--version", type=click.IntRange(0), help="For --serving, instead of the next.")
@click.option("--top-k", type=click.IntRange(1), help="For --serving: a signature of that name.")
@click.option("--labels", type=PATH, help="For --top-k: a text file with a class in each line.")
@click.option("--warmup", is_flag=True, help="For --serving: requests made of --data.")
@data_options
@model_options
@FORCE
@click.pass_obj
def export(console, model: Path, serving, tflite, onnx, force, **options):
    """Write MODEL for TF Serving, TFLite or ONNX, and compare what was written with it."""
    if serving is None and tflite is None and onnx is None:
        raise click.UsageError("Say where to: --serving FOLDER, --tflite FILE or --onnx FILE.")
    for option, needed, kind in (
        ("quantization", tflite, "--tflite"),
        ("batch_size", tflite or onnx, "--tflite or --onnx"),
        ("top_k", serving, "--serving"),
        ("version", serving, "--serving"),
    ):
        if options[option] is not None and needed is None:
            raise click.UsageError(f"--{option.replace('_', '-')} goes with {kind}.")
    if options["quantization"] == "int8" and options["data"] is None:
        raise click.UsageError(
            "--quantization int8 needs --data: some real samples, from which the converter takes "
            "the range of every activation."
        )
    if options["warmup"] and (serving is None or options["data"] is None):
        raise click.UsageError("--warmup goes with --serving and --data.")
    check_ending(tflite, ".tflite")
    check_ending(onnx, ".onnx")
    labels = _labels(options["labels"])
    check_outputs(console, force, tflite, onnx)
    network = load_model(model, options["custom_objects"], options["unsafe"], console)
    data = load_samples(network, options, "data", console)
    exports = _exports(console, network, serving, tflite, onnx, data, labels, options)
    for kind, outcome in exports:
        console.say(f"{kind}: {outcome}")
    if tflite is not None:
        console.next("keras-nisp", "benchmark", model, tflite)
    console.result({kind: _plain(outcome) for kind, outcome in exports})


def _exports(console, network, serving, tflite, onnx, data, labels, options) -> list:
    """Writes all files or none."""
    import keras_nisp as kn
    from keras_nisp.io.files import replacing

    done: list[tuple[str, Any]] = []
    size = options["batch_size"]
    with contextlib.ExitStack() as files:
        if tflite is not None:
            path = files.enter_context(replacing(tflite))
            with console.stage(f"Converting for TFLite ({options['quantization'] or 'float32'})"):
                kind = options["quantization"]
                lite = kn.export_tflite(network, path, kind, data, batch_size=size, verbose=0)
            done.append(("TFLite", dataclasses.replace(lite, path=tflite)))
        if onnx is not None:
            path = files.enter_context(replacing(onnx))
            with console.stage("Converting for ONNX"):
                other = kn.export_onnx(network, path, batch_size=size, check_data=data, verbose=0)
            done.append(("ONNX", dataclasses.replace(other, path=onnx)))
        if serving is not None:
            with console.stage("Writing a SavedModel"):
                served = kn.export_serving(
                    network,
                    serving,
                    options["version"],
                    top_k=options["top_k"],
                    labels=labels,
                    warmup=data if options["warmup"] else None,
                    check_data=data,
                    verbose=0,
                )
            done.append(("TF Serving", served))
    return done


def _labels(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"--labels: there is no file '{path}'.")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"--labels: '{path}' is no text in UTF-8: {error}") from error


def _plain(outcome) -> dict:
    data = dataclasses.asdict(outcome)
    for key in ("difference", "scale", "relative", "top1"):
        data["agreement"][key] = getattr(outcome.agreement, key)
    return {key: str(value) if isinstance(value, Path) else value for key, value in data.items()}
