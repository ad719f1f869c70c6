"""Options that several commands have, and checks of output files before any work."""

from pathlib import Path

import click

from keras_nisp_cli.console import Console, InputError
from keras_nisp_cli.loading import load_library

PATH = click.Path(path_type=Path)


def model_options(command):
    """Options of commands that load a model."""
    for option in reversed(
        (
            click.option(
                "--custom-objects",
                multiple=True,
                metavar="MODULE[:NAME]",
                help="Import a module of yours before loading: all that it registers with Keras "
                "and keras_nisp, or the named class or function. May be repeated.",
            ),
            click.option(
                "--unsafe",
                is_flag=True,
                help="Run code that the model file holds (Lambda layers): for files you trust.",
            ),
        )
    ):
        command = option(command)
    return command


def data_options(command):
    """Options of commands that read samples."""
    for option in reversed(
        (
            click.option(
                "--data-dir", type=PATH, help="TFDS data directory; by default data are downloaded."
            ),
            click.option(
                "--scale",
                type=float,
                help="Divide samples by this, such as 255. By default pixels from TFDS are "
                "divided by 255, unless the model itself starts with a rescaling layer.",
            ),
            click.option(
                "--samples",
                type=click.IntRange(1),
                default=2048,
                show_default=True,
                help="How many samples to use at most.",
            ),
        )
    ):
        command = option(command)
    return command


SAMPLES_HELP = (
    "FILE.npz (arrays `x` and, where labels are needed, `y`; or one for each input by its name), "
    "FILE.npy, or tfds:NAME[/SPLIT]."
)
FORCE = click.option("-f", "--force", is_flag=True, help="Replace files that exist.")
INPUT_SHAPE = click.option(
    "--input-shape", metavar="H,W,C", help="Of one sample, for models that leave it open."
)


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """`"224,224,3"` as a shape."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise click.BadParameter(
            f"Expected a shape such as 224,224,3. Received: {text!r}"
        ) from None


def check_ending(path: Path | None, ending: str) -> None:
    """Raises unless a path, if it is given, has the ending that says what is in the file."""
    if path is not None and path.suffix != ending:
        raise click.UsageError(f"Expected an output that ends in {ending}. Received: '{path}'")


def check_outputs(console: Console, force: bool, *paths: Path | None) -> None:
    """Raises unless all these files can be written, before any work starts."""
    given = [path for path in paths if path is not None]
    if len({path.resolve() for path in given}) < len(given):
        raise click.UsageError("Two outputs have the same path.")
    for path in given:
        if path.is_file() and not force:
            raise InputError(f"'{path}' exists. Pass --force to replace it.")
    load_library(console)
    from keras_nisp.io.files import check_writable

    for path in given:
        check_writable(path)
