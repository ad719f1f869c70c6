"""Progress bars of everything that takes `verbose`."""

import time

import keras

PATIENCE = 1.0  # seconds: what takes less shows no bar


class Progress:
    """A bar that counts work, and appears once that has taken a second.

    Args:
        total: how much there is to do.
        verbose: 0 never shows it.
        unit: what is counted.
    """

    def __init__(self, total: int, verbose: int, unit: str = "step"):
        self.total, self.verbose = total, verbose
        self.bar = keras.utils.Progbar(total, unit_name=unit)
        self.started = time.monotonic()

    def update(self, done: int, last: bool | None = None) -> None:
        """Shows how much is done.

        Args:
            done: the amount.
            last: whether nothing more follows; by default, whether all is done.
        """
        if self.verbose and time.monotonic() - self.started >= PATIENCE:
            self.bar.update(min(done, self.total), finalize=last)
