"""Downloads that go wrong in every way: one line each, nothing left behind, and the next attempt works."""

import contextlib
import errno
import hashlib
import http.server
import logging
import socket
import socketserver
import struct
import subprocess
import sys
import threading

import pytest

import checkpoint_utilities
from checkpoint_utilities import PublicCheckpoint, find_checkpoint
from config_utilities import PROGRAM_DIR
from errors import CheckpointError
from program import mount

CONTENT = bytes(range(256)) * 1000
HALF = len(CONTENT) // 2


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT as /model.pt, and at other addresses with an accident, until the server is mended."""

    def do_GET(self):
        self.server.requests += 1
        accident = self.path.strip("/").partition("/")[0]
        getattr(self, f"_{accident}", self._whole)() if not self.server.mended else self._whole()

    def _whole(self):
        self._answer(CONTENT)

    def _answer(self, body, length=None, status=200, **headers):
        self.send_response(status)
        length = len(body) if length is None else length
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _cut(self):
        self._answer(CONTENT[:HALF], len(CONTENT))

    def _reset(self):
        self._cut()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()  # with unsent data dropped: RST

    def _short(self):
        self._answer(CONTENT, HALF)

    def _wordy(self):
        self._answer(CONTENT, "many")

    def _nothing(self):
        self._answer(b"")

    def _page(self):
        self._answer(b"<html>Sign in to continue</html>")

    def _missing(self):
        self.send_error(404, "Not Found")

    def _broken(self):
        self.send_error(500, "Internal Server Error")

    def _around(self):
        self._answer(b"", status=302, Location=self.path)

    def _unknown(self):
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    def _unfinished(self):
        self._answer(b"%x\r\n" % HALF + CONTENT[:HALF] + b"\r\n", Transfer_Encoding="chunked")

    def _chunked(self):
        self._answer(b"%x\r\n" % len(CONTENT) + CONTENT + b"\r\n0\r\n\r\n", Transfer_Encoding="chunked")

    def _endless(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def _silent(self):
        self._cut()
        self.server.goes_on.wait(60)

    def _slow(self):
        self._cut()
        self.server.waits.set()
        self.server.goes_on.wait(60)
        self.wfile.write(CONTENT[HALF:])

    def log_message(self, *_):
        pass


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests, self.mended = 0, False
        self.waits, self.goes_on = threading.Event(), threading.Event()

    def handle_error(self, *_):
        """A client that went away is what these tests are about."""


@pytest.fixture
def server():
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.goes_on.set()
        server.shutdown()
        thread.join()


def public(url, sha256=None):
    return {"model": PublicCheckpoint(url, sha256 or hashlib.sha256(CONTENT).hexdigest())}


def find(url, folder, sha256=None):
    return find_checkpoint(
        "model", public(url, sha256), flag="--sam-model", checkpoints_dir=folder, show_progress=False
    )


def refusal(url, folder, sha256=None):
    """The message of a download that must fail in one line, and leave nothing."""
    with pytest.raises(CheckpointError) as error:
        find(url, folder, sha256)
    assert "\n" not in str(error.value)
    assert f"fetch {url} elsewhere and put it at {folder / 'model.pt'}" in str(error.value)
    assert "give --sam-model a file that you have" in str(error.value)
    return str(error.value)


def names(folder):
    return [each.name for each in folder.iterdir()]


@pytest.mark.parametrize("how", ["whole", "chunked", "endless"], ids=["with its length", "in chunks", "to the end"])
def test_a_missing_public_model_is_downloaded_verified_and_kept(server, tmp_path, how):
    path = find(f"{server.url}/{how}/model.pt", tmp_path / "checkpoints")
    assert path == tmp_path / "checkpoints" / "model.pt"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["model.pt"]


def test_a_model_in_place_is_not_downloaded_again(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"mine")
    assert find("http://127.0.0.1:9/model.pt", tmp_path).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("accident", "words"),
    [
        ("cut", "what arrived is cut short or is not the published file"),
        ("reset", "the connection broke (["),
        ("short", "what arrived is cut short or is not the published file"),
        ("wordy", "what arrived is cut short or is not the published file (invalid literal for int()"),
        ("nothing", "what arrived is cut short or is not the published file"),
        ("unfinished", "the connection broke (IncompleteRead("),
        ("page", "what arrived is cut short or is not the published file"),
        ("missing", "the server answers 404 Not Found; fetch"),
        ("broken", "the server answers 500 Internal Server Error; fetch"),
        ("around", "the server answers 302 The HTTP server returned a redirect error that would lead to an infinite"),
        ("unknown", "the connection broke (SSH-2.0-OpenSSH_9.6"),
        ("silent", "the connection broke (timed out); try again"),
    ],
    ids=[
        "the connection is cut",
        "the connection is reset",
        "a length that is too small",
        "a length that is no number",
        "nothing",
        "chunks without an end",
        "a web page",
        "no such file",
        "a broken server",
        "a redirection in circles",
        "no web server",
        "a silent server",
    ],
)
def test_a_failed_download_leaves_nothing_and_the_next_one_works(server, tmp_path, monkeypatch, accident, words):
    monkeypatch.setattr(checkpoint_utilities, "_SILENCE", 0.5)
    assert words in refusal(f"{server.url}/{accident}/model.pt", tmp_path)
    assert names(tmp_path) == []
    server.mended = True
    assert find(f"{server.url}/{accident}/model.pt", tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["model.pt"]


def test_another_file_than_the_published_one_is_not_kept(server, tmp_path):
    message = refusal(f"{server.url}/model.pt", tmp_path, "0" * 64)
    assert "what arrived is cut short or is not the published file (invalid hash value (expected" in message
    assert names(tmp_path) == []


def test_without_a_network_the_message_gives_address_place_and_way_on(tmp_path):
    assert "http://127.0.0.1:9/model.pt: can't be reached (" in refusal("http://127.0.0.1:9/model.pt", tmp_path)


def test_a_public_name_never_means_another_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_bytes(b"a file that happens to be called so")
    assert "can't be reached" in refusal("http://127.0.0.1:9/model.pt", tmp_path / "checkpoints")


def test_what_a_killed_download_left_is_no_model_and_is_cleared_away(server, tmp_path):
    (tmp_path / "model.pt.0123.partial").write_bytes(CONTENT[:10])
    assert find(f"{server.url}/model.pt", tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == ["model.pt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [("size=128k", "No space left on device"), ("ro", "Read-only file system")],
    ids=["no room", "not writable"],
)
def test_a_disk_that_takes_no_model_keeps_no_part_of_it(server, disk, options, words):
    assert mount(disk, f"remount,{options}")
    message = refusal(f"{server.url}/model.pt", disk)
    assert message.startswith(f"{disk / 'model.pt'}: can't be written ({words}); fetch")
    assert names(disk) == []
    assert mount(disk, "remount,rw,size=1m")
    assert find(f"{server.url}/model.pt", disk).read_bytes() == CONTENT
    assert names(disk) == ["model.pt"]


def test_a_limit_of_file_sizes_keeps_no_part_of_a_model(server, tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no limits of file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, before[1]))
    try:
        message = refusal(f"{server.url}/model.pt", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{tmp_path / 'model.pt'}: can't be written (File too large)" in message
    assert names(tmp_path) == []


def test_a_folder_that_can_not_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = refusal(f"{server.url}/model.pt", tmp_path / "file" / "checkpoints")
    assert message.startswith(f"{tmp_path / 'file' / 'checkpoints' / 'model.pt'}: can't be written (Not a directory)")


def test_a_folder_in_the_place_of_a_model_is_named(server, tmp_path):
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"model.pt: is a folder where a model should be; move it away"):
        find(f"{server.url}/model.pt", tmp_path)
    assert server.requests == 0


@contextlib.contextmanager
def downloading_elsewhere(server, folder):
    """Another process that has half of the model."""
    code = (
        "import sys; from pathlib import Path; from checkpoint_utilities import PublicCheckpoint, find_checkpoint; "
        "public = {'model': PublicCheckpoint(*sys.argv[1:3])}; "
        "find_checkpoint('model', public, flag='--sam-model', checkpoints_dir=Path(sys.argv[3]), show_progress=False)"
    )
    checkpoint = public(f"{server.url}/slow/model.pt")["model"]
    arguments = [sys.executable, "-c", code, checkpoint.url, checkpoint.sha256, str(folder)]
    with subprocess.Popen(arguments, cwd=PROGRAM_DIR) as process:
        assert server.waits.wait(60)
        yield process
        process.kill()


@contextlib.contextmanager
def on_warning(act):
    """Does something when the program warns; yields the warnings."""
    messages = []

    class Handler(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())
            act()

    handler = Handler(logging.WARNING)
    logging.getLogger("sam2vit").addHandler(handler)
    yield messages
    logging.getLogger("sam2vit").removeHandler(handler)


def test_two_processes_download_a_model_once(server, tmp_path):
    with downloading_elsewhere(server, tmp_path) as process, on_warning(server.goes_on.set) as warnings:
        assert find(f"{server.url}/slow/model.pt", tmp_path).read_bytes() == CONTENT
        assert process.wait() == 0
    assert warnings == [f"{tmp_path / 'model.pt'}: another run is downloading it; waiting for its end"]
    assert server.requests == 1
    assert names(tmp_path) == ["model.pt"]


def test_a_process_that_waited_goes_on_where_the_other_is_killed(server, tmp_path):
    with downloading_elsewhere(server, tmp_path) as process:

        def kill():
            process.kill()
            server.goes_on.set()

        with on_warning(kill):
            assert find(f"{server.url}/slow/model.pt", tmp_path).read_bytes() == CONTENT
    assert server.requests == 2
    assert names(tmp_path) == ["model.pt"]


@pytest.mark.filterwarnings("ignore:flock not supported:UserWarning")  # filelock's own way to go on
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_takes_models_all_the_same(server, tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl", reason="Windows locks in another way")

    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert find(f"{server.url}/model.pt", tmp_path).read_bytes() == CONTENT
    assert "model.pt" in names(tmp_path)
