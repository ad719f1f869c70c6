"""NISPPruner: pruning while a model trains."""

import os
from collections.abc import Callable
from typing import Any, Unpack

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.tracing import InputShape, WholeGroups, trace
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.errors import check_function, each_once, warn
from keras_nisp.importance import NISP
from keras_nisp.importance.base import Importance, as_importance, supplied, without_data
from keras_nisp.keras_graph import keras_training
from keras_nisp.keras_graph.replicas import check_fit
from keras_nisp.plans.budget import Budget, BudgetKeywords, as_budget, lists_budget
from keras_nisp.plans.describing import describe
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.planning import choose
from keras_nisp.plans.recipe import recipe
from keras_nisp.pruning.pruner_masks import Masks, warn_of_other_weights
from keras_nisp.pruning.pruner_state import PrunerState, batches_of
from keras_nisp.pruning.schedules import (
    ScheduleReader,
    check_length,
    default_schedule,
    default_span,
)
from keras_nisp.surgery.rebuilding import rebuild_traced


class NISPPruner(keras.callbacks.Callback):
    """Prunes a model while it trains, then builds the smaller one.

    At each pruning step of the schedule the channels are scored on the current weights and the
    least important are masked until the end of training, inside the compiled step: kernels read
    them as zero, and layers that take statistics over channels or add them up leave them out.
    This holds in `evaluate` and `predict`, too. After `fit`, `pruned_model` is physically smaller
    and gives what the trained masked model gives. The model itself stays as it was trained: its
    kernels hold zeros, and such layers keep leaving out removed channels until `release`. A saved
    file or a copy of the model does not leave them out: save `pruned_model`.

    A run that is killed and restored by `BackupAndRestore` ends as if nothing had happened: while
    the model is pruned, its checkpoints hold the removed channels and the position in the
    schedule. For files of `ModelCheckpoint` there is `resume`. Several calls of `fit` with the
    same pruner continue where the last one ended; for another model it starts from the beginning.

    In a loop of your own, call `set_model(model)`, `on_train_begin()`, `on_train_batch_end(i)`
    after each batch and `on_train_end()`, with `schedule=` given.

    Callbacks that write logs (`CSVLogger`, `TensorBoard`) go after this one in the list;
    they then record `channels_removed` and `flops_left` (shares) for each epoch.

    Args:
        calibration: samples for the importance, as for `NISP`, unless it was given some.
        budget: a `Budget`: how much to remove by the end. `widths` are not possible, since they
            cannot be reached step by step. A latency budget uses only the latencies of its table;
            the whole model is not measured.
        schedule: `step -> amount` or `step -> (should_prune, amount)`, such as
            `PolynomialSchedule` or the schedules of
            `tensorflow_model_optimization.sparsity.keras`. A step is a batch; batches that the
            optimizer has seen before count. Amounts have the unit of the budget (a share of the
            channels with `ratio`; the largest ratio with `ratios`, which keep their proportions),
            and are limited to the target. By default the amount grows by a cubic over the first
            half of training in ten pruning steps.
        importance: an `Importance` such as `Magnitude()`, which needs no `calibration`. By default
            `NISP()`.
        whole_groups, input_shape: as for `plan_pruning`.
        verbose: 1 prints a line at each pruning step.
        **keywords: the arguments of `Budget`, instead of `budget`: `ratio=0.5`,
            `flops_reduction=0.5`, `exclude="stem"` and so on. `allocation="auto"` is `"uniform"`
            here. `"predicted"` and `"measured"` take damages again at each pruning step, on
            `calibration` and the current weights, although no kernels are refitted in training. A
            table of `sensitivity` describes the network before training.

    Attributes:
        plan: the `Plan`, after training.
        pruned_model: the smaller model, after training. It is built from the model's weights when
            it is first used.

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

    @lists_budget
    def __init__(
        self,
        calibration: Any = None,
        *,
        budget: Budget | None = None,
        schedule: Callable | None = None,
        importance: Importance | Callable | None = None,
        whole_groups: WholeGroups = (),
        input_shape: InputShape | None = None,
        verbose: int = 1,
        **keywords: Unpack[BudgetKeywords],
    ) -> None:
        super().__init__()
        importance = as_importance(NISP() if importance is None else importance)
        if calibration is not None and not without_data(importance):
            raise ValueError(
                "Expected `calibration` for an importance that looks at data and was given none. "
                f"Received both, and {importance.name} takes no more."
            )
        if schedule is not None:
            check_function("schedule", schedule)
        self.importance = supplied(importance, calibration)
        self.budget = as_budget(budget, keywords, NISPPruner)
        if self.budget.kind == "widths":
            raise ValueError(
                "Expected a budget that can be reached step by step. Received: `widths`, which say "
                "what stays in the end. Give `ratios`, the share to remove by layer."
            )
        self.whole_groups = whole_groups
        self.input_shape = input_shape
        self.schedule = schedule
        self.verbose = verbose
        self._map: ChannelMap | None = None
        self._active: Masks | None = None
        self._ended: Masks | None = None  # after training: variables are free, layers are not
        self._reader: ScheduleReader | None = None
        self._state = PrunerState()
        self._plan: Plan | None = None
        self._pruned_model: keras.Model | None = None
        self._done = self._epoch = 0  # batches of this epoch, and which one it is
        self._last_pruned = 0  # the epoch of the last pruning step, once there is a plan
        self._said: set = set()

    def get_config(self) -> dict[str, Any]:
        """The arguments for another pruner with the same settings, as objects."""
        names = ("importance", "budget", "schedule", "whole_groups", "input_shape", "verbose")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NISPPruner":
        """A pruner with the settings that `get_config` returned."""
        return cls(**config)

    @property
    def plan(self) -> Plan:
        """What was removed. Raises `ValueError` before the end of training."""
        if self._plan is None:
            raise ValueError(
                "Expected `plan` and `pruned_model` to be read after training. This pruner has "
                "not seen the end of a `fit`: it was not in `callbacks=[...]`, or `fit` raised an "
                "error or was interrupted. Then `pruner.finish()` ends pruning where it is."
            )
        return self._plan

    @property
    def pruned_model(self) -> keras.Model:
        """The smaller model. Raises `ValueError` before the end of training."""
        if self.plan and self._pruned_model is None:
            # Not what the state says: a checkpoint may have been loaded since the plan was made.
            channel_map = self._selection.solver.channel_map
            removed = self.plan.removed_units(channel_map)
            warn_of_other_weights(channel_map, removed, self._last_pruned)
            unit_map = UnitMap.removing(removed)
            self._pruned_model = rebuild_traced(channel_map, unit_map, optimizer_state=True)
            self._state.detach(channel_map.model)
        return self._pruned_model

    def finish(self) -> keras.Model:
        """Ends pruning: builds `plan` and `pruned_model`.

        Call it after a `fit` that was interrupted. (At the end of `fit` variables get their own
        constraints back by themselves, and `pruned_model` is built when it is first used.) It
        builds `pruned_model` again from the weights that the model has now.

        Returns:
            The pruned model.
        """
        if not self._state.begun or self._map is None:
            raise ValueError("Expected `finish` after the start of training. Call `fit` first.")
        if self._active is not None:
            self._end()
        self._pruned_model = None
        return self.pruned_model

    def release(self) -> None:
        """Makes layers of the model include removed channels in their statistics again.

        Call it to train the whole model further, instead of the smaller one.
        """
        if self._ended is not None:
            self._ended.remove()
        self._ended = None

    def resume(self, model: keras.Model, filepath: str | os.PathLike) -> None:
        """Loads a checkpoint of a run that ended early; the next `fit` resumes from there.

        It is not needed with `BackupAndRestore`.

        Args:
            model: a compiled model of the same structure. Its weights and its optimizer's are
                loaded, too.
            filepath: path of a file that `ModelCheckpoint` wrote: `.keras` or `.weights.h5`.

        Raises:
            ValueError: the file holds no state of a pruner.
        """
        self.set_model(model)
        optimizer = keras_training.innermost_optimizer(model)
        if optimizer is not None and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._state.restored = False
        model.load_weights(filepath)
        if not self._state.restored:
            raise ValueError(
                "Expected a checkpoint that was written while a NISPPruner was at work. "
                f"'{filepath}' holds no state of one, and weights alone do not say what was "
                "removed, and by when."
            )

    # What `fit` calls, and loops of the user's own. ---------------------------------

    def set_model(self, model: keras.Model) -> None:
        if self.model is not model:
            self._map = self._active = None
            self._state = PrunerState()
        super().set_model(model)
        # Here and not later: other callbacks load weights when training begins.
        self._state.attach(model)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._plan = self._pruned_model = self._reader = None
        self._said.clear()
        check_fit(self.model, self)
        check_length(self.schedule, self.params or {})
        with each_once(self._said):
            shape = self.input_shape or self.importance.input_shapes(self.model)
            channel_map = self._map or trace(self.model, shape, self.whole_groups)
        self._map = channel_map
        # What is wrong with the data or the budget is said now, not in the middle of training.
        self._selection, self._scores = self._choose(channel_map, self.budget.amount)
        if self._active is not None:
            self._active.remove()
        self.release()
        self._active = Masks(channel_map)
        self._state.attach(self.model)
        self._take_over()
        if self.schedule is not None:
            self._prune_if_due()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._done, self._epoch = 0, epoch
        self._look_after_state()
        if self.schedule is None:
            self._lay_schedule(epoch)
        self._prune_if_due()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._look_after_state()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._look_after_state()
        steps = (self.params or {}).get("steps")
        # With `steps_per_execution` the last batch of an epoch may lie beyond its end.
        done = min(batch + 1, steps) if steps else batch + 1
        self._state.step += done - self._done if done > self._done else done
        self._state.batches = batches_of(self.model)
        self._done = done
        self._masks.apply_if_trained_again()
        self._prune_if_due()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs.update(self._progress())

    def on_train_end(self, logs: dict | None = None) -> None:
        self._look_after_state()
        self._end()

    # State and schedule. -------------------------------------------------------------

    @property
    def _masks(self) -> Masks:
        if self._active is None:
            raise ValueError(
                "Expected `on_train_begin` before. In a loop of your own call `set_model(model)` "
                "and `on_train_begin()` first; `fit` does so."
            )
        return self._active

    def _look_after_state(self) -> None:
        """Takes over another state if a callback has loaded one since."""
        if not self._state.is_of(self.model):
            raise ValueError(
                "Expected one NISPPruner for a model. Another one has taken this model over."
            )
        if self._state.loaded:
            self._take_over()

    def _take_over(self) -> None:
        """Takes over the state that is there, which a checkpoint may have restored."""
        state, channel_map = self._state, self._masks.map
        state.loaded = False
        state.check(channel_map, self.budget.kind)
        if not state.begun:
            state.removed, state.scores = np.zeros(channel_map.count, bool), self._scores
            state.fingerprint, state.kind = channel_map.fingerprint, self.budget.kind
        state.count(self.model)
        self._masks.update(state.removed)
        if self.schedule is not None:
            self._read(self.schedule)
        elif state.span is not None:
            self._read(default_schedule(self.budget.amount, state.span))

    def _read(self, schedule: Callable) -> None:
        self._reader = ScheduleReader(schedule, self.budget.amount)
        self._reader.position = self._state.position or (self._state.step, False, 0.0)

    def _lay_schedule(self, epoch: int) -> None:
        """Lays the default schedule over the remaining epochs, if it is not there yet."""
        state = self._state
        left = self.params["steps"] * (self.params["epochs"] - epoch)
        span = default_span(state.step, left, state.span)
        if span != state.span:
            state.span = span
            self._read(default_schedule(self.budget.amount, span))

    # Pruning. ------------------------------------------------------------------------

    def _choose(self, channel_map: ChannelMap, amount: float) -> tuple:
        """What to remove for an amount, in addition to what is removed already."""
        # Damages of the network before training say little of one that was trained since.
        budget = self.budget.with_amount(amount).allocated(has_samples=False)
        with each_once(self._said):
            removed = self._state.removed if self._state.begun else None
            return choose(channel_map, self.importance, budget, removed)

    def _prune_if_due(self) -> None:
        if self._reader is None:
            raise ValueError(
                "Expected `on_epoch_begin(epoch)` before the first batch, where the default "
                "schedule is laid. In a loop of your own call it, or pass `schedule=`."
            )
        state = self._state
        amount = self._reader.due(state.step, state.reached)
        state.position = self._reader.position
        if amount is None:
            return
        self._masks.check_finite(state.step)
        self._selection, state.scores = self._choose(self._masks.map, amount)
        state.removed = self._selection.removed
        state.reached, state.epoch = amount, self._epoch
        self._masks.update(state.removed)
        if self.verbose:
            progress = ", ".join(f"{k} {v:.3f}" for k, v in self._progress().items())
            print(f"\nstep {state.step}: pruned to {self.budget.kind}={amount:.3f}: {progress}")

    def _progress(self) -> dict[str, float]:
        costs, removed = self._selection.solver.costs, self._state.removed
        free = costs.channel_map.free
        left = costs.flops(~removed) / max(costs.flops(costs.everything), 1)
        return {"channels_removed": float(removed[free].mean()), "flops_left": left}

    def _end(self) -> None:
        """Lets the variables go, and writes the plan."""
        state, masks = self._state, self._masks
        self._last_pruned = state.epoch
        warn_of_other_weights(masks.map, state.removed, state.epoch)
        masks.apply()  # an average of weights may have been put in their place
        masks.say_what_is_not_held(state.removed, self.verbose)
        masks.end()
        self._active, self._ended = None, masks
        if state.reached < self.budget.amount:
            warn(
                f"Training ended at {self.budget.kind}={state.reached:g}; the target "
                f"{self.budget.amount:g} was not reached. Train on with this pruner, or pass a "
                "schedule that ends sooner."
            )
        budget, source = self.budget.with_amount(state.reached), self.importance.source
        settings = {"importance": source, "schedule": self.schedule}
        made = recipe("NISPPruner", masks.map, budget, **settings)
        unit_map = UnitMap.removing(state.removed)
        self._plan = describe(masks.map, unit_map, made, self._selection, state.scores)
