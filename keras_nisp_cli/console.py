"""What the commands print: text for people, or JSON for programs."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator

import click


class InputError(click.ClickException):
    """Something wrong with a file or with data."""

    exit_code = 2


class Console:
    """Where a command's words go: its outcome to standard output, all else to standard error.

    Attributes:
        as_json: print the outcome as JSON, and no text.
        wide: show all layers and columns, however wide a table gets.
        quiet: print nothing.
        traceback: show where errors come from, and what TensorFlow's C++ parts print.
    """

    def __init__(self):
        self.as_json = self.quiet = self.traceback = self.wide = False

    def say(self, text: str) -> None:
        """Prints a line of the outcome for people."""
        if not self.as_json and not self.quiet:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # which may lack characters
            click.echo(text.encode(encoding, "replace").decode(encoding))

    def next(self, *words: object) -> None:
        """Prints a command to go on with."""
        self.say(f"next: {shlex.join(map(str, words))}")

    def result(self, data: dict) -> None:
        """Prints the outcome for programs."""
        if self.as_json:
            click.echo(json.dumps(data, indent=1))

    @property
    def shows_progress(self) -> bool:
        """Whether somebody looks on who waits."""
        return sys.stderr.isatty() and not self.quiet and not self.as_json

    @contextlib.contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Shows what is being done while it lasts."""
        if not self.shows_progress:
            yield
            return
        from rich.console import Console as RichConsole

        with RichConsole(stderr=True).status(text):
            yield

    @contextlib.contextmanager
    def watching(self) -> Iterator[int]:
        """Gives `verbose` for the library; its progress bars go to standard error."""
        if not self.shows_progress:
            yield 0
            return
        with contextlib.redirect_stdout(sys.stderr):
            yield 1
