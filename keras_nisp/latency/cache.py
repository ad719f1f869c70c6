"""Measured latencies on disk, one file for each machine and version of the runtime."""

import contextlib
import dataclasses
import json
import os
import platform
import re
from pathlib import Path
from typing import Literal

from keras_nisp.errors import warn
from keras_nisp.export.interpreter import runtime_name
from keras_nisp.io import schema
from keras_nisp.io.files import lock, replacing

FORMAT = 1


class LatencyCache:
    """Seconds by key, kept in a JSON file.

    The file is replaced as a whole. Several processes may share it: each adds what it has measured
    to what it finds there, one after the other.

    Args:
        path: of the file; by default one in the user's cache folder, named after the processor
            and the runtime. `False` keeps nothing.
    """

    def __init__(self, path: str | os.PathLike | Literal[False] | None = None):
        self.path = None if path is False else Path(path or default_path())
        self._entries: dict[str, float] | None = None
        self._fresh: dict[str, float] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._known()

    def __getitem__(self, key: str) -> float:
        return self._known()[key]

    def __setitem__(self, key: str, seconds: float) -> None:
        self._known()[key] = self._fresh[key] = seconds

    def save(self) -> None:
        """Writes what is new. A folder that cannot be written to gives a warning, once."""
        if not self._fresh or self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with lock(f"{self.path}.lock"), replacing(self.path) as temporary:
                entries = self._read() | self._fresh
                record = {"format": FORMAT, "machine": machine(), "entries": entries}
                temporary.write_text(json.dumps(record, indent=0))
            self._fresh = {}
        except OSError as error:
            warn(
                f"Measured latencies cannot be kept in '{self.path}' ({error}): they will be "
                "measured again. Give `LatencyTable` another path as `cache`."
            )
            self.path = None

    def _known(self) -> dict[str, float]:
        if self._entries is None:
            self._entries = self._read()
        return self._entries

    def _read(self) -> dict[str, float]:
        """What the file holds; one that is damaged or of another machine is set aside."""
        if self.path is None:
            return {}
        try:
            record = schema.parse(self.path.read_bytes())
            wrong = _complaint(record)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            wrong = f"cannot be read ({error})"
        if wrong is None:
            return record["entries"]
        aside = self.path.with_name(self.path.name + ".aside")
        with contextlib.suppress(OSError):
            os.replace(self.path, aside)
        warn(
            f"The latency table '{self.path}' {wrong}. It is set aside as '{aside.name}', and "
            "layers are measured again."
        )
        return {}


@dataclasses.dataclass(frozen=True)
class _Record:
    """What a file holds."""

    __pydantic_config__ = schema.STRICT

    format: int
    machine: dict[str, str]
    entries: dict[str, float]


def _complaint(record) -> str | None:
    """What is wrong with the content of a file, if anything is."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return "is no latency table of this version"
    if record.get("machine") != machine():
        return f"was measured elsewhere ({record.get('machine')})"
    try:
        entries = schema.read(_Record, record).entries
    except ValueError as error:
        return f"is damaged ({error})"
    return None if all(seconds > 0 for seconds in entries.values()) else "is damaged"


def machine() -> dict[str, str]:
    """What latencies depend on, apart from the work."""
    return {"processor": processor(), "runtime": runtime_name()}


def processor() -> str:
    """The processor's name, as its maker calls it where the system says so."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def default_path() -> Path:
    """The file of this machine in the user's cache folder."""
    import platformdirs  # not when the package is imported

    name = re.sub(r"[^a-z0-9.]+", "-", "-".join(machine().values()).lower())
    return platformdirs.user_cache_path("keras_nisp") / f"latency-{name}.json"
