"""Weights as attacks: files that would run code, take the memory, or end in a traceback."""

import io
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch

from checkpoint_utilities import find_checkpoint, read_weights
from clip_utilities import ClipModel
from detector_utilities import detector_checkpoints, load_detector
from errors import CheckpointError
from program import count_refusals
from sam_utilities import load_sam2, predict_sam2

resource = pytest.importorskip("resource", reason="Windows has no pipes in folders, and counts memory in another way")

DETECTOR = "ssdlite320_mobilenet_v3_large"


def read(path):
    return read_weights(path, kind="a model", flag="--model")


def load_clip(path):
    return ClipModel(str(path), items=("red", "blue"), prompts=("red car", "blue car"), checkpoints_dir=path.parent)


def load_torchvision(path):
    path.rename(path.parent / detector_checkpoints()[DETECTOR].file_name)
    return load_detector(DETECTOR, checkpoints_dir=path.parent)


LOADERS = {
    "SAM 2": lambda path: load_sam2(str(path), "sam2.1_hiera_micro"),
    "CLIP": load_clip,
    "a detector": load_torchvision,
}


@pytest.fixture(params=LOADERS)
def load(request):
    """What loads a model of one kind from a path."""
    return LOADERS[request.param]


def refusal(load, path):
    """The message of a file that must be refused, in one line."""
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800
    return str(error.value)


def save_zip(path, pickled, records=(), compression=zipfile.ZIP_STORED, *, archive=False):
    """Saves a zip as torch writes it, around any pickle, or a TorchScript archive."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/version", "3\n")
        if archive:
            file.writestr("x/constants.pkl", b"\x80\x02).")
        for key, content in dict(records).items():
            file.writestr(f"x/data/{key}", content)


def tensor_pickle(*sizes, name="a", numel=4, stride=(1,)):
    """The pickle of a state dict of tensors, of sizes that may be untrue, that share the storage "0"."""
    content = {f"{name}{index}": _Tensor(size, numel, stride) for index, size in enumerate(sizes)}
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=2)
    pickler.persistent_id = lambda each: (
        ("storage", torch.FloatStorage, "0", "cpu", each.numel) if isinstance(each, _Storage) else None
    )
    pickler.dump(content)
    return buffer.getvalue()


class _Storage:
    def __init__(self, numel):
        self.numel = numel


class _Tensor:
    def __init__(self, size, numel, stride):
        self.arguments = _Storage(numel), 0, size, stride, False, {}

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class _Creates:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class _Archived(torch.nn.Module):
    """A TorchScript module that creates a file when it is loaded."""

    def __init__(self, path):
        super().__init__()
        self.text_projection, self.path = torch.nn.Parameter(torch.ones(2, 2)), str(path)

    @torch.jit.export
    def __getstate__(self):
        return self.text_projection, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.text_projection, self.path, self.training = state[0], state[1], state[2]
        torch.save(state[0], self.path)

    def forward(self, x):
        return x


ATTACKS = {
    "torch.save": lambda path, creates: torch.save({"model": creates}, path),
    "beside weights": lambda path, creates: torch.save({"model": {"a": torch.ones(2)}, "more": creates}, path),
    "before torch 1.6": lambda path, creates: torch.save(
        {"model": creates}, path, _use_new_zipfile_serialization=False
    ),
    "TorchScript": lambda path, creates: torch.jit.save(torch.jit.script(_Archived(creates.path)), path),
    **{
        f"a pickle, protocol {protocol}": lambda path, creates, protocol=protocol: path.write_bytes(
            pickle.dumps(creates, protocol)
        )
        for protocol in range(6)
    },
    **{
        f"a zipped pickle, protocol {protocol}": lambda path, creates, protocol=protocol: save_zip(
            path, pickle.dumps(creates, protocol)
        )
        for protocol in range(6)
    },
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_code_in_a_file_of_weights_does_not_run(tmp_path, load, attack):
    victim = tmp_path / "created"
    attack(tmp_path / "attack.pt", _Creates(victim))
    victim.unlink(missing_ok=True)  # TorchScript runs it when it is saved, too
    assert "attack.pt: not " in refusal(load, tmp_path / "attack.pt") or load is load_torchvision
    assert not victim.exists()


def test_the_attacks_are_some(tmp_path):
    for name in ("a pickle, protocol 2", "TorchScript"):
        ATTACKS[name](tmp_path / "attack.pt", _Creates(tmp_path / "created"))
        (tmp_path / "created").unlink(missing_ok=True)
        if name == "TorchScript":
            torch.jit.load(tmp_path / "attack.pt")
        else:
            pickle.loads((tmp_path / "attack.pt").read_bytes())
        assert (tmp_path / "created").exists()


class _Expanded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("a", torch.zeros(1).expand(10**6, 10**6))

    def forward(self, x):
        return x


HUNGRY = {
    "expanded": (
        lambda path: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path),
        "'a' would have 1000000000000 numbers, more than the file holds of it",
    ),
    "expanded a little": (
        lambda path: torch.save({"a": torch.zeros(4)[:2].expand(3, 2)}, path),
        "'a' would have 6 numbers, more than the file holds of it",
    ),
    "expanded before torch 1.6": (
        lambda path: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path, _use_new_zipfile_serialization=False),
        "'a' would have 1000000000000 numbers",
    ),
    "expanded in an archive": (
        lambda path: torch.jit.save(torch.jit.script(_Expanded()), path),
        "'a' would have 1000000000000 numbers",
    ),
    "too large for its storage": (
        lambda path: save_zip(path, tensor_pickle((10**9,), numel=4), {"0": bytes(16)}),
        "it is damaged",
    ),
    "an archive without a module": (
        lambda path: save_zip(path, tensor_pickle((4,)), {"0": bytes(16)}, archive=True),
        "it holds no module",
    ),
    "a negative size": (lambda path: save_zip(path, tensor_pickle((-1,)), {"0": bytes(16)}), "it is damaged"),
    "a thousand that share their numbers": (
        lambda path: save_zip(path, tensor_pickle(*[(2**18,)] * 1000, numel=2**18), {"0": bytes(1 << 20)}),
        "its tensors would have more than twice the 11",
    ),
    "a compressed storage in an archive": (
        lambda path: save_zip(
            path, tensor_pickle((10**8,), numel=10**8), {"0": bytes(4 * 10**8)}, zipfile.ZIP_DEFLATED, archive=True
        ),
        "it is damaged (KeyError)",
    ),
    "modules without an end": (
        lambda path: save_zip(path, b"\x80\x02c__torch__.a\nM\nq\0)\x81q\1}X\1\0\0\0nh\1sb.", archive=True),
        "it holds more than 10000 names",
    ),
    "modules that double": (
        lambda path: save_zip(
            path,
            b"\x80\x02c__torch__\nM\nq\0)\x81}X\1\0\0\0xK\1sb"  # a module; then some that hold the one before twice
            + b"q\1h\0)\x81}(X\1\0\0\0ah\1X\1\0\0\0bh\1ub" * 60
            + b".",
            archive=True,
        ),
        "it holds more than 10000 names",
    ),
}


@pytest.mark.parametrize(("make", "words"), HUNGRY.values(), ids=HUNGRY)
def test_a_file_takes_no_more_memory_than_its_size_allows(tmp_path, make, words):
    make(tmp_path / "hungry.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refusal(read, tmp_path / "hungry.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


VALUES = {
    "a number": (lambda: 1.5, "'a' is no tensor"),
    "nothing": (lambda: None, "'a' is no tensor"),
    "a text": (lambda: "weights", "'a' is no tensor"),
    "a list": (lambda: [torch.ones(2)], "'a' is no tensor"),
    "a dictionary": (lambda: {"b": torch.ones(2)}, "'a' is no tensor"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "'a' is no dense tensor of real numbers"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "'a' is no dense tensor of real numbers"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "'a' is no dense tensor"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "'a' is no dense tensor"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "'a' is no dense tensor of real numbers"),
    "without numbers": (lambda: torch.ones(3, device="meta"), "'a' is no dense tensor of real numbers"),
    "NaN": (lambda: torch.tensor([1, float("nan")]), "'a' holds NaN or infinite numbers"),
    "infinite": (lambda: torch.tensor([[1], [float("inf")]]), "'a' holds NaN or infinite numbers"),
    "minus infinite": (lambda: torch.tensor([-float("inf"), float("inf")]).half(), "'a' holds NaN or infinite numbers"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, that nested and CSR tensors are prototypes
@pytest.mark.parametrize(("make", "words"), VALUES.values(), ids=VALUES)
def test_a_value_that_is_no_dense_finite_tensor_is_named(tmp_path, make, words):
    torch.save({"fine": torch.ones(2), "a": make()}, tmp_path / "x.pt")
    message = refusal(read, tmp_path / "x.pt")
    assert message.startswith(f"{tmp_path / 'x.pt'}: not a model: {words}")
    assert message.endswith("; fetch or make it again, or name another with --model")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_large_numbers_are_no_infinite_ones(tmp_path, dtype):
    largest = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    torch.save({"a": largest, "count": torch.tensor(7), "mask": torch.ones(2, dtype=torch.bool)}, tmp_path / "x.pt")
    assert torch.equal(read(tmp_path / "x.pt")["a"], largest)


@pytest.mark.parametrize("key", [7, 1.5, None, (1, 2), b"bytes", "a\nb", "a" * 5000], ids=repr)
def test_a_key_that_is_no_name_is_refused(tmp_path, load, key):
    torch.save({"model": {key: torch.ones(2)}, key: torch.ones(2)}, tmp_path / "x.pt")
    refusal(load, tmp_path / "x.pt")


def first_layer(kind):
    return "image_encoder.trunk.pos_embed" if kind == "SAM 2" else "positional_embedding"


@pytest.mark.parametrize("kind", ["SAM 2", "CLIP"])
def test_nan_among_the_weights_names_the_first_tensor(tmp_path, kind, sam2_checkpoint, clip_checkpoint):
    content = torch.load(sam2_checkpoint if kind == "SAM 2" else clip_checkpoint, weights_only=True)
    weights = content["model"] if kind == "SAM 2" else content
    name = first_layer(kind)
    weights[name].view(-1)[5] = torch.nan
    torch.save(content, tmp_path / "x.pt")
    assert f": {name!r} holds NaN or infinite numbers; fetch or make it again" in refusal(
        LOADERS[kind], tmp_path / "x.pt"
    )


def renamed(key):
    return lambda weights: weights.update({key: weights.pop("visual.proj")})


def resized(key, *size):
    return lambda weights: weights.update({key: torch.zeros(size)})


CLIPS = {
    "no projection": (lambda weights: weights.pop("text_projection"), "none of CLIP's names, such as 'text_proj"),
    "a distant layer": (renamed("transformer.resblocks.99999999.x"), "not a CLIP model"),
    "a distant stage": (renamed("visual.layer4.99.x"), "not a CLIP model"),
    "a name that ends early": (resized("transformer.resblocks", 1), "not a CLIP model: IndexError"),
    "hundreds of layers": (
        lambda weights: weights.update({f"transformer.resblocks.{n}.x": torch.zeros(1) for n in range(300)}),
        "not a CLIP model: RuntimeError: Error(s) in loading state_dict for CLIP: Missing key(s)",
    ),
    "no dimensions": (resized("positional_embedding"), "not a CLIP model: IndexError"),
    "no width": (resized("ln_final.weight", 0), "not a CLIP model: "),
    "a width without numbers": (lambda weights: weights.update({"ln_final.weight": torch.zeros(0).expand(0)}), "not a"),
    "terabytes without numbers": (resized("visual.conv1.weight", 10**9, 10**9, 0), "not a CLIP model: "),
    "a short context": (resized("positional_embedding", 20, 64), "it reads fewer than 77 tokens"),
    "few words": (resized("token_embedding.weight", 100, 64), "it knows fewer than 49408 tokens"),
    "a huge photo": (resized("visual.positional_embedding", 70 * 70 + 1, 64), "it sees more than 1024 px"),
    "many patches": (
        lambda weights: weights.update(
            {
                "visual.positional_embedding": torch.zeros(65 * 65 + 1, 64),
                "visual.conv1.weight": torch.ones(64, 3, 8, 8),
            }
        ),
        "it sees more than 4097 patches",
    ),
    "a scale that overflows": (
        lambda weights: weights.update({"logit_scale": torch.tensor(90.0)}),
        "its logit_scale overflows; fetch it again, or name another --clip-model",
    ),
    "numbers too large for half precision": (
        lambda weights: weights.update({"visual.proj": torch.full((64, 64), 1e6)}),
        "'visual.proj' holds numbers too large for torch.float16",
    ),
    "numbers too large for a product": (
        lambda weights: weights.update({"ln_final.weight": torch.full((64,), 1e38)}),
        "makes no features of the prompts, only NaN; name another --clip-model",
    ),
}


@pytest.mark.parametrize(("change", "words"), CLIPS.values(), ids=CLIPS)
def test_a_clip_of_absurd_names_or_shapes_is_refused(tmp_path, clip_checkpoint, change, words):
    weights = torch.load(clip_checkpoint, weights_only=True)
    change(weights)
    torch.save(weights, tmp_path / "x.pt")
    assert words in refusal(load_clip, tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("name", "value"),
    [("visual.ln_post.weight", torch.full((64,), 1e38)), ("visual.proj", torch.zeros(64, 64))],
    ids=["infinities", "zeros"],
)
def test_a_clip_that_makes_nothing_of_a_photo_says_so(tmp_path, clip_checkpoint, name, value):
    weights = torch.load(clip_checkpoint, weights_only=True)
    weights[name] = value
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="CLIP makes NaN of it"):
        load_clip(tmp_path / "x.pt").process([np.full((64, 64, 3), 9, np.uint8)])


def test_a_sam_2_that_makes_nan_of_a_photo_says_so(tmp_path, sam2_checkpoint):
    content = torch.load(sam2_checkpoint, weights_only=True)
    content["model"]["image_encoder.trunk.pos_embed"] += 1e38
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="SAM 2 makes NaN of it"):
        predict_sam2([np.full((64, 64, 3), 9, np.uint8)], LOADERS["SAM 2"](tmp_path / "x.pt"))


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device", "a long name", "NUL", "a name in a file"])
def test_what_is_no_file_is_no_model(tmp_path, kind):
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "file").write_bytes(b"")
    path = {
        "a folder": str(tmp_path / "folder.pt"),
        "a pipe": str(tmp_path / "pipe.pt"),
        "a device": "/dev/zero",
        "a long name": "x" * 5000,
        "NUL": "a\0b",
        "a name in a file": str(tmp_path / "file" / "x.pt"),
    }[kind]
    with pytest.raises(CheckpointError, match=r"--sam-model .*: no such model: neither a file, nor"):
        find_checkpoint(path, {}, flag="--sam-model", checkpoints_dir=tmp_path)


def other_values(value, rng):
    """What may stand in place of a tensor, each made only if it is chosen."""
    other = rng.choice([torch.float64, torch.float16, torch.int32, torch.bool, torch.complex64])
    changes = [
        lambda: torch.zeros([]),
        lambda: torch.zeros(rng.choice([(1,), (3, 5), (0, 10**9), (1,) * 30]), dtype=value.dtype),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: value[None],
        lambda: value.to(other),
        lambda: value * rng.choice([float("nan"), float("inf"), 1e30, -1e38, 0]),
        lambda: rng.choice([1.5, [1, 2], None, "text", {"a": 1}, (1,), b"bytes", {1}]),
    ]
    if value.dim():
        changes += [
            lambda: value[:0],
            lambda: value[:1].clone().expand(value.shape),
            lambda: value.transpose(0, -1).contiguous().transpose(0, -1),
        ]
    return changes


def mutated(weights, rng):
    """Weights with a few seeded changes of names, shapes, types and numbers."""
    weights = dict(weights)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        name = rng.choice([name for name, value in weights.items() if isinstance(value, torch.Tensor)])
        kind, value = rng.randrange(6), weights[name]
        if kind == 0:
            del weights[name]
        elif kind == 1:
            weights[f"{name}{rng.choice(['.x', 's', '..', '.0'])}"] = weights.pop(name)
        elif kind == 2:
            weights[rng.choice(["transformer.resblocks.9999.x", "visual.layer1", "", 1, (1, 2), None])] = value
        elif value.numel() < 10**9:  # not one that was expanded
            weights[name] = rng.choice(other_values(value, rng))()
    return weights


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("kind", ["SAM 2", "CLIP"])
def test_changed_weights_end_in_one_line_or_in_a_model(tmp_path, kind, sam2_checkpoint, clip_checkpoint, soak, figure):
    tries = 1000 if soak else 25
    content = torch.load(sam2_checkpoint if kind == "SAM 2" else clip_checkpoint, weights_only=True)

    def attempt(seed):
        rng, path = random.Random(seed), tmp_path / "x.pt"
        changed = mutated(content["model"] if kind == "SAM 2" else content, rng)
        as_zip = rng.random() < 0.8
        torch.save({"model": changed} if kind == "SAM 2" else changed, path, _use_new_zipfile_serialization=as_zip)
        LOADERS[kind](path)

    refused = count_refusals(tries, attempt, CheckpointError)
    figure(f"changed checkpoints of {kind}", f"{tries}, {refused} refused, the others load")


def damaged(content, rng):
    """Bytes that are cut off, flipped, replaced, taken out, or repeated."""
    changed = bytearray(content)
    start = rng.randrange(len(changed))
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(changed[:start])
    if kind == 1:
        for _ in range(rng.choice([1, 1, 3, 20])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(rng.choice([1, 2, 8])):
            changed[rng.randrange(len(changed))] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    else:
        end = start + rng.randrange(1, 64)
        changed[start:end] = rng.choice([b"", changed[start:end] * 3, rng.randbytes(end - start)])
    return bytes(changed)


@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "TorchScript"])
def test_damaged_bytes_end_in_one_line_or_in_weights(tmp_path, kind, soak, figure):
    tries = 100_000 if soak else 1000
    path, module = tmp_path / "x.pt", torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    if kind == "TorchScript":
        torch.jit.save(torch.jit.script(module), path)
    else:
        torch.save(module.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()

    def attempt(seed):
        path.write_bytes(damaged(content, random.Random(seed)))
        assert all(isinstance(tensor, torch.Tensor) for tensor in read(path).values())

    refused = count_refusals(tries, attempt, CheckpointError)
    figure(f"damaged checkpoints, {kind}", f"{tries}, {refused} refused, the others read")
