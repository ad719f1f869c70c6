"""Layers by name, pattern or object."""

import difflib
import fnmatch
from typing import Any

import keras

from keras_nisp.channels.channel_map import ChannelMap
from keras_nisp.keras_graph.walking import held_operations


def matching(channel_map: ChannelMap, entry: Any, argument: str) -> list[str]:
    """Paths of the layers that a name, pattern or layer object stands for.

    Raises:
        ValueError: nothing matches; the message names what is near.
    """
    calls = channel_map.calls
    if isinstance(entry, keras.Operation):
        held = {id(operation) for operation in held_operations(entry)}
        paths = [call.path for call in calls if id(call.layer) in held]
        name, received = entry.name, f"layer object '{entry.name}', which is of another model"
    else:
        paths = list(channel_map.paths.get(entry, ())) if isinstance(entry, str) else []
        name, received = str(entry), f"{entry!r}, which matches none"
        if set(name) & set("*?["):
            matches = fnmatch.filter(channel_map.paths, name)
            paths += [path for name in matches for path in channel_map.paths[name]]
    if not paths:
        near = difflib.get_close_matches(name, [call.path for call in calls], 3, 0.4)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Expected every entry of `{argument}` to match a layer of model "
            f"'{channel_map.model.name}'. Received: {received}.{hint}"
        )
    return list(dict.fromkeys(paths))
