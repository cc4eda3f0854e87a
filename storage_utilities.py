"""Files in object stores, by the verbs of pathlib; and where photos and outputs lie that a user has named.

An object store has neither folders nor renaming nor appending. It has better: an object appears whole, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import mimetypes
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import IO, Any

from errors import ConfigError

SCHEMES = ("s3", "gs", "az")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BUCKET = re.compile(r"[A-Za-z0-9._$-]+")
_SERVERS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_SERVER = re.compile(r"https?://[^/?#\s]*[^/?#\s:](/\S*)?")  # others crash obstore in the middle of a request

# A large object may take long to be read, while something comes. Writing, a read_timeout would count what is sent,
# too: up to 5 MB a request, of which several share the line.
_READING = {"connect_timeout": "10s", "read_timeout": "1min", "timeout": "1day"}
_WRITING = {"connect_timeout": "10s", "timeout": "10min"}
# A run outlasts some minutes in which its store is throttled or away. (Not more: each try has the same credentials.)
_PATIENT = {"max_retries": 1000, "retry_timeout": timedelta(minutes=4)}  # 15 seconds apart at most
_IMPATIENT = {"max_retries": 6, "retry_timeout": timedelta(seconds=20)}
_CONNECTIONS = {
    "read": (_READING, _PATIENT),
    "write": (_WRITING, _PATIENT),
    "claim": (_WRITING, _IMPATIENT),  # where there is none: stores that don't know of that answer as if they were down
}
_NOTE = "joined"  # in the object's own metadata
_LONGEST_KEY = 1024  # bytes; S3's and Google's limit, and Azure's of characters
_LISTED = 1000  # objects an answer, as the stores themselves give

# What obstore says of a request: its verb, its URL, and what came of it.
_REQUEST = re.compile(
    r"Error performing ([A-Z]+) (\S+) (?:in|after) .*? - (?:Server returned non-2xx status code: )?(.*)"
)
_IN_ANSWERS = r"(?:<Code>|\(code: )(\w+)", r"<Message>(.*?)</Message>"
_UNREACHABLE = ("error sending request", "timed out", "dns error", "http error")
_ASKS_WHO_ONE_IS = re.compile(r"^http://(169\.254\.|metadata\.google)|/latest/api/token$")  # the machine's own role
_NO_CREDENTIALS = ("credential", "missing account", "account must be specified")
_ANOTHER_REGION = "the bucket is in another region; set AWS_REGION to that"
_REMEDIES = {
    "ExpiredToken": "the credentials have expired; renew AWS_SESSION_TOKEN and the keys that belong to it",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "PermanentRedirect": _ANOTHER_REGION,
    "AuthorizationHeaderMalformed": _ANOTHER_REGION,
}


def is_url(text: str) -> bool:
    """Whether a text names a place by a URL: a scheme of two letters or more, so that C:// is a drive."""
    return _URL.match(text) is not None


def to_place(text: str, *, flag: str) -> Path | RemotePath:
    """Returns the place that a path or a URL names.

    What follows the bucket is the key as it is: it is not percent-decoded.

    Args:
        text: Such as `photos` or `s3://bucket/photos`.
        flag: That has named it, for the messages.

    Raises:
        ConfigError: It names no place in a store, obstore is not installed, or the environment names no server.
    """
    match = _URL.match(text)
    if match is None:
        return Path(text)
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in ("file", *SCHEMES))
        text = re.sub(r"://.*@", "://...@", text)  # who one is stays untold
        raise ConfigError(f"{flag} {text}: no place that is known; use a path, or one of {known}")
    bucket, _, key = text[match.end() :].partition("/")
    if not bucket:
        raise ConfigError(f"{flag} {text}: names no bucket; write {scheme}://BUCKET/FOLDER")
    if not _BUCKET.fullmatch(bucket):  # untold, as it may hold a secret
        raise ConfigError(
            f"{flag} {scheme}://...: what comes before the first slash is no name of a bucket; write "
            f"{scheme}://BUCKET/FOLDER, and keys and servers into the environment"
        )
    if not key.strip("/"):
        raise ConfigError(f"{flag} {text}: names a whole bucket; name a folder in it")
    if any(part in ("..", ".", "") for part in key.removesuffix("/").split("/")):
        raise ConfigError(f"{flag} {text}: holds a part that is empty or only dots; leave it out")
    for name in _SERVERS.get(scheme, ()):
        if not _is_server(os.environ.get(name) or "http://none"):
            raise ConfigError(f"{name}: is no address of a server; write https://HOST or http://HOST:PORT")
    try:
        import obstore  # noqa: F401 (to say early that it is missing)
    except ImportError:
        raise ConfigError(f"{flag} {text}: object stores need obstore; pip install -r requirements-urls.txt") from None
    return RemotePath(f"{scheme}://{bucket}", PurePosixPath(key))


def _is_server(address: str) -> bool:
    try:
        urllib.parse.urlsplit(address).port  # noqa: B018 (raises where it is beyond 65,535)
    except ValueError:
        return False
    return _SERVER.fullmatch(address) is not None


class TooLongError(Exception):
    """An object that is longer than it may be.

    Args:
        length: Its bytes.
    """

    def __init__(self, length: int) -> None:
        super().__init__(f"has {length:,} bytes")
        self.length = length


@dataclass(frozen=True)
class Entry:
    """What a listing has found.

    Attributes:
        name: In its folder.
        is_folder: Whether there are objects below it.
    """

    name: str
    is_folder: bool


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or a prefix of objects, as pathlib shows files and folders. It can be pickled.

    Where something is wrong its methods raise OSError with an errno and a reason of a few words, as files do.

    Attributes:
        root: `scheme://bucket`.
        key: What follows it.
    """

    root: str
    key: PurePosixPath

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    def __truediv__(self, other: str | PurePosixPath) -> RemotePath:
        return RemotePath(self.root, self.key / other)

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.name

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return self.key.stem

    @property
    def suffix(self) -> str:
        """The ending of the last part."""
        return self.key.suffix

    @property
    def parent(self) -> RemotePath:
        """What it lies in."""
        return RemotePath(self.root, self.key.parent)

    @property
    def parents(self) -> list[RemotePath]:
        """What it lies in, what that lies in, and so on."""
        return [RemotePath(self.root, key) for key in self.key.parents]

    def with_name(self, name: str) -> RemotePath:
        """Returns the place beside it of that name."""
        return RemotePath(self.root, self.key.with_name(name))

    def with_suffix(self, suffix: str) -> RemotePath:
        """Returns the place beside it with that ending."""
        return RemotePath(self.root, self.key.with_suffix(suffix))

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """Returns the way from a folder to it.

        Raises:
            ValueError: It does not lie there.
        """
        if self.root != other.root:
            raise ValueError(f"{self} is not in {other}")
        return self.key.relative_to(other.key)

    def is_relative_to(self, other: Path | RemotePath) -> bool:
        """Whether it lies in a folder; no key with dots for a part does, which no object has."""
        inside = isinstance(other, RemotePath) and self.root == other.root and self.key.is_relative_to(other.key)
        return inside and ".." not in self.key.parts

    def resolve(self) -> RemotePath:
        """Returns itself: there are no links."""
        return self

    def as_uri(self) -> str:
        """Returns its URL."""
        return str(self)

    def read_bytes(self) -> bytes:
        """Returns its contents."""
        return self.read_limited(None)

    def read_limited(self, most: float | None) -> bytes:
        """Returns its contents by one request, whose body is not read where it is longer than `most` bytes.

        Raises:
            TooLongError: It is longer.
            OSError: It can't be read.
        """
        with _errors(self):
            answer = _reach(self.root).get(str(self.key))
            size = answer.meta["size"]
            if most is not None and size > most:
                raise TooLongError(size)
            return bytes(answer.bytes())

    def read_head(self, length: int) -> bytes:
        """Returns its first bytes, at most so many."""
        with _errors(self):
            return bytes(_reach(self.root).get_range(str(self.key), start=0, length=length))

    def chunks(self) -> Iterator[bytes]:
        """Yields its contents, some megabytes at a time."""
        with _errors(self):
            for chunk in _reach(self.root).get(str(self.key)).stream(min_chunk_size=8 << 20):
                yield bytes(chunk)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns its contents as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "r", *, encoding: str | None = None) -> IO[Any]:
        """Opens it for reading, with all of it in memory."""
        if mode not in ("r", "rb"):
            raise ValueError(f"mode {mode!r}: an object is written whole; see write_bytes")
        contents = io.BytesIO(self.read_bytes())
        return contents if mode == "rb" else io.TextIOWrapper(contents, encoding=encoding)

    def write_file(self, file: IO[bytes], *, note: str = "") -> None:
        """Writes what a file holds from where it is read next, by several requests where it is large.

        Args:
            file: Open for reading.
            note: ASCII, which the store keeps with it, but not in it; see `read_note`.
        """
        self._put(file, attributes=_content_type(self.name) | {_NOTE: note})

    def read_note(self) -> str:
        """Returns what `write_file` was to keep with it; empty where there is none."""
        with _errors(self), contextlib.suppress(FileNotFoundError):
            return _reach(self.root).get(str(self.key), options={"head": True}).attributes.get(_NOTE, "")
        return ""

    def write_bytes(self, data: bytes) -> None:
        """Writes it: it appears whole, or not at all."""
        self._put(data, attributes=_content_type(self.name))

    def create(self, data: bytes) -> None:
        """Writes it where there is none.

        Raises:
            FileExistsError: There is one.
        """
        self._put(data, "claim", mode="create")

    def read_with_version(self) -> tuple[bytes, dict[str, str]]:
        """Returns its contents, and what tells this state of it from others, for `replace`.

        S3 and Azure compare `e_tag`, Google `version`; it is empty where a store has neither.
        """
        with _errors(self):
            answer = _reach(self.root).get(str(self.key))
            version = {kind: answer.meta[kind] for kind in ("e_tag", "version") if answer.meta[kind]}
            return bytes(answer.bytes()), version

    def replace(self, data: bytes, version: Mapping[str, str]) -> None:
        """Writes it where it is still what was read with that version; a store without versions can't tell, and writes.

        Raises:
            FileExistsError: Somebody has written or deleted it.
        """
        self._put(data, "claim", mode=dict(version) or "overwrite")

    def _put(self, data: bytes | IO[bytes], purpose: str = "write", **options: Any) -> None:
        if len(str(self.key).encode(errors="replace")) > _LONGEST_KEY:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(self))
        _check_fences(self)
        with _errors(self):
            _reach(self.root, purpose).put(str(self.key), data, **options)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Deletes it; stores do not say whether it was there."""
        _check_fences(self)
        with _errors(self), contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext():
            _reach(self.root).delete(str(self.key))

    def exists(self) -> bool:
        """Whether there is an object of that name."""
        with _errors(self), contextlib.suppress(FileNotFoundError):
            _reach(self.root).head(str(self.key))
            return True
        return False

    is_file = exists

    def is_dir(self) -> bool:
        """Whether objects lie below it."""
        from obstore.exceptions import InvalidPathError

        with _errors(self), contextlib.suppress(InvalidPathError):  # of an object, whose name obstore can't take
            return any(len(chunk) for chunk in _reach(self.root).list(f"{self.key}/", chunk_size=1))
        return True

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: folders are only in the names of objects."""

    def scan(self) -> list[Entry]:
        """Returns what lies directly below it, by names, in their order."""
        with _errors(self):
            found = _reach(self.root).list_with_delimiter(f"{self.key}/")
        folders = {PurePosixPath(prefix).name for prefix in found["common_prefixes"]}
        # An object whose name ends in a slash is what other programs leave to show a folder; obstore drops the slash.
        files = {PurePosixPath(each["path"]).name for each in found["objects"] if each["path"] != str(self.key)}
        return sorted(
            [*(Entry(name, is_folder=True) for name in folders), *(Entry(name, is_folder=False) for name in files)],
            key=lambda entry: entry.name,
        )

    def iterdir(self) -> Iterator[RemotePath]:
        """Yields what lies directly below it.

        Raises:
            FileNotFoundError: Nothing does.
        """
        entries = self.scan()
        if not entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return (self / entry.name for entry in entries)

    def walk(self) -> Iterator[RemotePath]:
        """Yields the objects below it, however deep, without holding them."""
        with _errors(self):
            for chunk in _reach(self.root).list(f"{self.key}/", chunk_size=_LISTED):
                for each in chunk:
                    yield RemotePath(self.root, PurePosixPath(each["path"]))

    def delete_below(self) -> None:
        """Deletes the objects below it, however deep: hundreds by one request, where the store takes that."""
        _check_fences(self)
        with _errors(self):
            for chunk in _reach(self.root).list(f"{self.key}/", chunk_size=_LISTED):
                _reach(self.root).delete([each["path"] for each in chunk])


Place = Path | RemotePath


def is_file(place: Place) -> bool:
    """Whether a file lies there; no, too, where its name is none or its folder may not be entered."""
    try:
        return place.is_file()
    except OSError:
        return False


_FENCES: list[tuple[RemotePath, Callable[[], bool]]] = []


@contextlib.contextmanager
def fence(lock: RemotePath, is_lost: Callable[[], bool]) -> Iterator[None]:
    """Lets nothing be written or deleted in the folder of a lock, and in those beside it, once the lock is lost.

    Args:
        lock: Itself is not behind the fence.
        is_lost: Whether another run has it.
    """
    _FENCES.append(this := (lock, is_lost))
    try:
        yield
    finally:
        _FENCES.remove(this)


def _check_fences(path: RemotePath) -> None:
    for lock, is_lost in tuple(_FENCES):
        inside = path != lock and f"{path}/".startswith((f"{lock.parent}/", f"{lock.parent}-"))
        if inside and is_lost():
            raise OSError(errno.EROFS, "another run has taken the output over, while this one stood still", str(path))


_AWAY: set[str] = set()  # buckets that have not answered a patient request: what is left to do does not wait as long


def _reach(root: str, purpose: str = "read") -> Any:
    return _store(root, "claim" if root in _AWAY else purpose)


@functools.cache
def _store(root: str, purpose: str = "read") -> Any:
    """Returns the connection to a bucket, which all threads of this process share.

    Who one is comes from the environment: AWS_..., GOOGLE_..., AZURE_..., or the machine's own role.

    Args:
        root: `scheme://bucket`.
        purpose: A key of `_CONNECTIONS`.
    """
    from obstore import exceptions

    if purpose == "read":  # with which runs begin: a wrong address, or no credentials, are told of at once
        try:
            _connect(root, _READING, _IMPATIENT).head("~")
        except exceptions.GenericError as error:
            if _to_os_error(str(error), root).errno in (errno.ENOTCONN, errno.EACCES):
                raise
        except (exceptions.BaseError, FileNotFoundError):  # an answer
            pass
    return _connect(root, *_CONNECTIONS[purpose])


def _connect(root: str, timeouts: Mapping[str, str], retries: Mapping[str, Any]) -> Any:
    from obstore.store import from_url

    options: dict[str, Any] = dict(timeouts)
    if any("ENDPOINT" in name.upper() and value.startswith("http://") for name, value in os.environ.items()):
        options["allow_http"] = True
    return from_url(root, client_options=options, retry_config=retries)


def _content_type(name: str) -> dict[str, str]:
    """Returns by what a browser shows an object instead of saving it."""
    kind, _ = mimetypes.guess_type(name)
    if kind is None:
        return {}
    return {"Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind}


@contextlib.contextmanager
def _errors(path: RemotePath) -> Iterator[None]:
    """Raises what obstore says in many lines as an OSError with an errno and a few words."""
    from obstore import exceptions

    if ".." in path.key.parts:
        raise OSError(errno.EINVAL, "is no name of an object", str(path))
    try:
        yield
        _AWAY.discard(path.root)
    except FileNotFoundError as error:
        reason = "no such bucket" if "NoSuchBucket" in str(error) else os.strerror(errno.ENOENT)
        raise FileNotFoundError(errno.ENOENT, reason, str(path)) from None
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
    except (exceptions.NotSupportedError, NotImplementedError):  # obstore's, e.g. with AWS_CONDITIONAL_PUT=disabled
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(path)) from None
    except exceptions.InvalidPathError as error:  # in a listing
        name = re.search(r'ath "(.*?)"(?:: Enc| con)', str(error))
        reason = f"holds an object with a name that can't be read, {name[1] if name else error}; rename it"
        raise OSError(errno.EINVAL, reason, str(path)) from None
    except exceptions.BaseError as error:
        os_error = _to_os_error(str(error), str(path))
        if os_error.errno in (errno.ENOTCONN, errno.EIO):
            _AWAY.add(path.root)
        raise os_error from None
    except ValueError as error:  # of a name that no object can have
        raise OSError(errno.EINVAL, _shorten(" ".join(str(error).split())), str(path)) from None


def _to_os_error(text: str, path: str) -> OSError:
    said = " ".join(text.partition("Debug source")[0].split())
    request = _REQUEST.search(said)
    method, url, cause = request.groups() if request else ("", "", said)
    code, message = (re.search(pattern, cause) for pattern in _IN_ANSWERS)
    code = code[1] if code else "PermanentRedirect" if "redirect without LOCATION" in cause else ""
    if code == "NoSuchBucket":
        return FileNotFoundError(errno.ENOENT, "no such bucket", path)
    if cause.startswith("501"):
        return OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), path)
    deletes = method == "DELETE" or url.endswith("?delete") or "DeleteObjects" in said
    if (reason := _why_denied(code, url, cause, deletes=deletes)) is not None:
        return PermissionError(errno.EACCES, reason, path)
    if any(sign in cause.lower() for sign in _UNREACHABLE):
        server = re.match(r"(https?://)(?:[^/@]*@)?([^/]+)", url)  # without the name and password that it may hold
        return ConnectionError(
            errno.ENOTCONN, f"{server[1] + server[2] if server else 'the store'} does not answer", path
        )
    if code:
        cause = f"{cause.partition(':')[0]}: {code}{f': {message[1]}' if message else ''}"
    return OSError(errno.EIO, _shorten(cause), path)


def _why_denied(code: str, url: str, cause: str, *, deletes: bool) -> str | None:
    """Returns what is wrong with who one is, to a store; None where that is not what is wrong."""
    if code in _REMEDIES:
        return f"{code}: {_REMEDIES[code]}"
    if _ASKS_WHO_ONE_IS.search(url) or (not url and any(sign in cause.lower() for sign in _NO_CREDENTIALS)):
        return "no credentials; set those of the store in the environment, such as AWS_ACCESS_KEY_ID"
    if code != "AccessDenied" and not cause.startswith(("401", "403")):
        return None
    if deletes:
        return "deleting is denied; let these credentials delete, too"
    return f"access denied{f' ({code})' if code not in ('', 'AccessDenied') else ''}; are the credentials right?"


def _shorten(said: str) -> str:
    return said if len(said) <= 160 else f"{said[:157]}..."
