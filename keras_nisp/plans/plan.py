"""A plan: which channels of which layers are removed or merged. Plain data."""

import contextlib
import dataclasses
import fnmatch
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.cost import Cost
from keras_nisp.channels.tracing import trace_quietly
from keras_nisp.channels.unit_map import UnitMap
from keras_nisp.io import schema
from keras_nisp.io.tables import Column, percent, render_table
from keras_nisp.keras_graph import keras_models
from keras_nisp.plans import plan_file, plan_fit, report
from keras_nisp.plans.forecast import Forecast, check_plan
from keras_nisp.plans.plan_rows import CreatorPlan, GroupPlan, LayerPlan, VariablePlan


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which channels of which layers are removed (`plan_pruning`) or merged (`plan_merging`).

    `print(plan)` lists the coupled groups, `plan.summary()` widths and costs. The plan
    is applied by position: it fits every model of the same structure, whatever the
    layers are called.

    Attributes:
        model: name of the model it was made for.
        fingerprint: of that model's structure.
        importance: name of the importance, or of the clustering.
        budget: the budget, as text.
        input_shapes: input sizes for which FLOPs are counted.
        creators: for each layer that creates channels, in the order of the walk.
        groups: the coupled groups.
        layers: widths and costs of all layers, in the order of the walk.
        inexact: layers that mix channels which are removed: there the rebuilt model
            differs from one in which the removed channels are zero.
        notes: what costs leave out of account, and which sizes were assumed.
        whole_groups: indices of the calls of grouped convolutions that lose whole groups.
        variables: the trainable variables in order, if channels are merged: what
            `CentripetalSGD` works on.
    """

    __pydantic_config__ = schema.STRICT  # types as annotated are what a file must hold

    model: str
    fingerprint: str
    importance: str
    budget: str
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

    # Reading -----------------------------------------------------------------------

    def __str__(self) -> str:
        word = "merged" if self.merges else "pruned"
        changed = sum(group.removed > 0 for group in self.groups)
        lines = [
            f"Plan for '{self.model}' by {self.importance}, {self.budget}: {changed} of "
            f"{len(self.groups)} coupled groups {word}, parameters "
            f"{percent(self.before.parameters, self.after.parameters)}, FLOPs "
            f"{percent(self.before.flops, self.after.flops)}."
        ]
        for index, group in enumerate(self.groups):
            lines.append(f"group {index}: {group.units} -> {group.units - group.removed} channels")
            for word in ("creators", "followers", "readers"):
                if names := getattr(group, word):
                    lines.append(f"  {word + ':':<11}{_shorten(names)}")
        lines += self.notes
        return "\n".join(lines)

    def summary(self) -> str:
        """A table of channels, parameters and FLOPs of each layer, before and after."""
        columns = [Column("layer"), Column("type")]
        columns += [Column(title, True) for title in ("channels", "parameters", "FLOPs")]
        rows = [
            (
                row.layer,
                row.kind,
                _change(*row.channels),
                _change(row.before.parameters, row.after.parameters),
                _change(row.before.flops, row.after.flops),
            )
            for row in self.layers
            if row.before.parameters
        ]
        shapes = ", ".join(map(str, self.input_shapes))
        total = ("total", "", "", *(self._total(word) for word in ("parameters", "flops")))
        table = render_table(f"{self.model}, FLOPs for input {shapes}", columns, rows, [total])
        return "\n".join([table, self.exactness(), *self.notes])

    def _total(self, word: str) -> str:
        before, after = getattr(self.before, word), getattr(self.after, word)
        return f"{_change(before, after)} ({percent(before, after)})"

    def exactness(self) -> str:
        """Whether the rebuilt model gives what this model gives without the channels, in words."""
        if self.merges:
            return (
                "Exact once the channels of each cluster are identical: train with "
                "CentripetalSGD, then rebuild."
            )
        if not self.inexact:
            return (
                "Exact: the rebuilt model gives what this model gives with the removed channels "
                "at zero."
            )
        return (
            "Not exact: these layers take statistics over channels, which are fewer afterwards: "
            f"{_shorten(self.inexact)}. Fine-tune, and compare accuracies."
        )

    def explain(self, layer: str) -> str:
        """Why a layer has the channels that it has.

        Args:
            layer: name or path of any layer of the model.

        Raises:
            ValueError: the plan knows no layer of this name.
        """
        lines = [self._explain_creator(c) for c in self.creators if _is_named(c.layer, layer)]
        for index, group in enumerate(self.groups):
            for verb, names in (("passes on", group.followers), ("reads", group.readers)):
                if found := [name for name in names if _is_named(name, layer)]:
                    lines.append(
                        f"'{found[0]}' {verb} the channels of group {index} "
                        f"({group.units} -> {group.units - group.removed}), created by "
                        f"{_shorten(group.creators)}."
                    )
        if not lines:
            if any(_is_named(row.layer, layer) for row in self.layers):
                return f"'{layer}' touches no channels that may be removed."
            raise ValueError(
                f"Expected the name of a layer. Received: {layer!r}, which is none. Layers that "
                f"create channels: {_shorten([c.layer for c in self.creators])}."
            )
        return "\n".join(lines)

    def report(self, path: str | os.PathLike, command: str | None = None) -> None:
        """Writes the plan as one HTML page that needs nothing else; replaces an existing file.

        Args:
            path: of the page.
            command: what made the plan, to be shown. By default a sketch of it is.

        Raises:
            FileNotFoundError: the folder does not exist.

        Example:

        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (8, 3))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plan_pruning(model, Magnitude(), ratio=0.5).report(f"{folder}/report.html")
        """
        report.write(self, path, command)

    def _explain_creator(self, creator: CreatorPlan) -> str:
        text = f"'{creator.layer}' keeps {creator.kept} of {creator.channels} channels."
        if creator.clusters:
            text = f"'{creator.layer}' merges {creator.channels} channels into {creator.kept}."
        if creator.group >= 0:
            others = [n for n in self.groups[creator.group].creators if n != creator.layer]
            if others:
                text += f" Coupled with {_shorten(others)}."
        return text + (f" Kept: {'; '.join(creator.reasons)}." if creator.reasons else "")

    # Applying ----------------------------------------------------------------------

    def trace(self, model: keras.Model) -> ChannelMap:
        """Names the channels of a model as they were named for this plan.

        Raises:
            PlanMismatchError: the model has no such grouped convolutions.
        """
        keras_models.check_model(model)
        for shapes in (list(self.input_shapes), None):  # the same structure may have another size
            with contextlib.suppress(ValueError):
                return trace_quietly(model, shapes, self.whole_groups)
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
            momentum: of the optimizer.
            strength: the centripetal strength, or `"auto"`.
            **settings: the other settings of `CentripetalSGD` that matter: `nesterov`,
                `weight_decay`, `vector_strength`, `preset`, `tolerance`.

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
            path: of the file.
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


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _is_named(path: str, name: str) -> bool:
    """Whether a path is that of a layer of this name or pattern, or of channels inside of it."""
    own = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(part, name) for part in (path, own, own.split(":")[0]))


def _shorten(names, limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
