"""What the commands print: text for people, or JSON for programs."""

import contextlib
import json
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
        quiet: print nothing.
        traceback: show where errors come from, and what TensorFlow's C++ parts print.
    """

    def __init__(self):
        self.as_json = self.quiet = self.traceback = False

    def say(self, text: str) -> None:
        """Prints a line of the outcome for people."""
        if not self.as_json and not self.quiet:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # which may lack characters
            click.echo(text.encode(encoding, "replace").decode(encoding))

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
    def progress(self, text: str) -> Iterator:
        """Gives a function to call with how many steps are done, of how many."""
        from rich import progress
        from rich.console import Console as RichConsole

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
        )
        console, hidden = RichConsole(stderr=True), not self.shows_progress
        with progress.Progress(*columns, console=console, disable=hidden, transient=True) as bar:
            task = bar.add_task(text, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
