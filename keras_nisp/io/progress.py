"""Progress bars of everything that takes `verbose`."""

import sys
import time

import keras

PATIENCE = 1.0  # seconds: what takes less shows no bar


class Progress:
    """A bar that counts work, and appears once that has taken a second, if somebody looks on.

    Args:
        total: how much there is to do.
        verbose: 0 never shows it.
        text: what is being done; stands above the bar.
        unit: what is counted.
    """

    def __init__(self, total: int, verbose: int, text: str, unit: str = "step"):
        self.total, self.text = total, text
        self.shows, self.begun = bool(verbose) and is_watched(), False
        self.bar = keras.utils.Progbar(total, unit_name=unit)
        self.started = time.monotonic()

    def update(self, done: int, last: bool | None = None) -> None:
        """Shows how much is done.

        Args:
            done: the amount.
            last: whether nothing more follows; by default, whether all is done.
        """
        if not self.shows or time.monotonic() - self.started < PATIENCE:
            return
        if not self.begun:
            self.begun = True
            print(self.text)
        self.bar.update(min(done, self.total), finalize=last)


def is_watched() -> bool:
    """Whether what is printed goes to a terminal or a notebook: a bar in a file is noise."""
    terminal = getattr(sys.stdout, "isatty", lambda: False)()
    return terminal or "ipykernel" in sys.modules
