import hashlib
import http.server
import pickle
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from checkpoint_utilities import (
    SAM2_CHECKPOINTS,
    PublicCheckpoint,
    clip_checkpoints,
    file_digest,
    find_checkpoint,
    is_present,
    load_matching,
    read_weights,
)
from config_utilities import PROGRAM_DIR
from errors import CheckpointError

CONTENT = bytes(range(256)) * 1000


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /model.pt, and the accidents of the network at other addresses."""

    def do_GET(self):
        if self.path == "/missing.pt":
            self.send_error(404, "Not Found")
            return
        body = b"<html>Sign in to continue</html>" if self.path == "/page.pt" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut.pt" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def find(address, folder, sha256=None):
    public = {"model": PublicCheckpoint(address, sha256 or hashlib.sha256(CONTENT).hexdigest())}
    return find_checkpoint("model", public, flag="--sam-model", checkpoints_dir=folder, show_progress=False)


def test_a_missing_public_model_is_downloaded_verified_and_kept(server, tmp_path):
    path = find(f"{server}/model.pt", tmp_path / "checkpoints")
    assert path == tmp_path / "checkpoints" / "model.pt"
    assert path.read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == ["model.pt"]


def test_a_model_in_place_is_not_downloaded_again(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"mine")
    assert find("http://127.0.0.1:9/model.pt", tmp_path).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("page", "sha256", "words"),
    [
        ("cut.pt", None, "cut short or is not the published file"),
        ("model.pt", "0" * 64, "cut short or is not the published file"),
        ("page.pt", None, "cut short or is not the published file"),
        ("missing.pt", None, "the server answers 404 Not Found"),
    ],
    ids=["the connection is cut", "another digest", "a web page", "no such file"],
)
def test_a_failed_download_leaves_nothing_and_says_how_to_go_on(server, tmp_path, page, sha256, words):
    with pytest.raises(CheckpointError) as error:
        find(f"{server}/{page}", tmp_path, sha256)
    message = str(error.value)
    assert words in message
    assert f"fetch {server}/{page} elsewhere and put it at {tmp_path / page}" in message
    assert "give --sam-model a file that you have" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_message_gives_address_place_and_way_on(tmp_path):
    with pytest.raises(CheckpointError, match=r"127.0.0.1:9/model.pt: can't be reached .* put it at .*model.pt"):
        find("http://127.0.0.1:9/model.pt", tmp_path)


def test_what_a_killed_download_left_is_no_model_and_is_cleared_away(server, tmp_path):
    (tmp_path / "model.pt.0123.partial").write_bytes(CONTENT[:10])
    assert find(f"{server}/model.pt", tmp_path).read_bytes() == CONTENT
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", ["mine", "mine.pt"])
def test_a_file_placed_by_hand_is_found_by_name(tmp_path, name):
    (tmp_path / "mine.pt").write_bytes(b"x")
    assert find_checkpoint(name, {}, flag="--sam-model", checkpoints_dir=tmp_path) == tmp_path / "mine.pt"
    assert is_present(name, {}, tmp_path)
    assert not is_present("yours", {}, tmp_path)


def test_an_unknown_model_names_the_flag_the_place_and_the_known_ones(tmp_path):
    with pytest.raises(CheckpointError) as error:
        find_checkpoint("sam3", SAM2_CHECKPOINTS, flag="--sam-model", checkpoints_dir=tmp_path)
    message = str(error.value)
    assert message.startswith("--sam-model sam3: no such model")
    assert str(tmp_path / "sam3.pt") in message
    assert "sam2.1_hiera_tiny" in message


def test_a_public_name_never_means_another_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_bytes(b"a file that happens to be called so")
    with pytest.raises(CheckpointError, match="can't be reached"):
        find("http://127.0.0.1:9/model.pt", tmp_path / "checkpoints")


def test_a_model_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "mine.pt").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"mine.pt: Permission denied; change its permissions"):
        find_checkpoint("mine", {}, flag="--sam-model", checkpoints_dir=tmp_path)


def test_all_public_models_carry_a_digest():
    import clip

    assert set(clip_checkpoints()) == set(clip.available_models())
    assert len(SAM2_CHECKPOINTS) == 4
    for checkpoint in [*SAM2_CHECKPOINTS.values(), *clip_checkpoints().values()]:
        assert checkpoint.url.startswith("https://")
        assert len(bytes.fromhex(checkpoint.sha256)) == 32
    assert clip_checkpoints()["ViT-L/14@336px"].sha256.startswith("3035c92b350959924f9f00213499208652fc7ea")
    assert clip_checkpoints()["ViT-L/14@336px"].file_name == "ViT-L-14-336px.pt"


def test_the_digest_of_a_file_is_its_sha_256(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert file_digest(tmp_path / "file") == hashlib.sha256(CONTENT).hexdigest()


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    victim = tmp_path / "created"
    torch.save({"model": _Attack(str(victim))}, tmp_path / "attack.pt")
    with pytest.raises(CheckpointError, match=r"attack.pt: not a checkpoint .*: it holds Python objects"):
        read_weights(tmp_path / "attack.pt")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"not weights at all", "not a checkpoint of plain weights: UnpicklingError"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "not a checkpoint of plain weights: UnpicklingError"),
        (b"PK\x03\x04 and then nothing", "not a checkpoint of plain weights"),
        (pickle.dumps({"model": 1}, protocol=0)[:10], "not a checkpoint of plain weights"),
    ],
)
def test_a_file_that_is_no_checkpoint_says_so_in_one_line(tmp_path, content, words):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        read_weights(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("bias"), "difference 1 of 1: bias is missing"),
        (lambda weights: weights.update(bias=torch.zeros(3)), r"difference 1 of 1: bias is \(3,\), not \(2,\)"),
        (lambda weights: weights.update(more=torch.zeros(3)), "difference 1 of 1: more is unknown to it"),
    ],
    ids=["missing", "another shape", "unknown"],
)
def test_weights_that_do_not_fit_name_file_architecture_and_difference(tmp_path, change, words):
    module = torch.nn.Linear(4, 2)
    weights = dict(module.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=rf"x.pt: does not fit the architecture linear: {words}; .* --sam-config"):
        load_matching(module, weights, path=tmp_path / "x.pt", architecture="linear", flag="--sam-config")


@pytest.mark.parametrize(("given", "expected"), [("", "checkpoints"), ("/volume/weights", "weights")])
def test_checkpoints_lie_beside_the_program_or_where_the_environment_says(monkeypatch, given, expected):
    monkeypatch.setenv("SAM2VIT_CHECKPOINTS", given)
    code = "import checkpoint_utilities as c; print(c.CHECKPOINTS_DIR)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROGRAM_DIR, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).name == expected
