"""From the name of a model to a verified file of weights in checkpoints/."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import io
import logging
import os
import pickle
import socket
import ssl
import urllib.error
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from errors import CheckpointError
from lock_utilities import hold_lock
from storage_utilities import is_file

if TYPE_CHECKING:
    from torch import Tensor

_LOGGER = logging.getLogger("sam2vit")

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
        if is_file(path):
            return _readable(path)
    if model in public:
        path = checkpoints_dir / public[model].file_name
        _download(public[model], path, flag=flag, show_progress=show_progress)
        return path
    raise _unknown(model, public, flag, checkpoints_dir)


def check_model(
    model: str, public: Mapping[str, PublicCheckpoint], *, flag: str, checkpoints_dir: Path = CHECKPOINTS_DIR
) -> None:
    """Says before anything is downloaded what `find_checkpoint` would say of a model that there is not.

    Raises:
        CheckpointError: There is no such model.
    """
    if model not in public and not is_present(model, public, checkpoints_dir):
        raise _unknown(model, public, flag, checkpoints_dir)


def _unknown(model: str, public: Mapping[str, PublicCheckpoint], flag: str, checkpoints_dir: Path) -> CheckpointError:
    near = difflib.get_close_matches(model, public, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return CheckpointError(
        f"{flag} {model}: no such model: neither a file, nor {checkpoints_dir / model}.pt; {hint}"
        f"known by name: {', '.join(public)}"
    )


def published_digest(path: Path, model: str, public: Mapping[str, PublicCheckpoint], *, flag: str) -> str:
    """Returns the SHA-256 of a model's file, hexadecimal, which under a public name is the published one.

    Args:
        path: From `find_checkpoint`, as the other arguments.
        model: Its name, or a path.
        public: The models that can be downloaded.
        flag: The command-line flag that chooses this model.

    Raises:
        CheckpointError: It is not: another file was put there, or it is damaged; or it can't be read.
    """
    digest = file_digest(path)
    if model in public and not digest.startswith(public[model].sha256):
        raise CheckpointError(
            f"{path}: is not the {model} that was published, of which the SHA-256 begins with "
            f"{public[model].sha256[:8]}, not {digest[:8]}; delete it to download it again, or name it as a path with "
            f"{flag}"
        )
    return digest


def is_present(model: str, public: Mapping[str, PublicCheckpoint], checkpoints_dir: Path = CHECKPOINTS_DIR) -> bool:
    """Whether `find_checkpoint` would find the model without a download."""
    return any(is_file(path) for path in _places(model, public, checkpoints_dir))


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


_SILENCE = 60.0  # seconds that a server may send nothing


def _download(checkpoint: PublicCheckpoint, path: Path, *, flag: str, show_progress: bool) -> None:
    """Downloads to a temporary name, verifies the SHA-256 and renames into place.

    `torch.hub.download_url_to_file` does all three. It serves CLIP's files, too, whose own downloader writes
    under the final name from the first byte, so that an interruption leaves half a model there.
    """
    import torch.hub

    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder where a model should be; move it away")
    by_hand = f"fetch {checkpoint.url} elsewhere and put it at {path}"
    by_hand += "" if flag == "--detector" else f", or give {flag} a file that you have"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _download_lock(path), _socket_timeout(_SILENCE):
            if not path.is_file():  # another run may have brought it meanwhile
                torch.hub.download_url_to_file(
                    checkpoint.url, str(path), hash_prefix=checkpoint.sha256, progress=show_progress
                )
    except urllib.error.HTTPError as error:
        answer = f"{error.code} {_one_line(error.reason)}"
        raise CheckpointError(f"{checkpoint.url}: the server answers {answer}; {by_hand}") from None
    except urllib.error.URLError as error:
        raise CheckpointError(f"{checkpoint.url}: can't be reached ({_one_line(error.reason)}); {by_hand}") from None
    except (HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise CheckpointError(
            f"{checkpoint.url}: the connection broke ({_one_line(error)}); try again, or {by_hand}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be written ({error.strerror or error}); {by_hand}") from None
    # From download_url_to_file: "invalid hash value (expected ..., got ...)", or of a length that is no number.
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.url}: what arrived is cut short or is not the published file ({_one_line(error)}); "
            f"try again, or {by_hand}"
        ) from None


@contextlib.contextmanager
def _download_lock(path: Path) -> Iterator[None]:
    """Keeps other runs from downloading the same file meanwhile, and clears away the parts of it that are left.

    Parts are left by a run that was killed, and by torch's function itself where the disk is full.
    """
    waiting = functools.partial(_LOGGER.warning, "%s: another run is downloading it; waiting for its end", path)
    with hold_lock(path.with_name(f".{path.name}.lock"), on_held=waiting):
        _clear_parts(path)
        try:
            yield
        finally:
            _clear_parts(path)


def _clear_parts(path: Path) -> None:
    for part in path.parent.glob(f"{path.name}.*.partial"):
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bounds the wait for a silent server; download_url_to_file has no parameter for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200]


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal.

    Raises:
        CheckpointError: It can't be read to its end.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}); fetch or make it again") from None
    return digest.hexdigest()


def read_weights(path: Path, *, kind: str, flag: str, under: str | None = None) -> dict[str, Tensor]:
    """Returns the weights of a .pt by name: dense, finite tensors on the CPU. No code that the file holds is run.

    Args:
        path: What `torch.save` has written, or a TorchScript archive, as OpenAI publishes CLIP.
        kind: What it should be, for the messages: "a SAM 2 checkpoint".
        flag: The command-line flag that chooses it, for the messages.
        under: The key of the outermost dictionary that the weights stand under; None where they are all of it.

    Raises:
        CheckpointError: The file is something else, is damaged, or holds anything but weights.
    """
    import torch

    try:
        with path.open("rb") as file:
            problem = _not_a_checkpoint(file.read(64))
        if problem:
            raise CheckpointError(f"{path}: {problem}")
        if _is_torchscript(path):
            content = _read_archive(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that torch did not write; an error says what is wrong
                content = torch.load(path, map_location="cpu", weights_only=True)
        if under is not None and isinstance(content, dict):
            content = content[under] if under in content else _say_where_weights_are(content, under)
        _check_weights(content, under, file_size=path.stat().st_size)
        return content
    except OSError as error:
        reason = f"it can't be read ({error.strerror or error})"
    except _NoWeightsError as error:
        reason = str(error)
    except CheckpointError:
        raise
    except Exception as error:  # damage makes the unpickler raise whatever it makes it
        unknown = "Unsupported global" in str(error) or "Unsupported class" in str(error)
        harmful = "it holds Python objects beside weights, which could run code"
        reason = harmful if unknown else f"it is damaged ({type(error).__name__})"
    raise CheckpointError(f"{path}: not {kind}: {reason}; fetch or make it again, or name another with {flag}")


_LONGEST_SAFETENSORS_HEAD = 100_000_000  # bytes, by its specification


class _NoWeightsError(Exception):
    """What a file holds that is no weights."""


def _not_a_checkpoint(head: bytes) -> str | None:
    """Says what a file is that was saved in place of a checkpoint, by its beginning; None where it may be one."""
    if not head:
        return "is empty; delete it to download it again"
    if head.lstrip().startswith(b"<"):
        return "is a web page, not a checkpoint; delete it and fetch the file itself"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < _LONGEST_SAFETENSORS_HEAD:
        return "is a safetensors file; save it as a .pt: torch.save(safetensors.torch.load_file(...), ...)"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not a checkpoint; fetch it with 'git lfs pull'"
    return None


def _say_where_weights_are(content: Mapping[Any, Any], under: str) -> NoReturn:
    """Says that there are none under a key, and whether there are some elsewhere."""
    import torch

    def are_weights(value: Any) -> bool:
        return isinstance(value, dict) and any(isinstance(each, torch.Tensor) for each in value.values())

    elsewhere = next((f"under {_one_line(repr(key))}" for key, value in content.items() if are_weights(value)), None)
    elsewhere = "outermost" if are_weights(content) else elsewhere
    reason = f"it holds no dictionary of weights under the key {under!r}"
    raise _NoWeightsError(f"{reason}, but {elsewhere}: save them under {under!r}" if elsewhere else reason)


def _check_weights(content: Any, under: str | None, *, file_size: int) -> None:
    """Checks that these are dense, finite tensors by name, no larger in memory than the file can be the reason for."""
    import torch

    if not isinstance(content, dict):
        where = "" if under is None else f" under the key {under!r}"
        raise _NoWeightsError(f"it holds no dictionary of weights{where}")
    total = 0
    for name, tensor in content.items():
        shown = _one_line(repr(name))
        if not isinstance(name, str):
            raise _NoWeightsError(f"{shown} is no name of a tensor")
        if not isinstance(tensor, torch.Tensor):
            raise _NoWeightsError(f"{shown} is no tensor")
        plain = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
        if not plain or tensor.is_complex():
            raise _NoWeightsError(f"{shown} is no dense tensor of real numbers")
        # A tensor of one number with strides of 0 may be of any size, and is, once it is copied.
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise _NoWeightsError(f"{shown} would have {tensor.numel()} numbers, more than the file holds of it")
        total += tensor.nbytes
        if total > 2 * file_size:  # tied weights share their numbers; a thousand layers that do are an attack
            raise _NoWeightsError(f"its tensors would have more than twice the {file_size} bytes of the file")
        if not is_finite(tensor):
            raise _NoWeightsError(f"{shown} holds NaN or infinite numbers")


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; those carry a constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_archive(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a TorchScript archive by the names that its `state_dict` has.

    `torch.load` refuses such archives, and `torch.jit.load` runs their code, which may write files. Here only their
    data is read. The format is that of torch/csrc/jit/docs/serialization.md in PyTorch's sources.
    """
    with zipfile.ZipFile(path) as archive:
        # By their names in the one folder that all lie in. torch compresses none: none grows when it is read.
        records = {
            info.filename.partition("/")[2]: info
            for info in archive.infolist()
            if info.compress_type == zipfile.ZIP_STORED
        }
        root = _ArchiveUnpickler(archive, records).load()
    if not isinstance(root, _Inert):
        raise _NoWeightsError("it holds no module")
    tensors: dict[str, Tensor] = {}
    modules = [("", root)]
    for prefix, module in modules:  # which grows meanwhile
        for name, value in vars(module).items():
            if _is_module(value):
                modules.append((f"{prefix}{name}.", value))
            elif not isinstance(value, _Inert) and hasattr(value, "untyped_storage"):
                tensors[prefix + name] = value
            if max(len(modules), len(tensors)) > _MOST_NAMES:  # modules that hold themselves, or each other twice
                raise _NoWeightsError(f"it holds more than {_MOST_NAMES} names")
    return tensors


_MOST_NAMES = 10_000  # CLIP's RN50x64 has 1,353 tensors


class _Inert:
    """Stands for whatever an archive's pickle would import and call; of a module it keeps the attributes."""

    def __init__(self, *_: Any) -> None:
        pass


def _is_module(value: Any) -> bool:
    return isinstance(value, _Inert) and bool(vars(value))


class _ArchiveUnpickler(pickle.Unpickler):
    """Rebuilds the tensors of a TorchScript archive; all else that its pickle names becomes inert."""

    def __init__(self, archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo]) -> None:
        super().__init__(io.BytesIO(archive.read(records["data.pkl"])))
        self._archive, self._records = archive, records
        self._storages: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if module == "torch" and name in _DTYPES:
            return getattr(torch, _DTYPES[name])
        return dict if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        import torch

        _, dtype, key, *_ = pid  # ("storage", its type, key, device, number of elements)
        if key not in self._storages:
            numbers = bytearray(self._archive.read(self._records[f"data/{key}"]))
            untyped = (
                torch.frombuffer(numbers, dtype=torch.uint8).untyped_storage() if numbers else torch.UntypedStorage()
            )
            self._storages[key] = torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)
        return self._storages[key]


_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinite numbers; `isfinite` of 1 GB would take 1.5 s, this 0.1 s."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # NaN and infinity show in any sum. One of finite numbers may overflow: then the extremes tell.
    return bool(tensor.sum().isfinite()) or bool(torch.stack(tensor.aminmax()).isfinite().all())


def cast_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, path: Path) -> dict[str, Tensor]:
    """Returns weights in the precisions of a module's own; where those are the same, no number is copied.

    Raises:
        CheckpointError: A number is too large for its new precision.
    """
    cast = {key: value.to(own[key].dtype) for key, value in weights.items()}
    for key, value in cast.items():
        if value is not weights[key] and not is_finite(value):
            raise CheckpointError(f"{path}: {key!r} holds numbers too large for {value.dtype}; fetch or make it again")
    return cast


def load_matching(module: Any, weights: Mapping[str, Tensor], *, path: Path, architecture: str, flag: str) -> None:
    """Makes weights, in the module's precision, those of a module that must have exactly these tensors.

    Raises:
        CheckpointError: Names or shapes differ, or a number is too large; names the file and the first difference.
    """
    own = module.state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in own.items()}
    given = {key: tuple(tensor.shape) for key, tensor in weights.items()}
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
    module.load_state_dict(cast_weights(weights, own, path=path), assign=True)
