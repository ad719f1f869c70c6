"""Pruning schedules: how much to remove by each step of training."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_nisp.errors import check_number


@keras.saving.register_keras_serializable(package="keras_nisp")
class PolynomialSchedule:
    """Raises the amount from `initial` to `final` between two steps, fast at first.

    The amount at a step is `final + (initial - final) * (1 - t) ** power`, where `t` goes
    from 0 to 1. Unlike TFMOT's `PolynomialDecay`, `end_step` is always a pruning step,
    so that `final` is reached.

    Args:
        final: amount at `end_step` and after, in [0, 1).
        begin_step: first pruning step.
        end_step: last pruning step.
        initial: amount at `begin_step`.
        power: exponent of the formula.
        frequency: number of steps from one pruning step to the next.

    Raises:
        ValueError: amounts outside [0, 1), or steps out of order.

    Example:

    >>> schedule = PolynomialSchedule(0.5, begin_step=0, end_step=250, frequency=100)
    >>> [step for step in range(300) if schedule(step)[0]]
    [0, 100, 200, 250]

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.
    """

    def __init__(
        self,
        final: float,
        begin_step: int,
        end_step: int,
        initial: float = 0.0,
        power: float = 3,
        frequency: int = 100,
    ) -> None:
        for name, amount in (("initial", initial), ("final", final)):
            check_number(name, amount, "in [0, 1)", lambda share: 0 <= share < 1)
        steps = {"begin_step": begin_step, "end_step": end_step, "frequency": frequency}
        for name, count in steps.items():
            check_number(name, count, "that is whole", lambda n: n % 1 == 0)
        if not 0 <= begin_step < end_step:
            raise ValueError(
                "Expected 0 <= begin_step < end_step. Received: "
                f"begin_step={begin_step}, end_step={end_step}"
            )
        if frequency < 1:
            raise ValueError(f"Expected `frequency` of at least 1. Received: {frequency}")
        check_number("power", power, "above 0", lambda exponent: 0 < exponent < math.inf)
        self.final = final
        self.begin_step = begin_step
        self.end_step = end_step
        self.initial = initial
        self.power = power
        self.frequency = frequency

    def __call__(self, step: int) -> tuple[bool, float]:
        """Whether to prune at a step, and the amount to be removed by then."""
        begin, end = self.begin_step, self.end_step
        t = min(max((step - begin) / (end - begin), 0.0), 1.0)
        amount = self.final + (self.initial - self.final) * (1 - t) ** self.power
        due = (step - begin) % self.frequency == 0 or step == end
        return begin <= step <= end and due, amount

    def get_config(self) -> dict:
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: dict) -> "PolynomialSchedule":
        return cls(**config)


def check_length(schedule: Callable | None, params: Mapping[str, Any]) -> None:
    """Raises if there is no schedule, and none can be laid over the length of training.

    Args:
        schedule: the user's, or `None`.
        params: of `fit`, as Keras gives them to callbacks.
    """
    if schedule is None and not (params.get("steps") and params.get("epochs")):
        raise ValueError(
            "The number of steps of an epoch is unknown, so there is no default schedule. Pass "
            "`schedule=PolynomialSchedule(...)`, or `steps_per_epoch=` to `fit`."
        )


def default_span(step: int, left: int, span: tuple[int, int] | None) -> tuple[int, int]:
    """First and last step of the default schedule: the first half of the remaining steps.

    Args:
        step: the present one.
        left: how many are to come.
        span: what was laid before. It stays, unless it would end after training.
    """
    begin, end = span or (step, step + max(left // 2, 1))
    return begin, end if end <= step + left else step + max(left // 2, 1)


def default_schedule(amount: float, span: tuple[int, int]) -> PolynomialSchedule:
    """Up to an amount by a cubic, in ten pruning steps."""
    begin, end = span
    return PolynomialSchedule(amount, begin, end, frequency=max((end - begin) // 10, 1))


class ScheduleReader:
    """Asks a schedule at every step of training, once.

    Args:
        schedule: `step -> amount`, or `step -> (should_prune, amount)` as TFMOT's
            schedules. One that gives the amount alone prunes when it grows.
        limit: amounts are cut at this.
    """

    def __init__(self, schedule: Callable, limit: float):
        self.schedule = schedule
        self.limit = limit
        self.next_step = 0
        self.started = False
        self.last = 0.0

    @property
    def position(self) -> tuple[int, bool, float]:
        """How far the schedule was read; assign it to resume from there."""
        return self.next_step, self.started, self.last

    @position.setter
    def position(self, position: tuple[int, bool, float]) -> None:
        self.next_step, self.started, self.last = position

    def due(self, step: int, reached: float) -> float | None:
        """The amount to prune to now, or `None`.

        Args:
            step: number of batches done; several may have passed since the last call.
            reached: amount pruned so far.
        """
        amount = None
        for passed in range(self.next_step, step + 1):
            due, value = self._ask(passed)
            # A schedule whose last pruning step lies before its final value (TFMOT's, if
            # frequency does not divide its length) has settled: take that value too.
            settled = self.started and value == self.last
            if due or (settled and value > reached):
                amount = value
            self.started |= due
            self.last = value
        self.next_step = max(self.next_step, step + 1)
        return amount if amount is not None and amount > reached else None

    def _ask(self, step: int) -> tuple[bool, float]:
        answer = self.schedule(step)
        due, value = answer if isinstance(answer, tuple) and len(answer) == 2 else (True, answer)
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                "Expected the schedule to give an amount, or (should_prune, amount). Received: "
                f"{answer!r} at step {step}"
            ) from None
        if not 0 <= value < 1:
            raise ValueError(
                f"Expected the schedule to give amounts in [0, 1). Received: {value} at step {step}"
            )
        return bool(due), min(value, self.limit)
