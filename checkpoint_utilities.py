"""From the name of a model to a verified file of weights in checkpoints/."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import urllib.error
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from errors import CheckpointError

# The bundled models lie beside the program; what is downloaded goes there, too, or wherever a shared or writable
# place is (a volume of a container).
BUNDLED_DIR = Path(__file__).resolve().parent / "checkpoints"
CHECKPOINTS_DIR = Path(os.environ.get("SAM2VIT_CHECKPOINTS") or BUNDLED_DIR)


@dataclass(frozen=True)
class PublicCheckpoint:
    """A published file of weights: its address and the SHA-256 that its bytes must have, or how that begins."""

    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Its name under checkpoints/."""
        return self.url.rsplit("/", 1)[1]


_META = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"
SAM2_CHECKPOINTS = {
    name: PublicCheckpoint(f"{_META}/{name}.pt", sha256)
    for name, sha256 in {
        "sam2.1_hiera_tiny": "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        "sam2.1_hiera_small": "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        "sam2.1_hiera_base_plus": "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        "sam2.1_hiera_large": "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    }.items()
}


@functools.cache
def clip_checkpoints() -> dict[str, PublicCheckpoint]:
    """Returns the files behind `clip.available_models()`; OpenAI's addresses carry the SHA-256."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clip imports pkg_resources, which announces its end at every start
        from clip import clip
    return {name: PublicCheckpoint(url, url.split("/")[-2]) for name, url in clip._MODELS.items()}


def find_checkpoint(
    model: str,
    public: Mapping[str, PublicCheckpoint],
    *,
    flag: str,
    checkpoints_dir: Path = CHECKPOINTS_DIR,
    show_progress: bool = True,
) -> Path:
    """Returns the file of a model, downloading it on first use where it is a public one.

    Args:
        model: A name in `public`, the name of a .pt under `checkpoints_dir`, or a path to a .pt.
        public: The models that can be downloaded.
        flag: The command-line flag that chooses this model, for the messages.
        checkpoints_dir: Where downloads go and names are looked up.
        show_progress: Show a progress bar on stderr while downloading.

    Raises:
        CheckpointError: There is no such model, or it can't be downloaded.
    """
    for path in _places(model, public, checkpoints_dir):
        if path.is_file():
            return _readable(path)
    if model in public:
        path = checkpoints_dir / public[model].file_name
        _download(public[model], path, flag=flag, show_progress=show_progress)
        return path
    raise CheckpointError(
        f"{flag} {model}: no such model: neither a file, nor {checkpoints_dir / model}.pt; "
        f"known by name: {', '.join(public)}"
    )


def is_present(model: str, public: Mapping[str, PublicCheckpoint], checkpoints_dir: Path = CHECKPOINTS_DIR) -> bool:
    """Whether `find_checkpoint` would find the model without a download."""
    return any(path.is_file() for path in _places(model, public, checkpoints_dir))


def _places(model: str, public: Mapping[str, PublicCheckpoint], checkpoints_dir: Path) -> list[Path]:
    """Returns where a model may lie; a public name has one place, so that no other file can stand in for it."""
    if model in public:
        return [checkpoints_dir / public[model].file_name]
    return [Path(model), checkpoints_dir / model, checkpoints_dir / f"{model}.pt", BUNDLED_DIR / f"{model}.pt"]


def _readable(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; change its permissions, or name another file") from None
    return path


def _download(checkpoint: PublicCheckpoint, path: Path, *, flag: str, show_progress: bool) -> None:
    """Downloads to a temporary name, verifies the SHA-256 and renames into place.

    `torch.hub.download_url_to_file` does all three. It serves CLIP's files, too, whose own downloader writes
    under the final name from the first byte, so that an interruption leaves half a model there.
    """
    import torch.hub

    by_hand = f"fetch {checkpoint.url} elsewhere and put it at {path}"
    by_hand += "" if flag == "--detector" else f", or give {flag} a file that you have"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for partial in path.parent.glob(f"{path.name}.*.partial"):  # of a download that was killed
            partial.unlink(missing_ok=True)
        with _socket_timeout(60):
            torch.hub.download_url_to_file(
                checkpoint.url, str(path), hash_prefix=checkpoint.sha256, progress=show_progress
            )
    except urllib.error.HTTPError as error:
        raise CheckpointError(f"{checkpoint.url}: the server answers {error.code} {error.reason}; {by_hand}") from None
    except urllib.error.URLError as error:
        raise CheckpointError(f"{checkpoint.url}: can't be reached ({error.reason}); {by_hand}") from None
    except (HTTPException, ConnectionError, TimeoutError) as error:
        raise CheckpointError(f"{checkpoint.url}: the connection broke ({error}); try again, or {by_hand}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written ({error.strerror or error}); {by_hand}") from None
    except RuntimeError as error:  # download_url_to_file: "invalid hash value (expected ..., got ...)"
        raise CheckpointError(
            f"{checkpoint.url}: what arrived is cut short or is not the published file ({error}); "
            f"try again, or {by_hand}"
        ) from None


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bounds the wait for a silent server; download_url_to_file has no parameter for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_weights(path: Path) -> Any:
    """Returns what a .pt file holds, tensors on the CPU, without running any code from it.

    Raises:
        CheckpointError: The file is no checkpoint, or holds more than weights.
    """
    import torch

    problem = _not_a_checkpoint(path)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes make it raise
        reason = type(error).__name__
        if "Unsupported global" in str(error):
            reason = "it holds Python objects beside weights, which could run code"
        raise CheckpointError(f"{path}: not a checkpoint of plain weights: {reason}") from None


def _not_a_checkpoint(path: Path) -> str | None:
    """Says what a file is that was saved in place of a checkpoint; None where it may be one."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "is empty; delete it to download it again"
    if head.lstrip().startswith(b"<"):
        return "is a web page, not a checkpoint; delete it and fetch the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not a checkpoint; fetch it with 'git lfs pull'"
    return None


def load_matching(module: Any, weights: Mapping[str, Any], *, path: Path, architecture: str, flag: str) -> None:
    """Makes weights, in the module's precision, those of a module that must have exactly these tensors.

    Raises:
        CheckpointError: Names or shapes differ; names the file, the architecture and the first difference.
    """
    own = module.state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in own.items()}
    given = {key: tuple(getattr(value, "shape", ())) for key, value in weights.items()}
    differences = [
        *(f"{key} is missing" for key in expected if key not in given),
        *(
            f"{key} is {given[key]}, not {expected[key]}"
            for key in expected
            if given.get(key, expected[key]) != expected[key]
        ),
        *(f"{key} is unknown to it" for key in given if key not in expected),
    ]
    if differences:
        raise CheckpointError(
            f"{path}: does not fit the architecture {architecture}: difference 1 of {len(differences)}: "
            f"{differences[0]}; choose another with {flag}"
        )
    # Assigned, not copied: where the precision is the same, there are no second weights even for a moment.
    module.load_state_dict({key: value.to(own[key].dtype) for key, value in weights.items()}, assign=True)
