"""Files and folders that are written as a whole or not at all."""

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

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
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Removes what earlier processes that were killed left of the same file."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}{re.escape(SCRATCH)}")
    for entry in os.scandir(path.parent):
        if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError), _locked(Path(entry.path)) as is_ours:
                young = time.time() - entry.stat().st_mtime < 1  # made, and not locked yet
                if is_ours and not young:
                    shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Locks a folder, or says that another process has it; a lock ends with its process."""
    if sys.platform == "win32":  # which has no such locks: what killed processes left stays
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = True
        except OSError:  # another has it, or the file system has no locks
            is_ours = False
        yield is_ours
    finally:
        os.close(descriptor)
