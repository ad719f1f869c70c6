"""Rows of a plan: layers that create channels, coupled groups, layers and variables."""

import dataclasses
from typing import Annotated

import numpy as np

from keras_nisp.channels.channel_map import Binding, ChannelMap
from keras_nisp.channels.cost import Cost
from keras_nisp.channels.unit_map import DROPPED, UnitMap
from keras_nisp.io.schema import AsPairs


@dataclasses.dataclass(frozen=True)
class CreatorPlan:
    """What happens to the channels that one layer creates.

    Attributes:
        layer: path of the layer.
        channels: number of its channels.
        removed: indices of the channels that are removed, ascending.
        group: index of its coupled group, or -1 if none of the channels may be removed.
        reasons: reasons for which channels were kept.
        clusters: if channels are merged, a partition of all indices: the channels of a
            cluster become one, in the place of the one that is not removed. Otherwise empty.
    """

    layer: str
    channels: int
    removed: tuple[int, ...]
    group: int
    reasons: tuple[str, ...]
    clusters: tuple[tuple[int, ...], ...] = ()

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
        units: number of sets of coupled channels that may be removed, each by itself.
        removed: number of such sets that are removed.
        scores: score of each set; `None` where the importance gives none. Empty if channels are
            merged, and in plans of earlier releases.
        removed_units: if there are scores, indices of the sets that are removed.
        damages: if widths were chosen by damage, pairs of a number of sets that stay, from all of
            them down, and the damage at that width. The last pairs are narrower than the plan.
    """

    creators: tuple[str, ...]
    followers: tuple[str, ...]
    readers: tuple[str, ...]
    units: int
    removed: int
    scores: tuple[float | None, ...] = ()
    removed_units: tuple[int, ...] = ()
    damages: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """Width and costs of one layer before and after.

    Attributes:
        layer: path of the layer.
        kind: name of its class.
        channels: numbers of its channels before and after.
        before, after: costs before and after.
    """

    layer: str
    kind: str
    channels: tuple[int, int]
    before: Cost
    after: Cost


@dataclasses.dataclass(frozen=True)
class VariablePlan:
    """What C-SGD does to one trainable variable.

    Attributes:
        path: path of the variable.
        shape: shape of the variable.
        is_kernel: whether it is a kernel, not a bias or scale.
        clusters: for each axis that owns clustered channels, the cluster of every
            position; empty if there is no such axis.
    """

    path: str
    shape: tuple[int, ...]
    is_kernel: bool
    clusters: Annotated[dict[int, tuple[int, ...]], AsPairs]


def creator_clusters(units: np.ndarray, unit_map: UnitMap) -> tuple[tuple[int, ...], ...]:
    """The partition of a creator's channels, in the order of their first members."""
    if not unit_map.merged[units].any():
        return ()
    clusters: dict[int, list[int]] = {}
    for index, label in enumerate(unit_map.labels(units).tolist()):
        if label != DROPPED:
            clusters.setdefault(label, []).append(index)
    return tuple(map(tuple, clusters.values()))


def variable_rows(channel_map: ChannelMap, unit_map: UnitMap) -> tuple[VariablePlan, ...]:
    """What is clustered in each trainable variable, in the order of `trainable_variables`."""
    rows = []
    for variable in channel_map.model.trainable_variables:
        binding = channel_map.bindings.get(id(variable))
        clusters = {
            axis: tuple(unit_map.labels(units).tolist())
            for axis, units in (owned_axes(binding, unit_map) if binding else {}).items()
        }
        is_kernel = binding is not None and binding.positions > 0
        rows.append(VariablePlan(variable.path, tuple(variable.shape), is_kernel, clusters))
    return tuple(rows)


def owned_axes(binding: Binding, unit_map: UnitMap) -> dict[int, np.ndarray]:
    """Axes of a variable that own channels which are merged, and their units."""
    return {
        axis: units
        for axis, units in binding.axes.items()
        if axis not in binding.read and unit_map.merged[units].any()
    }
