"""`plan_pruning`: importance and budget in, plan out."""

from collections.abc import Callable
from typing import Any, Unpack

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.tracing import InputShape, WholeGroups, trace
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.damage.network import DamagedNetwork
from keras_nisp.damage.table import AddedDamages, Sensitivity
from keras_nisp.data.calibration import calibration_samples
from keras_nisp.data.samples import MAX_SAMPLES, Samples
from keras_nisp.importance.base import (
    Importance,
    as_importance,
    checked_scores,
    supplied,
    without_data,
)
from keras_nisp.importance.nisp import NISP
from keras_nisp.keras_graph import keras_models
from keras_nisp.plans.allocation import Allocation
from keras_nisp.plans.budget import Budget, BudgetKeywords, as_budget, lists_budget
from keras_nisp.plans.describing import describe
from keras_nisp.plans.plan import Plan
from keras_nisp.plans.recipe import recipe
from keras_nisp.plans.solver import Selection, Solver


@lists_budget
def plan_pruning(
    model: keras.Model,
    importance: Importance | Callable | None = None,
    *,
    budget: Budget | None = None,
    whole_groups: WholeGroups = (),
    input_shape: InputShape | None = None,
    calibration: Any = None,
    verbose: int = 0,
    **keywords: Unpack[BudgetKeywords],
) -> Plan:
    """Decides which channels to remove. Nothing is built or changed.

    Args:
        model: a functional or Sequential model.
        importance: an `Importance` such as `NISP()` or `Magnitude()`, or a callable that takes
            a `ChannelMap` and returns one score per unit. By default `NISP()`.
        budget: a `Budget`: how much to remove.
        whole_groups: names or patterns of grouped convolutions whose groups are removed as a
            whole, with the channels that enter them. By default every group loses the same number
            of channels.
        input_shape: shape of one sample for which FLOPs are counted, if the model
            leaves it open; by default that of the importance's data, or an assumed one.
        calibration: samples for an importance that uses data and was given none, and for the
            damages of `allocation`; by default those of the importance.
        verbose: 1 shows progress bars of what takes more than a second.
        **keywords: the arguments of `Budget`, instead of `budget`: `ratio=0.5`,
            `flops_reduction=0.5`, `exclude="stem"` and so on.

    Returns:
        A `Plan`.

    Raises:
        TypeError: the model is not functional or Sequential.
        ValueError: an argument is wrong, a name matches no layer, the importance has no data or
            does not fit the model (`NoFinalResponseLayerError`), or the reduction cannot be
            reached (`BudgetError`).

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(16, 3, name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(),
    ...     keras.layers.Dense(2, name="head"),
    ... ])
    >>> plan = plan_pruning(model, Magnitude(), ratio=0.25)
    >>> plan.creators[0].kept
    12
    """
    budget = as_budget(budget, keywords, plan_pruning)
    keras_models.check_model(model)
    importance = as_importance(NISP() if importance is None else importance)
    if not budget.allocated(has_samples=True).by_damage and not without_data(importance):
        calibration = None  # which nothing looks at
    importance, samples = with_samples(importance, calibration, model, verbose)
    channel_map = traced_for(importance, model, input_shape, whole_groups, samples)
    return make_plan(channel_map, importance, budget, samples, verbose)


def with_samples(
    importance: Any, calibration: Any, model: keras.Model, verbose: int = 0
) -> tuple[Importance, Samples | None]:
    """An importance, by default NISP, that has the data it looks at, and samples of `calibration`.

    Data are read once, whoever looks at them.
    """
    importance, samples = as_importance(NISP() if importance is None else importance), None
    if calibration is not None:
        waiting = without_data(importance).values()
        limit = max([MAX_SAMPLES, *(value.limit for value in waiting)])
        samples = calibration_samples(calibration, model, limit=limit, verbose=verbose)
    return supplied(importance, samples, verbose), samples


def traced_for(
    importance: Importance,
    model: keras.Model,
    input_shape: InputShape | None = None,
    whole_groups: WholeGroups = (),
    samples: Samples | None = None,
) -> ChannelMap:
    """A model traced for an importance, at the sizes of data unless others are given."""
    keras_models.check_model(model)
    if input_shape is None and samples is not None and keras_models.is_open(model):
        input_shape = samples.shapes
    if input_shape is None:
        input_shape = importance.input_shapes(model)
    return trace(model, input_shape, whole_groups)


def make_plan(
    channel_map: ChannelMap,
    importance: Importance,
    budget: Budget,
    samples: Samples | None = None,
    verbose: int = 0,
) -> Plan:
    """A plan for a traced model.

    Args:
        channel_map: the traced model.
        importance: scores its units.
        budget: what to remove.
        samples: on which damages are taken, by default those that the importance has read.
        verbose: 1 shows a progress bar of that.
    """
    selection, scores = choose(channel_map, importance, budget, samples=samples, verbose=verbose)
    chosen = selection.solver.budget
    looked_at = samples is not None and chosen.by_damage
    settings = {"importance": importance.source, "calibration": looked_at}
    made = recipe("plan_pruning", channel_map, chosen, **settings)
    return describe(channel_map, UnitMap.removing(selection.removed), made, selection, scores)


def choose(
    channel_map: ChannelMap,
    importance: Importance,
    budget: Budget,
    removed: np.ndarray | None = None,
    samples: Samples | None = None,
    verbose: int = 0,
) -> tuple[Selection, np.ndarray]:
    """The units that a budget removes, and the scores that say so.

    Args:
        channel_map, importance, budget, samples, verbose: as for `make_plan`.
        removed: boolean per unit: removed already, and to stay so.
    """
    channel_map.check_groups()
    channel_map.check_weights()
    if budget.kind == "latency_reduction":
        budget.table.shows_progress = verbose or budget.table.verbose
    by_share = Solver(channel_map, budget.allocated(has_samples=False), removed)

    def select(scores):
        return by_share.select(checked_scores(scores, channel_map, importance.name)).removed

    scores = checked_scores(importance.scores(channel_map, select), channel_map, importance.name)
    samples = samples or importance.known_samples(channel_map.model)
    budget, allocation = allocated(channel_map, budget, samples, verbose)
    return Solver(channel_map, budget, removed, allocation).select(scores), scores


def allocated(
    channel_map: ChannelMap, budget: Budget, samples: Samples | None, verbose: int = 0
) -> tuple[Budget, Allocation | None]:
    """The budget with its allocation decided, and what allocates by damage.

    Raises:
        ValueError: damages are to be taken, and there are no samples, outputs show none, or are
            not finite.
    """
    if isinstance(budget.allocation, Sensitivity):
        return budget, Allocation(AddedDamages(channel_map, budget.allocation), verbose=verbose)
    asked, budget = budget, budget.allocated(has_samples=samples is not None)
    if not budget.by_damage:
        return budget, None
    if samples is None:
        raise ValueError(
            f"Expected calibration data for allocation={budget.allocation!r}, which looks at what "
            "the outputs lose. Received none: pass `calibration`, or allocation='uniform'."
        )
    network = DamagedNetwork(channel_map, samples, verbose)
    if network.seen[channel_map.free].any():
        return budget, Allocation(network, budget.allocation == "measured", verbose)
    if asked.by_damage:
        raise ValueError(
            f"Expected channels whose damage shows for allocation={budget.allocation!r}. All that "
            f"model '{channel_map.model.name}' may lose lie inside of layers, such as key "
            "channels of attention: pass allocation='uniform'."
        )
    return asked.allocated(has_samples=False), None
