"""Files and folders that are written as a whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from keras_nisp.io import files
from keras_nisp.io.files import check_writable, making_folder, replacing


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".json"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(error, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.replacing(sys.argv[2]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_kill_left_is_removed_by_the_next_that_writes(tmp_path):
    path = tmp_path / "plan.json"
    command = [sys.executable, "-c", WRITER, files.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        (scratch,) = tmp_path.iterdir()
        os.utime(scratch, (0, 0))
        with replacing(path) as temporary:
            temporary.write_text("whole")
        assert scratch.exists()  # its writer lives
        writer.send_signal(signal.SIGKILL)
    with replacing(tmp_path / "other.json") as temporary:
        temporary.write_text("other")
    assert scratch.exists()  # of another file
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.json", "plan.json"]


def test_a_folder_appears_at_once(tmp_path):
    path = tmp_path / "new" / "models" / "1"
    with making_folder(path) as temporary:
        (temporary / "a").write_text("a")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["a"]
    with pytest.raises(FileExistsError), making_folder(path) as temporary:
        pass
    assert [p.name for p in path.parent.iterdir()] == ["1"]


def test_what_cannot_be_written_is_said_first(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError, match="make it first"):
        check_writable(tmp_path / "missing" / "file")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written to"):
        check_writable(tmp_path / "file")
