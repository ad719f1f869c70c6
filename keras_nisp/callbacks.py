"""NISPPruner: pruning while a model trains."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_nisp.budget import Budget
from keras_nisp.channels import ChannelMap
from keras_nisp.importance import NISP
from keras_nisp.importance.base import Importance, as_importance
from keras_nisp.plan import Plan
from keras_nisp.planning import choose, describe
from keras_nisp.schedules import PolynomialSchedule, ScheduleReader
from keras_nisp.surgery import rebuild_traced
from keras_nisp.tracing import trace
from keras_nisp.unit_map import UnitMap
from keras_nisp.verification import read_mask


class NISPPruner(keras.callbacks.Callback):
    """Prunes a model while it trains, then builds the smaller one.

    At each pruning step of the schedule the channels are scored anew on the current
    weights and the least important are masked: the kernel slices that read them are held
    at zero inside the compiled train step, until the end of training. What is masked
    stays masked. After `fit`, `pruned_model` is physically smaller and gives what the
    trained masked model gives.

    Callbacks that write logs (`CSVLogger`, `TensorBoard`) go after this one in the list;
    they then record `channels_removed` and `flops_left` (shares) for each epoch.

    Args:
        calibration: samples for NISP, as for `keras_nisp.NISP`.
        ratio, flops_reduction, params_reduction: what to remove in the end, one of them,
            as for `plan_pruning`.
        schedule: `step -> amount` or `step -> (should_prune, amount)`, such as
            `PolynomialSchedule` or the schedules of
            `tensorflow_model_optimization.sparsity.keras`. Its amounts are those of the
            budget that is given (a share of the channels with `ratio`), cut at the
            target. By default the amount grows by a cubic over the first half of
            training in ten pruning steps.
        importance: used instead of NISP, such as `Magnitude()`; needs no `calibration`.
        ranking, round_to, min_channels, exclude, whole_groups: as for `plan_pruning`.
        verbose: 1 prints a line at each pruning step.

    Attributes:
        plan: the `Plan`, after training.
        pruned_model: the smaller model, after training.

    Raises:
        ValueError: the arguments are wrong, or the budget cannot be met; at the start
            of training, before any step.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.ones((64, 4)) * np.arange(64)[:, None] / 64, np.ones((64, 3))
    >>> pruner = NISPPruner(x, ratio=0.5, verbose=0)
    >>> _ = model.fit(x, y, epochs=4, verbose=0, callbacks=[pruner])
    >>> pruner.pruned_model.layers[0].units
    4

    Source: Yu et al., "NISP", CVPR 2018; the gradual schedule is that of Zhu and Gupta,
    2017.
    """

    def __init__(
        self,
        calibration: Any = None,
        *,
        ratio: float | None = None,
        flops_reduction: float | None = None,
        params_reduction: float | None = None,
        schedule: Callable | None = None,
        importance: Importance | Callable | None = None,
        ranking: str = "local",
        round_to: int = 1,
        min_channels: int | float = 1,
        exclude=(),
        whole_groups=(),
        verbose: int = 1,
    ):
        super().__init__()
        if (calibration is None) == (importance is None):
            raise ValueError(
                "Expected either `calibration` data for NISP or another `importance`. Received "
                + ("neither." if calibration is None else "both.")
            )
        if schedule is not None and not callable(schedule):
            raise TypeError(f"Expected `schedule` to be callable. Received: {schedule!r}")
        self.importance = as_importance(NISP(calibration) if importance is None else importance)
        self.budget = Budget(
            ratio=ratio,
            flops_reduction=flops_reduction,
            params_reduction=params_reduction,
            ranking=ranking,
            round_to=round_to,
            min_channels=min_channels,
            exclude=exclude,
        )
        self.whole_groups = whole_groups
        self.schedule = schedule
        self.verbose = verbose
        self.plan: Plan | None = None
        self.pruned_model: keras.Model | None = None
        self._map: ChannelMap | None = None

    def on_train_begin(self, logs=None):
        self._map = trace(self.model, whole_groups=self.whole_groups)
        # What is wrong with the data or the budget is said now, not in the middle of training.
        _, self._solver, self._scores = choose(self._map, self.importance, self.budget)
        self._removed = np.zeros(self._map.count, bool)
        self._reached = 0.0
        self._reader = ScheduleReader(self.schedule or self._default_schedule(), self.budget.amount)
        self._reader.next_step = self._step()
        self._masks = _Masks(self._map)
        # A train step that an earlier `fit` compiled knows nothing of the masks.
        self.model.make_train_function(force=True)
        self._prune_if_due()

    def on_train_batch_end(self, batch, logs=None):
        self._prune_if_due()

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self._progress())

    def on_train_end(self, logs=None):
        self.finish()

    def finish(self) -> keras.Model:
        """Ends pruning: takes the masks off and builds `plan` and `pruned_model`.

        `fit` calls it at its end. After a `fit` that was interrupted, call it yourself.

        Returns:
            The pruned model.
        """
        if self._map is None:
            raise ValueError("Expected `finish` after the start of training. Call `fit` first.")
        self._masks.apply()  # an average of weights may have been put in their place
        self._masks.remove()
        self.model.train_function = None
        if self._reached < self.budget.amount:
            warnings.warn(
                f"The schedule ended at {self.budget.kind}={self._reached:g}; the target "
                f"{self.budget.amount:g} was not reached.",
                stacklevel=3,
            )
        unit_map = UnitMap.removing(self._removed)
        self.plan = describe(
            self._map,
            unit_map,
            self.importance.name,
            self.budget.with_amount(self._reached),
            self._solver,
            self._scores,
        )
        self.pruned_model = rebuild_traced(self._map, unit_map, optimizer_state=True)
        return self.pruned_model

    def _default_schedule(self) -> PolynomialSchedule:
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if not steps:
            raise ValueError(
                "The number of steps of an epoch is unknown, so there is no default schedule. Pass "
                "`schedule=PolynomialSchedule(...)`, or `steps_per_epoch=` to `fit`."
            )
        begin = self._step()
        length = max(steps * epochs // 2, 1)
        frequency = max(length // 10, 1)
        return PolynomialSchedule(self.budget.amount, begin, begin + length, frequency=frequency)

    def _step(self) -> int:
        return int(self.model.optimizer.iterations)

    def _prune_if_due(self) -> None:
        step = self._step()
        amount = self._reader.due(step, self._reached)
        if amount is None:
            return
        self._removed, self._solver, self._scores = choose(
            self._map, self.importance, self.budget.with_amount(amount), self._removed
        )
        self._reached = amount
        self._masks.update(self._removed)
        if self.verbose:
            progress = ", ".join(f"{k} {v:.3f}" for k, v in self._progress().items())
            print(f"\nstep {step}: pruned to {self.budget.kind}={amount:.3f}: {progress}")

    def _progress(self) -> dict[str, float]:
        costs, free = self._solver.costs, self._map.free
        left = costs.flops(~self._removed) / max(costs.flops(costs.everything), 1)
        return {"channels_removed": float(self._removed[free].mean()), "flops_left": left}


class _Masks:
    """Holds kernel slices that read removed channels at zero, by variable constraints."""

    def __init__(self, channel_map: ChannelMap):
        self.bindings = [
            b
            for b in channel_map.bindings.values()
            if any(channel_map.free[b.axes[axis]].any() for axis in b.read)
        ]
        everything = np.ones(channel_map.count, bool)
        self.masks = [
            keras.Variable(read_mask(b, everything), trainable=False, dtype=b.variable.dtype)
            for b in self.bindings
        ]
        self.originals = [_own_constraint(b.variable) for b in self.bindings]
        for binding, mask, own in zip(self.bindings, self.masks, self.originals, strict=True):
            binding.variable.constraint = _MaskConstraint(mask, own)

    def update(self, removed: np.ndarray) -> None:
        """Masks what is removed, at once and in the steps to come."""
        for binding, mask in zip(self.bindings, self.masks, strict=True):
            mask.assign(read_mask(binding, ~removed))
        self.apply()

    def apply(self) -> None:
        for binding, mask in zip(self.bindings, self.masks, strict=True):
            binding.variable.assign(binding.variable * mask)

    def remove(self) -> None:
        """Gives the variables their own constraints back."""
        for binding, constraint in zip(self.bindings, self.originals, strict=True):
            binding.variable.constraint = constraint


class _MaskConstraint(keras.constraints.Constraint):
    """The user's own constraint, then the mask."""

    def __init__(self, mask: keras.Variable, inner):
        self.mask = mask
        self.inner = inner

    def __call__(self, w):
        w = w if self.inner is None else self.inner(w)
        return w * self.mask


def _own_constraint(variable: keras.Variable):
    """The user's constraint, without a mask that an interrupted `fit` left behind."""
    constraint = variable.constraint
    return constraint.inner if isinstance(constraint, _MaskConstraint) else constraint
