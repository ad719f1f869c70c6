"""Layers by name, pattern or object."""

import difflib
import fnmatch
from typing import Any

from keras_nisp.channels.channel_map import ChannelMap


def matching(channel_map: ChannelMap, entry: Any, argument: str) -> list[str]:
    """Paths of the layers that a name, pattern or layer object stands for.

    Raises:
        ValueError: nothing matches; the message names what is near.
    """
    calls = channel_map.calls
    if not isinstance(entry, str):
        paths = [call.path for call in calls if call.layer is entry]
        entry = getattr(entry, "name", entry)
    else:
        paths = list(channel_map.paths.get(entry, ()))
        if set(entry) & set("*?["):
            matches = fnmatch.filter(channel_map.paths, entry)
            paths += [path for name in matches for path in channel_map.paths[name]]
    if not paths:
        near = difflib.get_close_matches(str(entry), [call.path for call in calls], 3, 0.4)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Expected every entry of `{argument}` to match a layer of model "
            f"'{channel_map.model.name}'. Received: {entry!r}, which matches none.{hint}"
        )
    return list(dict.fromkeys(paths))
