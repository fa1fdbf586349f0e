"""Files: plain ones are read, nothing is written through a link, and a write is whole or has not been."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dpcnn.base.files import Folder, open_plain, read_bytes, write_file
from dpcnn.base.new_files import JSON, check_replaceable
from dpcnn.errors import ConfigError


@pytest.fixture
def victim(tmp_path) -> Path:
    """A file that nothing in these tests may touch."""
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    with Folder(tmp_path / "folder") as folder:
        yield folder


def test_a_file_is_replaced_in_one_move(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"old")
    before = path.stat().st_ino
    write_file(path, b"n", memoryview(b"ew"))
    assert path.read_bytes() == b"new" and path.stat().st_ino != before and os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(folder, monkeypatch):
    folder.write("file", b"old")
    for failing in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*_, **__):
                raise OSError(28, "No space left on device")

            patch.setattr(os, failing, fail)
            with pytest.raises(OSError, match="No space left on device") as caught:
                folder.write("file", b"new")
        assert caught.value.filename == str(folder.path / "file")
        assert read_bytes(folder.path / "file") == b"old" and folder.names() == ["file"]


def test_no_link_is_written_through(folder, victim):
    for name, target in (("link", victim), ("dangling", victim.parent / "new")):
        (folder.path / name).symlink_to(target)
        for write in (lambda name=name: folder.write(name, b"x"), lambda name=name: folder.appending(name)):
            with pytest.raises(OSError, match="is a link, which is not followed"):
                write()
        folder.remove(name)
    assert not (victim.parent / "new").exists()
    os.link(victim, folder.path / "hard")
    with pytest.raises(OSError, match="has another name \\(a hard link\\)"):
        folder.appending("hard")
    folder.write("hard", b"x")  # the name alone is taken over
    assert folder.names() == ["hard"]


def test_no_folder_behind_a_link_is_entered(folder, victim):
    (folder.path / "inner").symlink_to(victim.parent)
    with pytest.raises(OSError):
        folder.inside("inner")
    with folder.inside("own") as own:
        own.write("file", b"x")
    assert read_bytes(folder.path / "own" / "file") == b"x"


def test_a_folder_that_is_moved_away_takes_its_files_along(folder, tmp_path):
    (tmp_path / "folder").rename(tmp_path / "moved")
    (tmp_path / "folder").symlink_to("/")
    folder.write("file", b"x")
    assert read_bytes(tmp_path / "moved" / "file") == b"x"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_plain_file_is_refused_at_once(folder, make):
    make(folder.path / "odd")
    for use in (
        lambda: read_bytes(folder.path / "odd"),
        lambda: folder.write("odd", b"x"),
        lambda: folder.appending("odd"),
    ):
        with pytest.raises(OSError, match="not a plain file|Is a directory"):
            use()


def test_devices_are_not_opened(folder):
    with pytest.raises(OSError, match="not a plain file"):
        open_plain(Path("/dev/zero"))
    (folder.path / "zero").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a plain file"):
        read_bytes(folder.path / "zero")


def test_a_limit_on_size(folder):
    folder.write("file", bytes(10))
    assert len(read_bytes(folder.path / "file", 10)) == 10
    with pytest.raises(OSError, match="10 bytes; at most 9 are read"):
        read_bytes(folder.path / "file", 9)


HOLD = """
import sys, time
from pathlib import Path
from dpcnn.base.files import Folder
lock = Folder(Path(sys.argv[1])).lock(".lock", "process 7 on elsewhere")
print("held", flush=True)
time.sleep(100)
"""


def test_a_lock_is_held_until_its_process_ends(folder):
    folder.check_unlocked(".lock")
    assert folder.names() == [], "to look leaves nothing behind"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder.path], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        for take in (lambda: folder.lock(".lock", "me"), lambda: folder.check_unlocked(".lock")):
            with pytest.raises(BlockingIOError) as caught:
                take()
            assert caught.value.strerror == "process 7 on elsewhere"
        holder.kill()
    folder.check_unlocked(".lock")
    folder.lock(".lock", "me")
    assert read_bytes(folder.path / ".lock") == b"me"


@pytest.mark.parametrize("kind", ["other", "link", "broken link", "pipe", "folder", "no folder"])
def test_results_replace_no_other_file(tmp_path, kind):
    path, earlier = tmp_path / "results.json", tmp_path / "earlier.json"
    earlier.write_text("{}")
    match kind:
        case "other":
            path.write_text("mine")
        case "link" | "broken link":
            path.symlink_to(earlier if kind == "link" else tmp_path / "nowhere")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "no folder":
            path = tmp_path / "none" / "results.json"
    with pytest.raises(
        ConfigError, match="^--json: no such folder: " if kind == "no folder" else "did not write it; give"
    ):
        check_replaceable("--json", path, JSON)


@pytest.mark.parametrize("content", [None, "", '{"ranks": 2}'])
def test_results_replace_earlier_results(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    check_replaceable("--json", tmp_path / "results.json", JSON)
