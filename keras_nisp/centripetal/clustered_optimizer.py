"""What the optimizers of C-SGD share: the plan, the strength, and how they are saved."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_nisp.centripetal.cluster_mean import ClusteredVariables
from keras_nisp.errors import warn
from keras_nisp.keras_graph import keras_training
from keras_nisp.plans.forecast import Forecast, Settings, forecast, learning_rates
from keras_nisp.plans.plan import Plan, check_is_plan

# Steps over which a schedule is looked at when their number is not given.
ASSUMED_STEPS = 100_000


class ClusteredOptimizer(keras.optimizers.Optimizer):
    """An optimizer with a plan and a strength, which are saved with it."""

    plan: Plan
    settings: Settings
    _clustered: ClusteredVariables  # once it is built

    @property
    def steps(self) -> int | None:
        """Number of optimizer steps, for `strength="auto"`."""
        return self.settings.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self.settings = dataclasses.replace(self.settings, steps=steps)

    def forecast(self, steps: int | None = None, start: int = 0) -> Forecast:
        """Predicts the deviation in `steps` steps from step `start`.

        See `Plan.check`.
        """
        steps = steps or self.steps
        if not steps:
            raise ValueError(f"Expected `steps`, the number of training steps. Received: {steps}")
        rate = keras_training.learning_rate_of(self._stepper())
        rate = rate_of_pulls(rate, self._batches_per_pull())
        return forecast(self.settings, rate, steps, start)

    def pulls(self, batches: int) -> int:
        """How many steps move clusters in a number of batches."""
        return batches // self._batches_per_pull()

    def pulls_done(self, more: int = 0) -> int:
        """How many steps have moved clusters so far, or will have after `more` batches."""
        return self.pulls(keras_training.batches_seen(self._stepper()) + more)

    def _stepper(self) -> keras.optimizers.Optimizer:
        """The optimizer that has the learning rate and counts steps."""
        return self

    def _batches_per_pull(self) -> int:
        return 1

    def _own_config(self) -> dict:
        """The settings that a plain optimizer does not have."""
        names = ("strength", "steps", "tolerance", "vector_strength", "preset", "collapse")
        own = {name: getattr(self.settings, name) for name in names}
        return {**own, "plan": self.plan.to_dict()}

    def _level_averages(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Gives members the mean of their moving averages, which else remember how far apart they
        were at first. (The mean of averages is the average of means.)"""
        if optimizer.use_ema:
            averages = keras_training.moving_averages(optimizer)
            rows = [(averages[i], mean) for i, (_, mean) in self._clustered.rows.items()]
            keras_training.update_replicas(self, lambda x, mean: x.assign(mean(x.value())), rows)

    # The plan lies beside the slots: weights alone (as `BackupAndRestore` keeps them) bring the
    # clusters back with which a run began.

    def save_own_variables(self, store: dict) -> None:
        super().save_own_variables(store)
        text = json.dumps(self.plan.to_dict()).encode()
        store["plan"] = np.frombuffer(text, np.uint8)

    def load_own_variables(self, store: dict) -> None:
        values = {name: store[name] for name in store.keys()}  # noqa: SIM118
        plan = values.pop("plan", None)
        super().load_own_variables(values)
        if plan is None:
            return
        saved = Plan.from_dict(json.loads(np.asarray(plan).tobytes()))
        if saved.creators != self.plan.creators:
            warn(
                "Training continues with the clusters that were saved with the optimizer, not with "
                "those of the plan that was given: rebuild with `model.optimizer.plan`."
            )
        self.plan = saved
        if self.built:
            self._clustered = ClusteredVariables(saved, self._trainable_variables)


def rate_of_pulls(learning_rate: float | Callable, batches: int) -> float | Callable:
    """The learning rate by the number of the pull: a schedule counts batches, of which several may
    make one pull."""
    if batches == 1 or not callable(learning_rate):
        return learning_rate
    return lambda pull: learning_rate(pull * batches + batches - 1)


def check_settings(plan: Any, settings: Settings, learning_rate) -> None:
    """Raises unless the plan merges and a fixed strength is stable."""
    check_is_plan(plan)
    plan.check_merges()
    if not settings.automatic:
        settings.check_stable(learning_rates(learning_rate, settings.steps or ASSUMED_STEPS))


def plan_from(data) -> Plan:
    return data if isinstance(data, Plan) else Plan.from_dict(data)
