"""`prune`: plan, rebuild, prove and repair in one call."""

import dataclasses
from collections.abc import Callable
from typing import Any, Unpack

import keras

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.tracing import InputShape, WholeGroups
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.data.samples import Samples
from keras_nisp.data.value_range import warned_once
from keras_nisp.importance.base import Importance
from keras_nisp.keras_graph import keras_models
from keras_nisp.plans.budget import Budget, BudgetKeywords, as_budget, lists_budget
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.planning import make_plan, traced_for, with_samples
from keras_nisp.pruning.latency_budget import Realised, realise_latency
from keras_nisp.pruning.sensitivity import known_accuracies
from keras_nisp.recovery.compensation import check_compensation
from keras_nisp.recovery.pair import Pair
from keras_nisp.recovery.recalibration import repair
from keras_nisp.recovery.teaching import check_teaching, try_augment
from keras_nisp.surgery.rebuilding import rebuild_traced
from keras_nisp.surgery.verification import Verification, verify_traced


@lists_budget
def prune(
    model: keras.Model,
    importance: Importance | Callable | None = None,
    *,
    budget: Budget | None = None,
    whole_groups: WholeGroups = (),
    input_shape: InputShape | None = None,
    calibration: Any = None,
    compensate: str | None = "auto",
    teach_steps: int = 0,
    augment: Callable | None = None,
    verify: bool = True,
    verbose: int = 1,
    **keywords: Unpack[BudgetKeywords],
) -> keras.Model:
    """Plans and rebuilds in one step, proves the result, and repairs it.

    Args:
        model: a functional or Sequential model. It is not changed.
        importance: an `Importance` such as `Magnitude()`. By default `NISP()`.
        budget: a `Budget`: how much to remove. For `latency_reduction` both models are measured in
            the TFLite interpreter, and more is removed (up to three times) if the budget is not
            met.
        whole_groups, input_shape: as for `plan_pruning`.
        calibration: samples for the importance, unless it was given some, and for the repair of the
            result by `recalibrate`. They are read once. By default the result is not repaired, and
            may be no better than chance until it is fine-tuned.
        compensate: as for `recalibrate`. `"linear"`: kernels are refitted; `"mean"`: only biases
            are corrected; `None`: neither. `"auto"` is `"linear"` if there are `calibration` data.
            With such data, BatchNormalization statistics are renewed in all cases.
        teach_steps: as for `recalibrate`: number of batches of `calibration` data on which the
            result is trained to answer as the original does, without labels. 200 is a good number.
        augment: as for `recalibrate`: changes the batches of inputs in teaching.
        verify: whether to compare the result with the original whose removed channels are zeroed,
            as the function `verify` does: on samples of `calibration`, otherwise on those that the
            importance has read, otherwise on random ones. It proves the surgery; it says nothing of
            the accuracy.
        verbose: 1 shows progress bars of what takes more than a second, and prints one line: costs
            before and after, whether the surgery was verified and the result repaired, its accuracy
            if `calibration` data come with labels of a classifier, and what to do next. 0 prints
            nothing.
        **keywords: the arguments of `Budget`, instead of `budget`: `ratio=0.5`,
            `flops_reduction=0.5`, `exclude="stem"` and so on.

    Returns:
        The smaller model, as from `rebuild`.

    Raises:
        TypeError, ValueError: see `plan_pruning`.
        ExportError: with `latency_reduction`, the model cannot be converted to TFLite.
        VerificationError: the smaller model does not compute what it must.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> small = prune(model, Magnitude(), ratio=0.5, verbose=0)
    >>> small.count_params()
    35
    """
    budget = as_budget(budget, keywords, prune)
    check_compensation(compensate, calibration is not None, "`calibration` data")
    check_teaching(teach_steps, calibration is not None, "`calibration` data", augment)
    with warned_once():
        shape = {"input_shape": input_shape, "whole_groups": whole_groups}
        how = {"compensate": compensate, "teach_steps": teach_steps, "augment": augment}
        return _prune(model, importance, budget, shape, calibration, how, verify, verbose)


def _prune(model, importance, budget, shape, calibration, how, verify, verbose) -> keras.Model:
    keras_models.check_model(model)
    importance, samples = with_samples(importance, calibration, model, verbose)
    if samples is not None:
        try_augment(model, samples, how["augment"])
    result = pruned(model, importance, budget, samples=samples, verbose=verbose, **shape)
    plan, small = result.plan, result.small
    told = [f"{model.name}: {plan.costs()}"]
    if result.latency is not None:
        told.append(str(result.latency))
    if verify:
        looked_at = samples or importance.known_samples(model)
        told.append(f"surgery {result.verified(looked_at, verbose)}")
    if samples is not None:
        result.repair(samples, **how, verbose=verbose)
    if verbose:
        told.append(_outcome(model, plan, small, samples))
        print("\n".join(["; ".join(told), *plan.notes]))
    return small


def _outcome(model, plan: Plan, small, samples: Samples | None) -> str:
    """Whether the model was repaired, how accurate it is if there are labels, and what next."""
    if samples is None:
        if plan.after == plan.before:
            return "nothing was removed"
        return (
            "not repaired, so it may be no better than chance. Next: pass `calibration`, or call "
            "`recalibrate`; then fine-tune"
        )
    right = known_accuracies((model, small), samples)
    accuracies = " -> ".join(f"{share:.4f}" for share in right)
    known = f"accuracy on these {accuracies}" if right else "its accuracy was not measured"
    return f"repaired on {len(samples):,} samples, {known}. Next: fine-tune, and compare accuracies"


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned:
    """A model that was pruned, from one trace of the original.

    Attributes:
        channel_map: the original, traced.
        plan: what was removed.
        unit_map: what became of the original's units.
        small: the smaller model.
        latency: what a latency budget came to, or `None` for another budget.
    """

    channel_map: ChannelMap
    plan: Plan
    unit_map: UnitMap
    small: keras.Model
    latency: Realised | None = None

    def verified(self, samples: Samples | None, verbose: int = 0) -> Verification:
        """The proof that the smaller model is right.

        Raises:
            VerificationError: it is not.
        """
        result = verify_traced(
            self.channel_map, self.unit_map, self.small, samples, verbose=verbose
        )
        result.check()
        return result

    def repair(
        self,
        samples: Samples,
        compensate: str | None = "auto",
        teach_steps: int = 0,
        augment: Callable | None = None,
        verbose: int = 0,
    ) -> None:
        """Recalibrates the smaller model, in place."""
        pair = Pair(self.channel_map, self.unit_map, self.small)
        repair(
            self.small,
            samples,
            pair,
            compensate,
            teach_steps=teach_steps,
            augment=augment,
            verbose=verbose,
        )


def pruned(
    model: keras.Model,
    importance: Importance,
    budget: Budget,
    input_shape=None,
    whole_groups=(),
    samples: Samples | None = None,
    verbose: int = 0,
) -> Pruned:
    """Plans and rebuilds. Arguments are those of `plan_pruning`."""
    channel_map = traced_for(importance, model, input_shape, whole_groups, samples)
    if budget.kind != "latency_reduction":
        plan = make_plan(channel_map, importance, budget, samples, verbose)
        unit_map = plan.unit_map(channel_map)
        return Pruned(channel_map, plan, unit_map, rebuild_traced(channel_map, unit_map))
    best = realise_latency(channel_map, importance, budget, samples, verbose)
    return Pruned(channel_map, best.plan, best.unit_map, best.small, best)
