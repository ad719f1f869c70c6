"""What a budget says of layers by their names, for a traced model."""

from collections.abc import Iterable, Mapping

import numpy as np

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.channels.selecting import matching
from keras_nisp.errors import several


def excluded_units(channel_map: ChannelMap, exclude: Iterable) -> np.ndarray:
    """Boolean per unit: whether it lies in a layer that is excluded."""
    excluded = np.zeros(channel_map.count, bool)
    for entry in exclude:
        for path in matching(channel_map, entry, "exclude"):
            excluded[channel_map.layer_units(path)] = True
    return excluded


def wanted_widths(channel_map: ChannelMap, widths: Mapping[str, int] | None) -> dict[str, int]:
    """The width of each layer that is given one, by path."""
    channels = {creator.layer: len(creator.units) for creator in channel_map.creators}
    wanted: dict[str, int] = {}
    for pattern, width in (widths or {}).items():
        layers = [path for path in matching(channel_map, pattern, "widths") if path in channels]
        if not layers:
            raise ValueError(
                f"Expected `widths` to name layers that create channels. Received: {pattern!r}, "
                "which matches none that does."
            )
        for layer in layers:
            if width > channels[layer]:
                raise ValueError(
                    f"Expected a width of at most {channels[layer]} for '{layer}', which has as "
                    f"many channels. Received: {width}"
                )
            wanted[layer] = width
    return wanted


def group_ratios(channel_map: ChannelMap, ratios: Mapping[str, float] | None) -> np.ndarray:
    """The ratio of each group: that of its layers, 0 where none is given."""
    result = np.zeros(len(channel_map.groups))
    given: dict[int, str] = {}
    group_of = {
        channel_map.creators[i].layer: g
        for g, group in enumerate(channel_map.groups)
        for i in group.creators
    }

    for pattern, ratio in (ratios or {}).items():
        layers = matching(channel_map, pattern, "ratios")
        groups = {group_of[layer] for layer in layers if layer in group_of}
        if not groups:
            raise ValueError(
                f"Expected `ratios` to name layers with channels that can be removed. Received: "
                f"{pattern!r}, which matches {several(map(repr, layers))}: these create none, or "
                "their channels are fixed (see `plan.explain`)."
            )
        for group in groups:
            if group in given and result[group] != ratio:
                raise ValueError(
                    f"Expected one ratio for coupled layers. Received: {given[group]!r}: "
                    f"{result[group]:g} and {pattern!r}: {ratio:g}, whose layers share channels."
                )
            given[group], result[group] = pattern, ratio
    return result


def block_shares(channel_map: ChannelMap, widths: dict[str, int]) -> np.ndarray:
    """For each unit the share of its block that must go for layers to have their widths.

    A layer that creates several blocks has less to say than those that create one alone.
    """
    shares = np.zeros(channel_map.count)
    creators = [c for c in channel_map.creators if c.layer in widths]
    blocks = [units for group in channel_map.groups for units in channel_map.blocks(group)]
    block_of = np.full(channel_map.count, -1)
    for index, units in enumerate(blocks):
        block_of[units] = index
    for alone in (False, True):
        for creator in creators:
            free = creator.units[channel_map.free[creator.units]]
            count, free = len(free), channel_map.products.deciding(free)
            free = free[channel_map.free[free]]
            if count and (len(np.unique(block_of[free])) == 1) == alone:
                share = (len(creator.units) - widths[creator.layer]) / count
                shares[np.isin(block_of, block_of[free]) & (block_of >= 0)] = min(share, 1)
    return shares
