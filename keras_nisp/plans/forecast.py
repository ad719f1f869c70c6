"""The law of C-SGD: how fast the members of a cluster come together.

The mean gradient of a cluster never separates its members, so the deviation d of a member
from the mean obeys, whatever the data,

    m(t+1) = momentum * m(t) - pull(t) * d(t),    d(t+1) = d(t) + m(t+1)

(d(t+1) = d(t) + momentum * m(t+1) - pull(t) * d(t) with Nesterov), where
pull = learning rate * (weight decay + strength). For a constant pull, d shrinks by the
larger root of the characteristic polynomial at every step.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_nisp.io.shown import Shown

TOLERANCE = 1e-5
# `strength="auto"` reaches the tolerance after this share of the steps.
COLLAPSE = 0.8
# Official code: the strength of biases, scales and offsets over that of kernels.
REFERENCE_VECTOR_FACTOR = 0.1
PRESETS = ("paper", "reference")
SAMPLED_STEPS = 4096
OSCILLATING_PULLS = 32  # that are tried for short runs


def largest_stable_pull(momentum: float, nesterov: bool) -> float:
    """The pull at which the deviation no longer shrinks (Jury's criterion)."""
    if momentum and nesterov:
        return 2 * (1 + momentum) / (1 + 2 * momentum)
    return 2 * (1 + momentum)


def fastest_pull(momentum: float, nesterov: bool) -> float:
    """The pull whose larger root is smallest; without Nesterov's step, stronger ones have no
    smaller root, and oscillate."""
    return 1.0 if nesterov else (1 - math.sqrt(momentum)) ** 2


def pull_for(factor: float, momentum: float, nesterov: bool) -> float:
    """The pull by which the deviation shrinks by a factor per step, or the fastest there is."""
    double = 2 * momentum / (1 + momentum) if nesterov else math.sqrt(momentum)  # both roots
    if factor < double:  # roots are complex
        return 1 - factor**2 / momentum if nesterov else fastest_pull(momentum, nesterov)
    divisor = (1 + momentum) * factor - momentum if nesterov else factor
    return (1 - factor) * (factor - momentum) / divisor


def shrinkage(pull: np.ndarray, momentum: float, nesterov: bool) -> np.ndarray:
    """Modulus of the larger root: the factor per step under a constant pull."""
    if nesterov:
        trace, product = (1 + momentum) * (1 - pull), momentum * (1 - pull)
    else:
        trace, product = 1 + momentum - pull, np.full_like(pull, momentum)
    root = np.sqrt((trace**2 - 4 * product).astype(complex))
    return np.maximum(np.abs(trace + root), np.abs(trace - root)) / 2


def deviation_curve(pulls: np.ndarray, momentum: float, nesterov: bool) -> np.ndarray:
    """The deviation after 0, 1, 2... steps, over that at the start."""
    d, m, curve = 1.0, 0.0, [1.0]
    for pull in pulls.tolist():
        step = pull * d
        m = momentum * m - step
        d += momentum * m - step if nesterov else m
        curve.append(d)
    return np.array(curve)


def left_for_good(pulls: np.ndarray, momentum: float, nesterov: bool) -> float:
    """The most that remains of the deviation from the last step on, if the last pull goes on.

    What momentum moves may pass the mean at the last step, and be as far on the other side later.
    """
    further = np.repeat(pulls[-1], len(pulls) // 4 + 1)
    curve = deviation_curve(np.concatenate([pulls, further]), momentum, nesterov)
    return float(np.abs(curve[len(pulls) :]).max())


@functools.cache
def constant_pull(
    steps: int, tolerance: float, collapse: float, momentum: float, nesterov: bool
) -> float:
    """The pull that leaves the tolerance after a share of the steps, in the long run.

    Two equal roots leave more than their modulus says. Where that is too much after all steps, a
    pull is taken under which the members of a cluster oscillate, and which leaves least.
    """
    first = pull_for(tolerance ** (1 / (collapse * steps)), momentum, nesterov)

    def left(pull):
        return left_for_good(np.full(steps, pull), momentum, nesterov)

    if first >= 1 or left(first) <= tolerance:
        return first
    return float(min(np.geomspace(first, 1, OSCILLATING_PULLS), key=left))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings on which the law depends; arguments are those of `CentripetalSGD`."""

    strength: float | str = "auto"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float | None = None
    vector_strength: float | None = None
    preset: str = "paper"
    tolerance: float = TOLERANCE
    steps: int | None = None
    collapse: float = COLLAPSE

    def __post_init__(self):
        for name in ("strength", "vector_strength"):
            value = getattr(self, name)
            if value is None or (name == "strength" and value == "auto"):
                continue
            if isinstance(value, (str, bool)) or not value > 0:
                extra = ' or "auto"' if name == "strength" else ""
                raise ValueError(f"Expected `{name}` above 0{extra}. Received: {value!r}")
        if self.automatic and self.vector_strength is not None:
            raise ValueError(
                "Expected `vector_strength` with a fixed `strength` only: 'auto' pulls all "
                f"variables alike. Received: {self.vector_strength}"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Expected `momentum` in [0, 1). Received: {self.momentum}")
        if self.preset not in PRESETS:
            raise ValueError(f"Expected `preset` to be one of {PRESETS}. Received: {self.preset!r}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"Expected `tolerance` in (0, 1). Received: {self.tolerance}")
        if not 0 < self.collapse <= 1:
            raise ValueError(f"Expected `collapse` in (0, 1]. Received: {self.collapse}")
        if self.steps is not None and (self.steps != int(self.steps) or self.steps < 1):
            raise ValueError(
                f"Expected `steps`, the number of training steps, to be an integer of at least 1. "
                f"Received: {self.steps}"
            )

    @property
    def automatic(self) -> bool:
        return self.strength == "auto"

    def decay(self, is_kernel: bool) -> float:
        """The weight decay of a clustered variable; the official code has none for vectors."""
        return (self.weight_decay or 0.0) if is_kernel or self.preset == "paper" else 0.0

    def strength_of(self, is_kernel: bool) -> float:
        """The strength for kernels, or for biases, scales and offsets."""
        if not is_kernel and self.vector_strength is not None:
            return self.vector_strength
        weaker = not is_kernel and self.preset == "reference"
        return float(self.strength) * (REFERENCE_VECTOR_FACTOR if weaker else 1.0)

    def constant_pull(self) -> float:
        """The pull of `strength="auto"`: the same at every learning rate."""
        if self.steps is None:
            raise ValueError(
                "`strength='auto'` needs to know the number of training steps. Pass `steps=`, or "
                "`callbacks=[CentripetalMonitor(plan)]` to `fit`, which says it."
            )
        return constant_pull(
            self.steps, self.tolerance, self.collapse, self.momentum, self.nesterov
        )

    def pulls(self, rates: np.ndarray, is_kernel: bool) -> np.ndarray:
        """The pull at each step, for learning rates."""
        decay = rates * self.decay(is_kernel)
        if self.automatic:
            return np.where(rates > 0, np.maximum(decay, self.constant_pull()), 0.0)
        return decay + rates * self.strength_of(is_kernel)

    def check_stable(self, rates: np.ndarray) -> None:
        """Raises if a fixed strength would drive the members of a cluster apart."""
        if self.automatic:
            return
        bound = largest_stable_pull(self.momentum, self.nesterov)
        for name, is_kernel in (("strength", True), ("vector_strength", False)):
            pull = float(self.pulls(rates, is_kernel).max())
            if pull >= bound:
                rate = float(rates.max())
                limit = bound / rate - self.decay(is_kernel)
                raise ValueError(
                    f"Expected `{name}` below {limit:.4g}: at learning rate {rate:g} and momentum "
                    f"{self.momentum:g}, stronger pulls drive the members of a cluster apart. "
                    f"Received: {self.strength_of(is_kernel):g}"
                )


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Forecast(Shown):
    """The predicted deviation inside clusters; `print` it.

    Attributes:
        settings: the settings of the optimizer.
        kernels, vectors: the deviation after each step, relative to the start: of kernels,
            and of biases, scales and offsets.
        needed_strength: the smallest constant strength that reaches the tolerance by the
            last step, or `None` if none does.
        largest_strength: the strength from which on training is unstable.
        needed_steps: number of steps that the fastest pull needs.
        pulling_steps: number of steps at which the learning rate is not 0: no others pull.
    """

    settings: Settings
    kernels: np.ndarray
    vectors: np.ndarray
    needed_strength: float | None
    largest_strength: float
    needed_steps: int
    pulling_steps: int

    @property
    def curve(self) -> np.ndarray:
        """The larger of both deviations after each step."""
        return np.maximum(np.abs(self.kernels), np.abs(self.vectors))

    @property
    def final(self) -> float:
        """The remaining deviation after the last step, over that at the start."""
        return float(self.curve[-1])

    @property
    def reached(self) -> int | None:
        """The number of steps after which the tolerance is reached for good."""
        above = np.flatnonzero(self.curve > self.settings.tolerance)
        last = int(above[-1]) if len(above) else -1
        return last + 1 if last + 1 < len(self.curve) else None

    @property
    def collapses(self) -> bool:
        """Whether the tolerance is reached."""
        return self.reached is not None

    def __str__(self) -> str:
        steps, tolerance = len(self.kernels) - 1, self.settings.tolerance
        text = (
            f"After {steps:,} steps, {self.final:.1e} of the deviation remains "
            f"(kernels {abs(self.kernels[-1]):.1e}, vectors {abs(self.vectors[-1]):.1e}): "
        )
        if self.collapses:
            text += f"clusters collapse; {tolerance:g} is reached at step {self.reached:,}."
        else:
            text += f"clusters do NOT collapse to {tolerance:g}."
        if self.needed_strength is not None:
            text += f" A constant strength of {_rounded_up(self.needed_strength):g} does."
        elif self.pulling_steps >= self.needed_steps:
            text += " No constant strength does it, as far as the learning rate falls."
        else:
            few = "so few steps"
            if self.pulling_steps < steps:
                few = f"the {self.pulling_steps:,} steps whose learning rate is not 0"
            text += f" No strength does it in {few}; at least {self.needed_steps:,} are needed."
        return text + f" Strengths from {self.largest_strength:.3g} are unstable."


def _rounded_up(value: float, digits: int = 3) -> float:
    """To so many significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return math.ceil(value / unit) * unit


def check_plan(
    plan, steps, learning_rate, momentum=0.0, strength="auto", nesterov=False, **settings
) -> Forecast:
    """See `Plan.check`."""
    plan.check_merges()
    return forecast(
        Settings(strength, momentum, nesterov, steps=steps, **settings), learning_rate, steps
    )


def forecast(settings: Settings, learning_rate, steps: int, start: int = 0) -> Forecast:
    """The `Forecast` of a number of steps from step `start` of a schedule."""
    rates = learning_rates(learning_rate, start + steps)[start:]
    settings.check_stable(rates)
    momentum, nesterov = settings.momentum, settings.nesterov
    kernels, vectors = (
        deviation_curve(settings.pulls(rates, is_kernel), momentum, nesterov)
        for is_kernel in (True, False)
    )
    fastest = max(_shrinkage_of(fastest_pull(momentum, nesterov), settings), 1e-30)
    return Forecast(
        settings,
        kernels,
        vectors,
        _needed_strength(settings, rates),
        largest_stable_pull(momentum, nesterov) / max(float(rates.max()), 1e-30),
        max(math.ceil(math.log(settings.tolerance) / math.log(fastest)), 2 if momentum else 1),
        int(np.count_nonzero(rates)),
    )


def learning_rates(learning_rate: float | Callable, steps: int) -> np.ndarray:
    """The learning rate at each step; long schedules are sampled and interpolated."""
    if isinstance(learning_rate, keras.optimizers.Optimizer):
        raise TypeError(
            f"Expected `learning_rate` to be a float or a schedule. Received an optimizer, "
            f"{type(learning_rate).__name__}."
        )
    if not callable(learning_rate):
        rates = np.full(steps, float(learning_rate))
    else:
        spread = np.linspace(0, steps - 1, min(steps, SAMPLED_STEPS)).astype(np.int64)
        early = np.arange(min(steps, SAMPLED_STEPS // 4))  # where schedules warm up
        points = np.union1d(early, spread)
        values = _evaluated(learning_rate, points)
        rates = np.interp(np.arange(steps), points, values)
    if not (np.isfinite(rates).all() and (rates >= 0).all() and rates.max() > 0):
        raise ValueError(f"Expected a positive learning rate. Received: {learning_rate!r}")
    return rates


def _evaluated(schedule: Callable, steps: np.ndarray) -> np.ndarray:
    """A schedule at many steps, in one graph: one by one it takes a millisecond each."""

    def rate(step):
        return tf.cast(schedule(step), tf.float32)

    evaluate = tf.function(
        lambda t: tf.map_fn(rate, t, fn_output_signature=tf.float32), autograph=False
    )
    steps = tf.constant(steps)
    return np.asarray(evaluate.get_concrete_function(steps)(steps), np.float64)


def _shrinkage_of(pull: float, settings: Settings) -> float:
    return float(shrinkage(np.array([pull]), settings.momentum, settings.nesterov)[0])


def _needed_strength(settings: Settings, rates: np.ndarray) -> float | None:
    """The strength that is just enough."""
    from scipy.optimize import brentq  # takes a while to import

    def excess(logarithm):
        """Of what is left at the end over the tolerance, as a logarithm."""
        strength = math.exp(logarithm)
        fixed = dataclasses.replace(settings, strength=strength, vector_strength=None)
        weaker = np.minimum(fixed.pulls(rates, False), fixed.pulls(rates, True))
        left = left_for_good(weaker, settings.momentum, settings.nesterov)
        return math.log(max(left, 1e-30) / settings.tolerance)

    low, high = math.log(1e-12), math.log(1 / rates.max())  # stable, and as fast as any
    if excess(high) > 0:
        return None
    if excess(low) <= 0:
        return math.exp(low)
    root = brentq(excess, low, high, xtol=1e-6)
    return math.exp(min(high, root + 1e-6))
