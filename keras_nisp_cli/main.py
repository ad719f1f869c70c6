"""`keras-nisp`: the group of commands, and what becomes of errors."""

import contextlib
import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator

import click

from keras_nisp_cli.console import Console
from keras_nisp_cli.options import Option, did_you_mean

# Modules are imported when their command is called.
COMMANDS = {
    "inspect": ("inspecting", "Layers, coupled groups, costs; what can be pruned, and what not."),
    "prune": ("pruning", "Remove channels of a model and save the smaller one."),
    "merge": ("merging", "Plan channels for C-SGD to make identical, to be merged after it."),
    "apply": ("pruning", "Apply a plan to a model."),
    "sensitivity": ("sensitivity", "Accuracy against the share of channels removed, by group."),
    "export": ("exporting", "Write a model for TF Serving, TFLite or ONNX, and check it."),
    "benchmark": ("benchmarking", "Latency in the TFLite interpreter, of one model or two."),
    "diff": ("diffing", "What differs between two models: widths, costs, outputs."),
}


def _output_option(*names: str, help: str) -> click.Option:
    """A flag of every command that says how the console prints."""

    def note(ctx, param, value):
        if value:
            setattr(ctx.find_object(Console), param.name, True)

    return Option(names, is_flag=True, expose_value=False, callback=note, help=help, group="Output")


OUTPUT_OPTIONS = [
    _output_option("--json", "as_json", help="Print the outcome as JSON, nothing else."),
    _output_option("-q", "--quiet", help="Print nothing but warnings and errors."),
    _output_option("--wide", help="Tables with all layers and columns, wider than the terminal."),
    _output_option("--traceback", help="Show where an error comes from."),
]


class Commands(click.Group):
    """Commands by name; only the one that is called is imported."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"keras_nisp_cli.{COMMANDS[name][0]}")
        command = getattr(module, name)
        command.params += [option for option in OUTPUT_OPTIONS if option not in command.params]
        return command

    def resolve_command(self, ctx, args):
        if args and args[0] not in COMMANDS:
            ctx.fail(f"No such command '{args[0]}'.{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _version(ctx, param, value):
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"keras-nisp {version('keras-nisp')}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version)
@click.pass_context
def cli(ctx):
    """Make Keras models smaller and ship them.

    \b
    keras-nisp inspect model.keras
    keras-nisp prune model.keras --calibration data.npz --flops 0.5 -o small.keras
    keras-nisp export small.keras --tflite small.tflite

    Exit codes: 0 done, 1 a failure inside, 2 something wrong with the arguments, data or files,
    130 interrupted. Nothing is overwritten without --force.
    """
    ctx.ensure_object(Console)


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that half-written files are taken away
    console = Console()
    with _errors(console):
        cli(prog_name="keras-nisp", standalone_mode=False, obj=console)


def _interrupt(number, frame):
    raise KeyboardInterrupt


@contextlib.contextmanager
def _errors(console: Console) -> Iterator[None]:
    """Turns errors into a sentence and an exit code."""
    warnings.showwarning = _show_warning
    try:
        yield
    except (KeyboardInterrupt, click.Abort) as stop:
        # click takes the end of a file for the end of the keyboard's input.
        if isinstance(stop.__cause__, EOFError):
            _fail(f"A file ends too early: {stop.__cause__}", 2)
        _fail("Interrupted. No half-written file remains.", 130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if console.traceback:
            raise
        expected = isinstance(error, (ValueError, TypeError, OSError, ImportError))
        if expected or _is_about_files(error):
            _fail(str(error) or type(error).__name__, 2)
        _fail(f"{type(error).__name__}: {error} (--traceback shows where)", 1)


def _is_about_files(error: Exception) -> bool:
    """Whether an error of TensorFlow or HDF5 is one of the disk; they have classes of their own."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
    return any(os.strerror(code) in str(error) for code in codes)


def _show_warning(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, (DeprecationWarning, FutureWarning)):
        return
    click.echo(f"Warning: {message}", err=True)


def _fail(text: str, code: int) -> None:
    click.echo(f"Error: {text}", err=True)
    sys.exit(code)
