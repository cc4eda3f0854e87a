import hashlib
import pickle
import subprocess
import sys
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
    published_digest,
    read_weights,
)
from config_utilities import PROGRAM_DIR
from errors import CheckpointError

CONTENT = bytes(range(256)) * 1000


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


def test_a_model_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "mine.pt").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"mine.pt: Permission denied; change its permissions"):
        find_checkpoint("mine", {}, flag="--sam-model", checkpoints_dir=tmp_path)


def test_a_public_name_stands_for_the_published_file_alone(tmp_path):
    path = tmp_path / "sam.pt"
    path.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    public = {"sam": PublicCheckpoint("https://x/sam.pt", digest[:8]), "other": PublicCheckpoint("", "0" * 64)}
    assert published_digest(path, "sam", public, flag="--sam-model") == digest
    assert published_digest(path, str(path), public, flag="--sam-model") == digest
    with pytest.raises(
        CheckpointError, match=rf"is not the other that was published, .* with 00000000, not {digest[:8]}"
    ):
        published_digest(path, "other", public, flag="--sam-model")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"state_dict": {"a": torch.zeros(1)}},
            "under the key 'model', but under 'state_dict': save them under 'model'",
        ),
        ({"a": torch.zeros(1)}, "under the key 'model', but outermost: save them under 'model'"),
        ({"epoch": 3}, "it holds no dictionary of weights under the key 'model'; fetch or make it again"),
    ],
)
def test_weights_that_stand_elsewhere_are_pointed_at(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path / "a.pt", kind="a SAM 2 checkpoint", flag="--sam-model", under="model")


def test_safetensors_are_called_so(tmp_path):
    head = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    with pytest.raises(CheckpointError, match=r"is a safetensors file; save it as a \.pt"):
        read_weights(tmp_path / "a.safetensors", kind="a SAM 2 checkpoint", flag="--sam-model")


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


class _Layers(torch.nn.Module):
    """Weights of several precisions and shapes, of which two are the same and one is a transposed view."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 4)
        self.inner = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 5).half())
        self.tied = self.linear.weight
        self.scale = torch.nn.Parameter(torch.tensor(4.6))
        self.register_buffer("transposed", torch.arange(12.0).view(3, 4).T)
        self.register_buffer("every_other", torch.arange(100)[10:20:2])
        self.register_buffer("rounded", torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.sizes, self.name, self.device, self.complex = [1, 2], "layers", torch.device("cpu"), 1j

    def forward(self, x):
        return self.inner[0](self.linear(x))


@pytest.fixture(params=["zip", "before torch 1.6", "scripted", "traced"])
def saved(request, tmp_path):
    """A file of weights in each format, and what torch's own reader makes of it."""
    path, module = tmp_path / "weights.pt", _Layers().eval()
    if request.param in ("scripted", "traced"):
        traced = request.param == "traced"
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 3)) if traced else torch.jit.script(module), path)
        return path, torch.jit.load(path).state_dict()
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=request.param == "zip")
    return path, torch.load(path, weights_only=True)


def test_weights_are_those_of_torchs_own_readers(saved):
    path, expected = saved
    weights = read_weights(path, kind="a model", flag="--model")
    assert set(weights) == set(expected)
    for key, tensor in weights.items():
        assert torch.equal(tensor, expected[key])
        assert (tensor.dtype, tensor.stride()) == (expected[key].dtype, expected[key].stride())


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_weights_are_found_under_their_key_beside_what_training_left(tmp_path, as_zip):
    module = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    content = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "size": torch.Size((1,))}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=as_zip)
    weights = read_weights(tmp_path / "x.pt", kind="a model", flag="--model", under="model")
    assert {key: tensor.tolist() for key, tensor in weights.items()} == {
        key: tensor.tolist() for key, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"not weights at all", "not a model: .*; fetch or make it again, or name another with --model"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "not a model: .*; fetch or make it again, or name another with --model"),
        (b"PK\x03\x04 and then nothing", "not a model: it is damaged .*; fetch or make it again"),
        (pickle.dumps({"model": 1}, protocol=0)[:10], "not a model: .*; fetch or make it again"),
    ],
)
def test_a_file_that_is_no_checkpoint_says_so_in_one_line(tmp_path, content, words):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        read_weights(path, kind="a model", flag="--model")
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


def test_weights_too_large_for_the_modules_precision_are_named(tmp_path):
    weights = {"weight": torch.full((1, 1), 70_000.0), "bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"x.pt: 'weight' holds numbers too large for torch.float16"):
        load_matching(
            torch.nn.Linear(1, 1).half(), weights, path=tmp_path / "x.pt", architecture="linear", flag="--sam-config"
        )


@pytest.mark.parametrize(("given", "expected"), [("", "checkpoints"), ("/volume/weights", "weights")])
def test_checkpoints_lie_beside_the_program_or_where_the_environment_says(monkeypatch, given, expected):
    monkeypatch.setenv("SAM2VIT_CHECKPOINTS", given)
    code = "import checkpoint_utilities as c; print(c.CHECKPOINTS_DIR)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROGRAM_DIR, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).name == expected
