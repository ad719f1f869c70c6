"""`keras-nisp benchmark`."""

from pathlib import Path

import click

from keras_nisp_cli.console import InputError
from keras_nisp_cli.loading import load_library, load_model, load_samples
from keras_nisp_cli.options import (
    INPUT_SHAPE,
    PATH,
    SAMPLES_HELP,
    Command,
    Named,
    data_options,
    model_options,
    parse_shape,
)

COUNT = click.IntRange(1)


@click.command(cls=Command)
@click.argument("model", type=PATH)
@click.argument("against", type=PATH, required=False)
@click.option("--threads", type=COUNT, default=1, show_default=True)
@click.option("--batch-size", type=COUNT, help="By default that of the models, else 1.")
@click.option("--rounds", type=COUNT, default=10, show_default=True, help="Turns of each model.")
@click.option("--repeats", type=COUNT, default=10, show_default=True, help="Runs in a round.")
@click.option(
    "--quantization",
    type=Named(["float32", "float16", "dynamic", "int8"]),
    help="Of Keras models; without --data, int8 takes ranges from random numbers.",
)
@click.option("--data", metavar="DATA", help=f"For int8: {SAMPLES_HELP}")
@INPUT_SHAPE
@data_options
@model_options
@click.pass_obj
def benchmark(console, model: Path, against, input_shape, **options):
    """Latency of MODEL, and of AGAINST in turns with it, in the TFLite interpreter.

    Models are .keras, .h5 or .tflite files.
    """
    paths = [model] if against is None else [model, against]
    shape = parse_shape(input_shape)
    models = [_model(path, options, console) for path in paths]
    import keras

    from keras_nisp.latency import benchmarking

    network = next((m for m in models if isinstance(m, keras.Model)), None)
    data = None if network is None else load_samples(network, options, "data", console)
    names = ("threads", "batch_size", "rounds", "repeats", "quantization")
    with console.watching() as verbose:
        result = benchmarking.benchmark(
            *models,
            input_shape=shape,
            calibration=data,
            verbose=verbose,
            **{name: options[name] for name in names},
        )
    console.say(str(result))
    console.result(result.to_dict())


def _model(path: Path, options: dict, console):
    """A Keras model, or the path of a TFLite file."""
    if not path.is_file():
        raise InputError(f"There is no file '{path}'.")
    load_library(console)
    from keras_nisp.export.interpreter import is_tflite

    if is_tflite(path):
        return path
    network = load_model(path, options["custom_objects"], options["unsafe"], console)
    network.name = path.name
    return network
