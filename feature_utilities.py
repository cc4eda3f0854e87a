"""The image features of a run's photos: one file that grows with the run and is read by memory map.

A head of 16 bytes (a mark, the dimension D), then for each photo the first 16 bytes of its source's SHA-256 and D
half-precision numbers. A photo that was done again stands there again; the last one counts.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parts_utilities import join
from record_utilities import AppendedFile, open_to_append, replace_file
from storage_utilities import Place, RemotePath

FEATURES = ".image_features"
_HEAD = struct.Struct("<8sII")
_MARK = b"sam2vit1"
_DIGEST = 16  # bytes of SHA-256: 10^19 photos until two share one


class FeatureFile:
    """The file of an output's features, to append to.

    Args:
        output: The output folder.

    Raises:
        OSError: The file can't be opened.
    """

    def __init__(self, output: Place) -> None:
        self._path = output / FEATURES
        self._file: AppendedFile | None = None

    def append(self, source: str, features: np.ndarray) -> None:
        """Appends a photo's features, (D,), which are rounded to half precision.

        Raises:
            OutputError: They can't be written.
        """
        if self._file is None:
            _drop_torn_end(self._path, len(features))
            self._file = open_to_append(self._path, _HEAD.pack(_MARK, len(features), 0))
        self._file.append(_digest(source) + features.astype("<f2").tobytes())

    def flush(self) -> None:
        """Hands over what has been gathered: a kill of this process takes none of it any more.

        Raises:
            OutputError: It can't be written.
        """
        if self._file is not None:
            self._file.flush()

    def sync(self) -> None:
        """Waits until the features are on the disk."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Closes the file, where it is open."""
        if self._file is not None:
            self._file.close()


def read_features(output: Path, sources: Sequence[str], dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features of the photos of a run.

    Args:
        output: The output folder.
        sources: The N photos.
        dimension: D, of the CLIP model's features.

    Returns:
        (M, D) float16, a memory map of the file's records, and (N,) int64, which of them is each photo's; -1 where
        there is none.
    """
    path = output / FEATURES
    record = np.dtype([("source", f"V{_DIGEST}"), ("features", "<f2", (dimension,))])
    nothing = np.zeros((0, dimension), np.float16), np.full(len(sources), -1, np.int64)
    if _read_dimension(path) != dimension:
        return nothing
    count = (path.stat().st_size - _HEAD.size) // record.itemsize
    if not count:
        return nothing
    records = np.memmap(path, record, mode="r", offset=_HEAD.size, shape=(count,))
    digests = np.ascontiguousarray(records["source"]).view(f"S{_DIGEST}")  # one that ends in zeros equals itself only
    order = np.argsort(digests, kind="stable")
    wanted = np.fromiter(map(_digest, sources), f"S{_DIGEST}", len(sources))
    last = order[np.searchsorted(digests, wanted, side="right", sorter=order) - 1]  # the nearest from below, or another
    return records["features"], np.where(digests[last] == wanted, last, -1)


def _read_dimension(path: Place) -> int | None:
    """Returns the dimension that the head of a file states; None where it is missing or of another kind."""
    try:
        with io.BytesIO(path.read_head(_HEAD.size)) if isinstance(path, RemotePath) else path.open("rb") as file:
            head = file.read(_HEAD.size)
    except FileNotFoundError:
        return None
    if len(head) < _HEAD.size or not head.startswith(_MARK):
        return None
    return _HEAD.unpack(head)[1]


def _drop_torn_end(path: Place, dimension: int) -> None:
    """Cuts off what a kill or a power cut has left of a record; a file of another kind begins anew."""
    if isinstance(path, RemotePath):  # whose parts are whole
        join(path)
        if path.exists() and _read_dimension(path) != dimension:
            replace_file(path, _HEAD.pack(_MARK, dimension, 0))
        return
    if not path.exists():
        return
    whole = 0
    if _read_dimension(path) == dimension:
        record = _DIGEST + 2 * dimension
        whole = _HEAD.size + (path.stat().st_size - _HEAD.size) // record * record
    if path.stat().st_size != whole:
        with path.open("r+b") as file:
            file.truncate(whole)


def _digest(source: str) -> bytes:
    return hashlib.sha256(source.encode(errors="surrogatepass")).digest()[:_DIGEST]
