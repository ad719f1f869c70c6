"""Options that several commands have, and checks of output files before any work."""

import functools
from pathlib import Path

import click

from keras_nisp_cli.console import Console, InputError
from keras_nisp_cli.loading import load_library, load_model

PATH = click.Path(path_type=Path)
OTHERS = "Options"  # of no group


class Command(click.Command):
    """A command whose help lists options in groups: each option is of the group it names."""

    def format_options(self, ctx, formatter):
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None and not isinstance(option, click.Argument):
                groups.setdefault(getattr(option, "group", OTHERS), []).append(record)
        for title in sorted(groups, key=lambda name: name == OTHERS):  # the others come last
            with formatter.section(title):
                formatter.write_dl(groups[title])


class Option(click.Option):
    """An option of a group in the help."""

    def __init__(self, *args, group: str = OTHERS, **settings):
        super().__init__(*args, **settings)
        self.group = group


class Named(click.Choice):
    """A choice that names what is near where nothing matches."""

    def convert(self, value, param, ctx):
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            hint = did_you_mean(str(value), self.choices)
            raise click.BadParameter(error.message + hint, ctx, param) from None


def did_you_mean(name: str, known) -> str:
    """A sentence with the nearest of some names, or the empty string."""
    import difflib

    near = difflib.get_close_matches(name, list(known), 1, 0.4)
    return f" Did you mean '{near[0]}'?" if near else ""


def grouped(title: str):
    """`click.option` for options of a group."""
    return functools.partial(click.option, cls=Option, group=title)


def all_of(*options):
    """One decorator for several options, which keep their order in the help."""

    def add(command):
        return functools.reduce(lambda done, option: option(done), reversed(options), command)

    return add


_model, _data = grouped("Model"), grouped("Data")
INPUT_SHAPE = _model(
    "--input-shape", metavar="H,W,C", help="Of one sample, for models that leave it open."
)
model_options = all_of(
    _model(
        "--custom-objects",
        multiple=True,
        metavar="MODULE[:NAME]",
        help="Import a module of yours before loading: all that it registers with Keras "
        "and keras_nisp, or the named class or function. May be repeated.",
    ),
    _model(
        "--unsafe",
        is_flag=True,
        help="Run code that the model file holds (Lambda layers): for files you trust.",
    ),
)
data_options = all_of(
    _data("--data-dir", type=PATH, help="TFDS data directory; by default data are downloaded."),
    _data(
        "--scale",
        type=click.FloatRange(min=0, min_open=True),
        help="Divide samples by this, such as 255; 1 leaves them, even in a range that looks "
        "wrong. By default pixels from TFDS are divided by 255, unless the model itself starts "
        "with a rescaling layer.",
    ),
    _data(
        "--samples",
        type=click.IntRange(1),
        default=2048,
        show_default=True,
        help="How many samples to use at most.",
    ),
)
SAMPLES_HELP = (
    "FILE.npz (arrays `x` and, where labels are needed, `y`; or one for each input by its name), "
    "FILE.npy, or tfds:NAME[/SPLIT]."
)
FORCE = click.option("-f", "--force", is_flag=True, help="Replace files that exist.")
SHARE = click.FloatRange(0, 1, max_open=True)
_amount = grouped("How much to remove: one of these")
_limits = grouped("Limits")
AMOUNTS = {  # the argument of `Budget` for each option
    "flops": "flops_reduction",
    "params": "params_reduction",
    "memory": "memory_reduction",
    "cache": "cache_reduction",
    "latency": "latency_reduction",
    **{name: name for name in ("ratio", "ratios", "widths")},
}
amount_options = all_of(
    _amount("--flops", type=SHARE, help="Share of the FLOPs, such as 0.5."),
    _amount("--params", type=SHARE, help="Share of the parameters."),
    _amount("--memory", type=SHARE, help="Share of the bytes of all activations."),
    _amount("--cache", type=SHARE, help="Share of the bytes of keys and values of each token."),
    _amount("--ratio", type=SHARE, help="Share of the channels of every group."),
    _amount(
        "--ratios",
        metavar="LAYER=SHARE,...",
        help="Shares by layer or pattern, such as conv2=0.3,stage3/*=0.6; other layers stay.",
    ),
    _amount(
        "--widths",
        metavar="LAYER=N,... or MODEL",
        help="How many channels stay, such as conv2=24, or a model file of these widths.",
    ),
)
limit_options = all_of(
    _limits("--round-to", type=click.IntRange(1), help="Keep multiples of this many channels."),
    _limits("--target", type=Named(["x86", "arm", "gpu"]), help="Round for this hardware."),
    _limits(
        "--min-channels",
        type=float,
        default=1,
        help="Keep at least this many of a group, or a share.",
    ),
    _limits("--exclude", multiple=True, metavar="NAME", help="Layer or pattern that stays whole."),
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


def chosen_amount(options: dict, names: tuple[str, ...]) -> dict:
    """How much to remove, as an argument of `Budget`: exactly one of the options of these names."""
    given = {name: options[name] for name in names if options[name] is not None}
    if len(given) != 1:
        *most, last = (f"--{name}" for name in names)
        raise click.UsageError(
            f"Say how much to remove by exactly one of {', '.join(most)} and {last}."
        )
    ((name, amount),) = given.items()
    if name == "ratios":
        amount = _by_layer(amount, "--ratios", float)
    elif name == "widths" and "=" in amount:
        amount = _by_layer(amount, "--widths", int)
    return {AMOUNTS[name]: amount}


def with_model(amount: dict, options: dict, console: Console) -> dict:
    """The same amount; where `widths` is the path of a model, with that model."""
    if isinstance(amount.get("widths"), str):
        path = Path(amount["widths"])
        amount = {"widths": load_model(path, options["custom_objects"], options["unsafe"], console)}
    return amount


def _by_layer(text: str, option: str, number) -> dict[str, float]:
    """`"conv2=24,stage3/*=60"` as numbers by name."""
    try:
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        return {name.strip(): number(value) for name, value in pairs}
    except ValueError:
        example = "conv2=0.3,stage3/*=0.6" if number is float else "conv2=24,stage3/*=60"
        raise click.UsageError(f"Expected {option} such as {example}. Received: {text!r}") from None


def limits(options: dict) -> dict:
    """Arguments of `Budget` from `limit_options`."""
    return {name: options[name] for name in ("round_to", "min_channels", "target", "exclude")}
