"""Files that grow in an object store, which can't append: parts of them stand beside them until they are put together.

The parts are objects `.records/<name>-<time>-<serial>` in the folder of the file. What the file holds is what is in it,
and then what is in its parts. Which parts are in it already, the store keeps with it: a run may be killed after it has
put them together, and before it has deleted them.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from storage_utilities import RemotePath

_FOLDER = ".records"
_SECONDS, _MOST_SECONDS, _BYTES = 5.0, 60.0, 1 << 20  # after which a part is written: what a kill can cost
_SLOWING = 10  # parts, with each so many of which another _SECONDS pass between two: or slow photos had a part each
_AT_ONCE = 16  # requests, for parts that may be thousands
_IN_MEMORY = 8 << 20  # bytes, up to which a file is put together without a disk


class PartsFile:
    """A file of an object store that pieces are appended to; `join` makes one object of it.

    Args:
        path: The file.
        head: What it begins with, where it is new.
        before: Called before a part is written: writes what the pieces in it rely on.

    Raises:
        OSError: The store can't be read or written.
    """

    def __init__(self, path: RemotePath, head: bytes = b"", *, before: Callable[[], None] = lambda: None) -> None:
        join(path)
        self._path, self._before = path, before
        self._begin = f"{path.name}-{time.time_ns():020}"
        self._serial = 0
        self._gathered = bytearray(b"" if not head or path.exists() else head)
        self._last = time.monotonic()

    def append(self, data: bytes) -> None:
        """Appends a piece, which is in the store some seconds later, in long runs a minute.

        Raises:
            OSError: It can't be written.
        """
        self._gathered += data
        patience = min(_MOST_SECONDS, _SECONDS * (1 + self._serial / _SLOWING))
        if len(self._gathered) >= _BYTES or time.monotonic() - self._last >= patience:
            self.flush()

    def flush(self) -> None:
        """Writes what has been gathered.

        Raises:
            OSError: It can't be written.
        """
        if self._gathered:
            self._before()
            name = f"{self._begin}-{self._serial:08}"
            (self._path.parent / _FOLDER / name).write_bytes(bytes(self._gathered))
            self._serial += 1
            self._gathered.clear()
        self._last = time.monotonic()

    def join(self) -> None:
        """Makes one object of what the file was and all pieces.

        Raises:
            OSError: It can't be written.
        """
        self.flush()
        join(self._path)


def parts_of(path: RemotePath) -> list[RemotePath]:
    """Returns the parts of a file, the oldest first."""
    return sorted(part for part in (path.parent / _FOLDER).walk() if part.name.startswith(f"{path.name}-"))


def read_whole(path: RemotePath) -> bytes:
    """Returns what a file and its parts hold.

    Raises:
        FileNotFoundError: There are none.
    """
    parts = _missing(path, parts_of(path))
    if not parts:
        return path.read_bytes()
    return b"".join(_pieces(path, parts))


def join(path: RemotePath) -> None:
    """Puts a file and its parts together; without parts it stays as it is."""
    parts = parts_of(path)
    missing = _missing(path, parts)
    if missing:
        # On disk where it is large: obstore can't be asked for pieces by a generator that asks obstore for them.
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as whole:
            for piece in _pieces(path, missing):
                whole.write(piece)
            whole.seek(0)
            path.write_file(whole, note=json.dumps(dict(map(_writer_and_serial, parts))))
    drop_parts(parts)


def drop_parts(parts: list[RemotePath]) -> None:
    """Deletes parts, the newest first: what a kill leaves of them is the beginning."""
    for _ in _at_once(lambda part: part.unlink(missing_ok=True), parts[::-1]):
        pass


def _missing(path: RemotePath, parts: list[RemotePath]) -> list[RemotePath]:
    """Returns which of its parts a file does not hold yet."""
    last = json.loads(path.read_note() or "{}") if parts else {}  # of each writer, the serial of the last that it holds
    split = ((part, *_writer_and_serial(part)) for part in parts)
    return [part for part, writer, serial in split if serial > last.get(writer, "")]


def _writer_and_serial(part: RemotePath) -> tuple[str, str]:
    writer, _, serial = part.name.rpartition("-")
    return writer, serial


def _pieces(path: RemotePath, parts: list[RemotePath]) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError):
        yield from path.chunks()
    yield from _at_once(RemotePath.read_bytes, parts)


def _at_once(do: Callable[[RemotePath], Any], parts: Sequence[RemotePath]) -> Iterator[Any]:
    """Yields what a function returns for each part, some of which it is called for at a time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, len(parts), _AT_ONCE):
            yield from pool.map(do, parts[first : first + _AT_ONCE])
