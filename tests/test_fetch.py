"""Downloads, from a server on this machine: mirrors, resuming, digests, and no network at all."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest
from commands import command, dispatch
from sources import write_source

from dpcnn.data.downloads import DOWNLOADS, FILES, Download, fetch
from dpcnn.data.emnist import CLASSES
from dpcnn.errors import ConfigError, DataError
from dpcnn.parallel.comm import SerialComm


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, with ranges; breaks off after ``stop_after`` bytes of the next answer, if set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.stop_after, self.ranges, self.requests = folder, None, True, []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        path = self.server.folder / self.path.strip("/")
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop, self.server.stop_after = self.server.stop_after, None
        self.wfile.write(content[start : None if stop is None else start + stop])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    folder = write_source(tmp_path / "served", "idx.gz")
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def download(server) -> Download:
    digests = {name: "sha256:" + hashlib.sha256((server.folder / name).read_bytes()).hexdigest() for name in FILES}
    return Download((server.address,), digests, "none")


def quiet(line: str) -> None:
    pass


def test_files_arrive_whole(server, download, tmp_path):
    fetch(download, tmp_path / "got", quiet)
    assert {p.name: p.read_bytes() for p in (tmp_path / "got").iterdir()} == {
        p.name: p.read_bytes() for p in server.folder.iterdir()
    }
    count = len(server.requests)
    fetch(download, tmp_path / "got", quiet)
    assert len(server.requests) == count, "what is there is not fetched again"


def test_an_interrupted_download_goes_on_where_it_stopped(server, download, tmp_path):
    server.stop_after = 1000
    with pytest.raises(DataError, match=f"can't download {FILES[0]}"):
        fetch(download, tmp_path / "got", quiet)
    assert (tmp_path / "got" / f"{FILES[0]}.part").stat().st_size == 1000
    fetch(download, tmp_path / "got", quiet)
    assert (f"/{FILES[0]}", "bytes=1000-") in server.requests
    assert (tmp_path / "got" / FILES[0]).read_bytes() == (server.folder / FILES[0]).read_bytes()


def test_a_server_without_ranges_is_asked_for_the_whole(server, download, tmp_path):
    server.ranges = False
    server.stop_after = 1000
    with pytest.raises(DataError):
        fetch(download, tmp_path / "got", quiet)
    fetch(download, tmp_path / "got", quiet)
    assert (tmp_path / "got" / FILES[0]).read_bytes() == (server.folder / FILES[0]).read_bytes()


def test_the_next_mirror_is_tried(server, download, tmp_path):
    mirrors = ("http://127.0.0.1:9/", server.address + "nowhere/", server.address)
    fetch(Download(mirrors, download.digests, ""), tmp_path / "got", quiet)
    assert len(list((tmp_path / "got").iterdir())) == 4


def test_a_false_file_is_not_kept(server, download, tmp_path):
    (server.folder / FILES[1]).write_bytes(b"something else")
    with pytest.raises(DataError, match=rf"can't download {FILES[1]}: .*its sha256 is .*, expected .*; copy the file"):
        fetch(download, tmp_path / "got", quiet)
    assert [path.name for path in (tmp_path / "got").iterdir()] == [FILES[0]]


def test_a_file_that_was_there_before_is_held_against_its_digest(server, download, tmp_path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / FILES[0]).write_bytes(b"something else")
    with pytest.raises(DataError, match=rf"{FILES[0]}: its sha256 is .*, expected .*; remove it"):
        fetch(download, tmp_path / "got", quiet)


@pytest.mark.parametrize("name", ["got", f"got/{FILES[0]}.part"])
def test_planted_links_are_not_followed(name, server, download, tmp_path):
    (tmp_path / "got").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"precious")
    path = tmp_path / name
    if name == "got":
        path.rmdir()
        path.symlink_to(tmp_path)
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        fetch(download, tmp_path / "got", quiet)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious" and not (tmp_path / FILES[0]).exists()


def test_what_a_server_says_steers_no_terminal(server, download, tmp_path, monkeypatch):
    def refuse(handler):
        handler.send_response_only(500, "\x1b[2J")
        handler.end_headers()

    monkeypatch.setattr(Handler, "do_GET", refuse)
    with pytest.raises(DataError, match=r": \\x1b\[2J; copy the file"):
        fetch(download, tmp_path / "got", quiet)


def test_a_server_that_sends_no_end_is_left(server, download, tmp_path, monkeypatch):
    monkeypatch.setattr("dpcnn.data.downloads.MOST_DOWNLOAD", 500)
    with pytest.raises(DataError, match="sends more than 500 bytes"):
        fetch(download, tmp_path / "got", quiet)


def test_a_mirror_is_an_address_of_the_web(tmp_path):
    with pytest.raises(ConfigError, match="--mirror: expected an address http"):
        dispatch(SerialComm(), ["fetch", "mnist", "--out", str(tmp_path / "set"), "--mirror", "file:///dev/"])


def test_without_a_network_it_fails_with_one_line(tmp_path):
    out = tmp_path / "set"
    result = command("data", "fetch", "kmnist", "--out", out, "--mirror", "http://127.0.0.1:9/", ranks=3)
    assert result.status == 2
    assert len(result.errors) == 1 and "can't download train-images-idx3-ubyte.gz" in result.errors[0]
    assert not out.exists()


def test_one_rank_downloads_and_all_prepare(server, download, tmp_path, monkeypatch):
    """The command itself, on three ranks, with the digests of the files served here."""
    monkeypatch.setitem(DOWNLOADS, "mnist", Download((server.address,), download.digests, "a licence"))
    out = tmp_path / "set"
    result = command("data", "fetch", "mnist", "--out", out, ranks=3)
    assert result.status == 0, result.err
    assert len(server.requests) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served", "set"]
    assert "source: licence a licence" in command("data", "info", out).out


def test_the_known_sets_are_complete():
    archives = {"cifar10": {"cifar-10-binary.tar.gz"}, "cifar100": {"cifar-100-binary.tar.gz"}, "emnist": {"gzip.zip"}}
    archives |= {f"emnist-{division}": {"gzip.zip"} for division in CLASSES if division != "balanced"}
    assert set(DOWNLOADS) == {"mnist", "fashion-mnist", "kmnist", *archives}
    for name, known in DOWNLOADS.items():
        assert set(known.digests) == archives.get(name, set(FILES)) and known.mirrors
        for digest in known.digests.values():
            kind, _, value = digest.partition(":")
            assert len(bytes.fromhex(value)) == hashlib.new(kind).digest_size
