"""A plan: which channels of which layers are removed. Plain data, saved as JSON."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from keras_nisp.channels import ChannelMap
from keras_nisp.cost import Cost
from keras_nisp.errors import PlanFileError, PlanMismatchError
from keras_nisp.tables import Column, percent, render_table

FORMAT = "keras_nisp plan"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class CreatorPlan:
    """What happens to the channels that one layer creates.

    Attributes:
        layer: path of the layer.
        channels: how many it has.
        removed: indices of those that are removed, ascending.
        group: index of its coupled group, or -1 if none of them may be removed.
        reasons: why channels were kept.
    """

    layer: str
    channels: int
    removed: tuple[int, ...]
    group: int
    reasons: tuple[str, ...]

    @property
    def kept(self) -> int:
        """Number of channels that stay."""
        return self.channels - len(self.removed)


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """A coupled group: layers whose channels are removed together.

    Attributes:
        creators: layers that create the channels.
        followers: layers that pass them on or join them.
        readers: layers whose kernels read them.
        units: how many may be removed, each alone.
        removed: how many are.
    """

    creators: tuple[str, ...]
    followers: tuple[str, ...]
    readers: tuple[str, ...]
    units: int
    removed: int


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """Width and costs of one layer before and after.

    Attributes:
        layer: path of the layer.
        kind: its class.
        channels: its channels before and after.
        before, after: its costs.
    """

    layer: str
    kind: str
    channels: tuple[int, int]
    before: Cost
    after: Cost


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which channels of which layers are removed; made by `plan_pruning`.

    `print(plan)` lists the coupled groups, `plan.summary()` widths and costs. The plan
    is applied by position: it fits every model of the same structure, whatever the
    layers are called.

    Attributes:
        model: name of the model it was made for.
        fingerprint: of that model's structure.
        importance: name of the importance.
        budget: the budget, as text.
        input_shapes: input sizes for which FLOPs are counted.
        creators: for each layer that creates channels, in the order of the walk.
        groups: the coupled groups.
        layers: widths and costs of all layers, in the order of the walk.
        inexact: layers that mix channels which are removed: there the rebuilt model
            differs from one in which the removed channels are zero.
    """

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
        pruned = sum(group.removed > 0 for group in self.groups)
        lines = [
            f"Plan for '{self.model}' by {self.importance}, {self.budget}: {pruned} of "
            f"{len(self.groups)} coupled groups pruned, parameters "
            f"{percent(self.before.parameters, self.after.parameters)}, FLOPs "
            f"{percent(self.before.flops, self.after.flops)}."
        ]
        for index, group in enumerate(self.groups):
            lines.append(f"group {index}: {group.units} -> {group.units - group.removed} channels")
            for word in ("creators", "followers", "readers"):
                if names := getattr(group, word):
                    lines.append(f"  {word + ':':<11}{_shorten(names)}")
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
        return f"{table}\n{self._exactness()}"

    def _total(self, word: str) -> str:
        before, after = getattr(self.before, word), getattr(self.after, word)
        return f"{_change(before, after)} ({percent(before, after)})"

    def _exactness(self) -> str:
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

    def _explain_creator(self, creator: CreatorPlan) -> str:
        text = f"'{creator.layer}' keeps {creator.kept} of {creator.channels} channels."
        if creator.group >= 0:
            others = [n for n in self.groups[creator.group].creators if n != creator.layer]
            if others:
                text += f" Coupled with {_shorten(others)}."
        return text + (f" Kept: {'; '.join(creator.reasons)}." if creator.reasons else "")

    # Applying ----------------------------------------------------------------------

    def removed_units(self, channel_map: ChannelMap) -> np.ndarray:
        """The units to remove from a traced model, as a boolean array.

        Raises:
            PlanMismatchError: the model has another structure, or the plan would remove
                what this structure must keep.
        """
        if self.fingerprint != channel_map.fingerprint:
            raise PlanMismatchError(
                f"Expected a model with the structure of '{self.model}', for which the plan was "
                f"made. Received model '{channel_map.model.name}', which has another one. Make a "
                "new plan for it."
            )
        removed = np.zeros(channel_map.count, bool)
        for row, creator in zip(self.creators, channel_map.creators, strict=True):
            removed[creator.units[list(row.removed)]] = True
        for row, creator in zip(self.creators, channel_map.creators, strict=True):
            if np.flatnonzero(removed[creator.units]).tolist() != list(row.removed):
                raise PlanMismatchError(
                    f"Expected coupled layers to lose the same channels. The plan removes "
                    f"{len(row.removed)} channels of '{row.layer}', which does not fit what it "
                    "removes elsewhere: it was damaged or edited."
                )
            taken = creator.units[list(row.removed)]
            if len(taken) == row.channels or not channel_map.free[taken].all():
                raise PlanMismatchError(
                    f"Expected a plan that keeps what must be kept. The plan removes channels of "
                    f"'{row.layer}' that may not be removed: it was damaged or edited."
                )
        return removed

    def check_result(self, channel_map: ChannelMap) -> None:
        """Raises `PlanMismatchError` unless a traced model has the widths that this plan gives."""
        widths = [len(creator.units) for creator in channel_map.creators]
        if widths != [row.kept for row in self.creators]:
            raise PlanMismatchError(
                f"Expected the model that this plan makes of '{self.model}'. Received model "
                f"'{channel_map.model.name}', whose widths are others."
            )

    # Saving ------------------------------------------------------------------------

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)})

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan to a JSON file; an existing file is replaced as a whole.

        Args:
            path: of the file.
        """
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.to_json())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Plan":
        """Reads a plan that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            PlanFileError: the file is not a plan, or is damaged.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise PlanFileError(f"Expected a plan in '{path}'. It is not JSON: {error}") from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise PlanFileError(f"Expected a plan in '{path}'. It is another kind of JSON file.")
        if (version := data.pop("version", None)) != VERSION:
            raise PlanFileError(
                f"Expected a plan of version {VERSION} in '{path}'. Received version {version}: it "
                "was written by another release of keras_nisp."
            )
        try:
            return _from_data(data)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanFileError(f"Expected a plan in '{path}'. It is damaged: {error!r}") from error


def _from_data(data: dict) -> Plan:
    creators = tuple(CreatorPlan(**_tuples(row)) for row in data["creators"])
    for row in creators:
        indices = list(row.removed)
        valid = all(isinstance(i, int) and 0 <= i < row.channels for i in indices)
        if not valid or indices != sorted(set(indices)):
            raise ValueError(f"removed channels of '{row.layer}'")
    layers = tuple(
        LayerPlan(
            **_tuples({**row, "before": Cost(**row["before"]), "after": Cost(**row["after"])})
        )
        for row in data["layers"]
    )
    groups = tuple(GroupPlan(**_tuples(row)) for row in data["groups"])
    shapes = tuple(tuple(shape) for shape in data["input_shapes"])
    rest = {"creators": creators, "groups": groups, "layers": layers, "input_shapes": shapes}
    return Plan(**{**_tuples(data), **_costs(data), **rest})


def _costs(row: dict) -> dict:
    return {word: Cost(**row[word]) for word in ("before", "after")}


def _tuples(row: dict) -> dict:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _is_named(path: str, name: str) -> bool:
    return path == name or path.rsplit("/", 1)[-1] == name


def _shorten(names, limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
