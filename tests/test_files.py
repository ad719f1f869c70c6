"""Files and folders that are written as a whole or not at all."""

import os

import pytest

from keras_nisp.files import check_writable, making_folder, replacing


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
