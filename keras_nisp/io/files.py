"""Files and folders that are written as a whole or not at all."""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SCRATCH = ".part"  # how names of unfinished work end


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and moves the file there into its place.

    If writing fails or is interrupted, the old file stays and nothing else is left. What is left
    by a process that was killed, the next one that writes the same file removes.

    Args:
        path: of the file that is to be replaced or made.

    Raises:
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: it is a folder.
    """
    path = Path(path)
    check_writable(path)
    with _scratch(path) as folder:
        temporary = folder / path.name  # writers go by the ending
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def making_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a folder beside `path` to fill, and renames it to `path`, which must be new.

    Nobody who looks at `path` ever sees half of it.

    Args:
        path: of the folder that is to be made. Its parents are made, too.

    Raises:
        FileExistsError: there is something at `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        if path.exists():  # a rename would replace an empty folder
            raise FileExistsError(f"Expected a new folder. '{path}' exists.")
        os.rename(temporary, path)


def check_writable(path: str | os.PathLike) -> None:
    """Raises unless a file can be written at `path`, before any work starts.

    Raises:
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: it is a folder.
        PermissionError: its folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Expected a file. '{path}' is a folder.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Expected a folder that exists. '{path.parent}' does not: make it first, or choose "
            "another path."
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"The folder '{path.parent}' cannot be written to.")


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, so on the same disk; it is gone afterwards."""
    _remove_leftovers(path)
    # Names with a dot are no version numbers, so TF Serving does not look at it.
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=SCRATCH))
    try:
        with lock(folder / ".lock", wait=False):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Removes what earlier processes that were killed left of the same file."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}{re.escape(SCRATCH)}")
    for entry in os.scandir(path.parent):
        if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            young = time.time() - entry.stat().st_mtime < 1  # made, and not locked yet
            with contextlib.suppress(OSError), lock(Path(entry.path) / ".lock", wait=False):
                if not young:
                    shutil.rmtree(entry.path, ignore_errors=True)


def lock(path: str | os.PathLike, wait: bool = True) -> contextlib.AbstractContextManager:
    """A lock by a file, which ends with its process.

    Raises:
        TimeoutError: another process has it, if this one is not to wait.
    """
    from filelock import FileLock

    return FileLock(path, timeout=-1 if wait else 0)
