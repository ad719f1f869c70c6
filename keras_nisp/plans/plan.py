"""A plan: which channels of which layers are removed or merged. Plain data."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.cost import Cost
from keras_nisp.channels.tracing import trace_quietly
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.io import schema
from keras_nisp.io.shown import Shown
from keras_nisp.keras_graph import keras_models
from keras_nisp.latency.table import LatencyChange
from keras_nisp.plans import plan_file, plan_fit, plan_text, report
from keras_nisp.plans.budget import Budget
from keras_nisp.plans.forecast import Forecast, check_plan
from keras_nisp.plans.plan_rows import CreatorPlan, GroupPlan, LayerPlan, VariablePlan
from keras_nisp.plans.recipe import EarlierRecipe, Recipe


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(Shown):
    """Which channels of which layers are removed (`plan_pruning`) or merged (`plan_merging`).

    `print(plan)` lists the coupled groups, `plan.summary()` widths and costs. The plan
    is applied by position: it fits every model of the same structure, whatever the
    layers are called.

    Attributes:
        model: name of the model it was made for.
        fingerprint: digest of that model's structure.
        recipe: the call that made it: importance or clustering with its settings, and the budget.
        input_shapes: input sizes for which FLOPs are counted.
        creators: a `CreatorPlan` for each layer that creates channels, in the order of the walk.
        groups: the coupled groups.
        layers: widths and costs of all layers, in the order of the walk.
        before, after: costs of the whole model.
        inexact: layers that mix channels of which some are removed: there the rebuilt model
            differs from one in which the removed channels are zero.
        notes: sentences about layers that are not counted, and about assumed sizes.
        whole_groups: indices of the calls of grouped convolutions that lose whole groups.
        variables: if channels are merged, the trainable variables in order, for `CentripetalSGD`.
        block: number of which widths are multiples.
        latency: latencies by the table of a latency budget.
        rounds: if widths were chosen by damage, for each round the share of the cost that was left
            after it, and the damage up to then.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8, activation="relu", name="hidden"),
    ...     keras.layers.Dense(3),
    ... ])
    >>> plan = plan_pruning(model, Magnitude(), widths={"hidden": 5})
    >>> plan.creators[0].kept, plan.before.parameters, plan.after.parameters
    (5, 67, 43)
    """

    __pydantic_config__ = schema.STRICT  # types as annotated are what a file must hold

    model: str
    fingerprint: str
    recipe: Recipe | EarlierRecipe
    input_shapes: tuple[tuple[int, ...], ...]
    creators: tuple[CreatorPlan, ...]
    groups: tuple[GroupPlan, ...]
    layers: tuple[LayerPlan, ...]
    before: Cost
    after: Cost
    inexact: tuple[str, ...]
    variables: tuple[VariablePlan, ...] = ()
    whole_groups: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    block: int = 1
    latency: LatencyChange | None = None
    rounds: tuple[tuple[float, float], ...] = ()

    @property
    def merges(self) -> bool:
        """Whether channels are merged, not dropped."""
        return any(row.clusters for row in self.creators)

    @property
    def flops_reduction(self) -> float:
        """Share of the FLOPs that is removed."""
        return 1 - self.after.flops / self.before.flops if self.before.flops else 0.0

    @property
    def params_reduction(self) -> float:
        """Share of the parameters that is removed."""
        return 1 - self.after.parameters / self.before.parameters if self.before.parameters else 0.0

    @property
    def memory_reduction(self) -> float:
        """Share of the bytes of activations that is removed."""
        return 1 - self.after.memory / self.before.memory if self.before.memory else 0.0

    @property
    def cache_reduction(self) -> float:
        """Share of the bytes of cached keys and values that is removed."""
        return 1 - self.after.cache / self.before.cache if self.before.cache else 0.0

    @property
    def importance(self) -> str:
        """Name of the importance, or of the clustering."""
        return self.recipe.name

    @property
    def budget(self) -> Budget | str:
        """The budget; of plans of earlier releases as text."""
        return self.recipe.budget

    # Reading -----------------------------------------------------------------------

    def __str__(self) -> str:
        return plan_text.overview(self)

    def __repr__(self) -> str:
        return f"<Plan for '{self.model}': {self.costs()}>"

    def _repr_html_(self) -> str:
        return report.frame(self)

    @property
    def budget_text(self) -> str:
        """The budget in one line, with its results: latencies, and multiples of widths."""
        return plan_text.budget_text(self)

    def summary(self, wide: bool = False) -> str:
        """A table of channels, parameters and FLOPs of each layer, before and after.

        Args:
            wide: show all layers and exact numbers, however wide the table is. By default it fits
                the terminal: layers without FLOPs, such as BatchNormalization, and layers that stay
                as they are share a row.
        """
        return plan_text.summary(self, wide)

    def costs(self) -> str:
        """Parameters and FLOPs before and after, in one line."""
        return plan_text.costs(self)

    def exactness(self) -> str:
        """Whether the rebuilt model gives what this model gives without the channels, in words."""
        return plan_text.exactness(self)

    def explain(self, layer: str) -> str:
        """Why a layer has the channels that it has.

        Args:
            layer: name or path of any layer of the model.

        Raises:
            ValueError: the plan knows no layer of this name.
        """
        return plan_text.explanation(self, layer)

    def report(
        self,
        path: str | os.PathLike,
        command: str | None = None,
        outcome: Mapping[str, object] | None = None,
    ) -> None:
        """Writes the plan as one HTML page that needs nothing else; replaces an existing file.

        Args:
            path: path of the page.
            command: the command to show as the one that made the plan. By default the call that
                made it.
            outcome: results to show at the top, by name:
                `{"accuracy": "0.921 -> 0.915", "surgery": verify(small, model, plan)}`.

        Raises:
            FileNotFoundError: the folder does not exist.

        Example:

        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (8, 3))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plan_pruning(model, Magnitude(), ratio=0.5).report(f"{folder}/report.html")
        """
        report.write(self, path, command, outcome)

    # Applying ----------------------------------------------------------------------

    def trace(self, model: keras.Model) -> ChannelMap:
        """Names the channels of a model as they were named for this plan.

        Raises:
            PlanMismatchError: the model has no such grouped convolutions.
        """
        keras_models.check_model(model)
        merged = self.merges or getattr(self.recipe, "function", "") == "plan_merging"
        for shapes in (list(self.input_shapes), None):  # the same structure may have another size
            with contextlib.suppress(ValueError):
                return trace_quietly(model, shapes, self.whole_groups, counted=merged)
        raise plan_fit.mismatch(self, model)

    def unit_map(self, channel_map: ChannelMap) -> UnitMap:
        """What becomes of each unit of a traced model.

        Raises:
            PlanMismatchError: the model has another structure, or the plan would change
                what this structure must keep.
        """
        return plan_fit.fitted(self, channel_map)

    def removed_units(self, channel_map: ChannelMap) -> np.ndarray:
        """Boolean per unit of a traced model: whether it is gone afterwards.

        Raises:
            PlanMismatchError: as for `unit_map`.
        """
        return ~self.unit_map(channel_map).keep

    def check_merges(self) -> None:
        """Raises unless this plan merges channels."""
        if not self.merges:
            raise ValueError(
                "Expected a plan that merges channels, from `plan_merging`. Received a plan that "
                "removes them, or one without a cluster of several channels."
            )

    def check(
        self,
        steps: int,
        learning_rate: float | Callable,
        momentum: float = 0.0,
        strength: float | str = "auto",
        **settings: Any,
    ) -> Forecast:
        """Says before training whether the clusters will be identical in time.

        The deviation inside a cluster does not depend on the data, so this is no estimate.

        Args:
            steps: number of optimizer steps.
            learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
            momentum: momentum of the optimizer.
            strength: the centripetal strength, or `"auto"`.
            **settings: other settings of `CentripetalSGD` that have an effect: `nesterov`,
                `weight_decay`, `vector_strength`, `preset`, `tolerance`, `collapse`.

        Returns:
            A `Forecast`; `print` it.

        Raises:
            ValueError: an argument is wrong, or the strength makes the update unstable.

        Example:

        >>> layers = [keras.layers.Dense(8), keras.layers.Dense(3)]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> plan = plan_merging(model, ratio=0.5, clustering="even")
        >>> plan.check(steps=1000, learning_rate=0.05, momentum=0.9, strength=3e-3).collapses
        False
        """
        return check_plan(self, steps, learning_rate, momentum, strength, **settings)

    # Saving ------------------------------------------------------------------------

    def to_dict(self) -> dict:
        """The plan as plain data, which JSON can hold."""
        return plan_file.to_dict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Plan":
        """The plan that `to_dict` gave.

        Raises:
            PlanFileError: the data are not a plan, or are damaged.
        """
        return plan_file.from_dict(cls, data, "these data")

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan to a JSON file; an existing file is replaced as a whole.

        Args:
            path: path of the file.
        """
        plan_file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Plan":
        """Reads a plan that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            PlanFileError: the file is not a plan, or is damaged.
        """
        return plan_file.load(cls, path)


def check_is_plan(plan: Any) -> None:
    """Raises unless an argument is a `Plan`."""
    if not isinstance(plan, Plan):
        raise TypeError(
            "Expected `plan` to be a keras_nisp.Plan, as `plan_pruning`, `plan_merging` and "
            f"`Plan.load` give it. Received: {plan!r}"
        )
