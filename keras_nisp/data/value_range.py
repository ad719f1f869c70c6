"""Whether samples are in the range that a model was trained on: 0 to 255, or 0 to 1?"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.channels.registry import rule_of
from keras_nisp.channels.rule import Normalisation
from keras_nisp.channels.tracing import trace_quietly
from keras_nisp.data.samples import Samples
from keras_nisp.errors import DataRangeWarning, warn
from keras_nisp.keras_graph import calling, walking

LARGEST_RATIO = 8.0  # other data of the same kind differ by less, another range by 255
CHECKED = 32
FEWEST = 8  # values of a channel that tell anything

_said: contextvars.ContextVar[set | None] = contextvars.ContextVar("said", default=None)


@contextlib.contextmanager
def warned_once() -> Iterator[None]:
    """While it lasts, `warn_of_range` says the same thing once only."""
    token = _said.set(set()) if _said.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _said.reset(token)


def warn_of_range(model: keras.Model, samples: Samples) -> None:
    """Warns where samples seem to be in another range than the model was trained on.

    Args:
        model: a functional or Sequential model.
        samples: from `keras_nisp.data.collect`.
    """
    problem, said = check_range(model, samples), _said.get()
    if problem is None or (said is not None and problem in said):
        return
    if said is not None:
        said.add(problem)
    warn(f"Calibration data: {problem}", DataRangeWarning)


def starts_with_rescaling(model: keras.Model) -> bool:
    """Whether a layer rescales values before one with weights takes them."""
    for call in trace_quietly(model).calls:
        if rule_of(call.layer).rescales:
            return True
        if call.weights:
            return False
    return False


@dataclasses.dataclass(frozen=True)
class OddRange:
    """What is odd about the range of samples; `str` says it in a sentence.

    Attributes:
        found: what there is, and why it is odd.
        advice: what to do.
        divisor: what samples seem to need dividing by.
    """

    found: str
    advice: str
    divisor: float

    def __str__(self) -> str:
        return f"{self.found} {self.advice}"


def check_range(model: keras.Model, samples: Samples) -> OddRange | None:
    """What is odd about the range of samples; `None` if nothing is.

    The statistics of the first BatchNormalization tell what entered it in training. A model
    without one says nothing, unless images look like pixels from 0 to 255 and nothing rescales
    them.

    Args:
        model: a functional or Sequential model.
        samples: from `keras_nisp.data.collect`.
    """
    numbers = [array[:CHECKED] for array in samples.inputs if array.dtype.kind not in "USO"]
    if not numbers:
        return None
    beginning = _Beginning(model, samples)
    if beginning.ratio is not None:
        ratio = beginning.ratio
        if ratio > LARGEST_RATIO or ratio < 1 / LARGEST_RATIO:
            low, high = _range(numbers)
            change = f"divided by {ratio:.3g}" if ratio > 1 else f"times {1 / ratio:.3g}"
            return OddRange(
                f"values from {low:g} to {high:g} seem to be in another range than the model was "
                f"trained on: what enters its first BatchNormalization is {ratio:.3g} times as "
                "large as in training.",
                f"Pass samples as they were in training, {change}, say.",
                ratio,
            )
        return None
    if beginning.rescales:
        return None
    for low, high in (_range([array]) for array in numbers if _is_image(array)):
        if low >= 0 and 100 < high <= 255:
            return OddRange(
                f"values from {low:g} to {high:g} look like pixels, but nothing in the model "
                "rescales them.",
                "If it was trained on values from 0 to 1, pass samples divided by 255.",
                255,
            )
    return None


def _range(arrays: list[np.ndarray]) -> tuple[float, float]:
    return min(float(x.min()) for x in arrays), max(float(x.max()) for x in arrays)


def _is_image(array: np.ndarray) -> bool:
    return array.ndim == 4 and array.shape[-1] in (1, 3, 4) and array.dtype.kind == "f"


class _Found(Exception):  # noqa: N818
    """Ends a walk."""


class _Beginning:
    """What the first layers of a model tell about the range of its inputs.

    Attributes:
        ratio: root mean square of what enters the first BatchNormalization, over that in training;
            `None` where there is none, or it was hardly trained.
        rescales: whether values are rescaled or looked up before the first layer with weights.
    """

    def __init__(self, model: keras.Model, samples: Samples):
        self.ratio: float | None = None
        self.rescales = False
        self._weights_seen = False
        inputs, _ = next(samples.first(CHECKED).batches(CHECKED))
        with contextlib.suppress(_Found), calling.fresh_states(model):
            walking.walk(model, inputs, self._visit)

    def _visit(self, site, args, kwargs):
        layer, rule = site.operation, rule_of(site.operation)
        if normalisation := rule.normalisation(layer):
            self.ratio = _ratio(normalisation, args[0] if args else kwargs["inputs"])
            self.rescales = True  # this normalises whatever comes
            raise _Found
        if not self._weights_seen:
            self.rescales |= rule.rescales
            self._weights_seen = bool(getattr(layer, "weights", ()))
        return calling.infer(layer, *args, **kwargs)


def _ratio(known: Normalisation, x: tf.Tensor) -> float | None:
    mean, variance = (np.asarray(v, np.float64) for v in (known.mean, known.variance))
    if np.all(mean == 0) and np.all(variance == 1):
        return None  # never trained
    rank = len(x.shape)
    if math.prod(x.shape) < FEWEST * x.shape[known.axis]:
        return None
    axes = [axis for axis in range(rank) if axis != known.axis % rank]
    moments = tf.nn.moments(tf.cast(x, tf.float32), axes)
    now, spread = (np.asarray(moment, np.float64) for moment in moments)
    # After few steps the statistics still lie between those at the start, 0 and 1, and these.
    share = (1 - variance) / np.where(spread == 1, np.inf, 1 - spread)
    near = np.abs(mean - share * now) <= 0.3 * np.abs(share) * np.sqrt(spread + now**2)
    if np.mean((share > 0) & (share < 1) & near) > 0.5:
        return None
    expected = np.maximum(mean**2 + variance, 1e-12)
    return float(np.sqrt(np.median((now**2 + spread) / expected))) or None
