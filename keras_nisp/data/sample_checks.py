"""Whether calibration samples are enough, and of more than one kind."""

from typing import Any

import keras
import numpy as np

from keras_nisp.data.samples import Samples
from keras_nisp.errors import warn

FEWEST = 64
WISH = f"Expected at least {FEWEST}, better a few hundred."


def warn_of_kind(samples: Samples) -> None:
    """Warns where samples are too few to say anything of others, or all have the same label.

    Args:
        samples: from `keras_nisp.data.collect`.
    """
    if len(samples) < FEWEST:
        warn(
            f"Calibration data are too few: scores and refits will not generalize. {WISH} "
            f"Received: {len(samples)}."
        )
    elif _have_one_label(samples.labels):
        warn(
            f"Calibration data: all {len(samples):,} samples have the same label, so they do not "
            "show what tells it from others. Pass samples of several labels; shuffle a dataset, of "
            "which the first are taken."
        )


def _have_one_label(labels: Any) -> bool:
    """Whether there is a class for each sample, as an index or one-hot, always the same."""
    arrays = [np.asarray(part) for part in keras.tree.flatten(labels)]
    if len(arrays) != 1 or arrays[0].ndim not in (1, 2) or arrays[0].dtype == object:
        return False
    return bool((arrays[0] == arrays[0][:1]).all())


def check_varied(samples: Samples, name: str) -> None:
    """Raises where there is a single sample, of which nothing can vary.

    Args:
        samples: of an importance.
        name: of the importance.
    """
    if len(samples) < 2:
        raise ValueError(
            f"Expected several calibration samples for {name}, which ranks channels by how their "
            f"responses vary. {WISH} Received: 1."
        )
