"""Cut-outs on their way into the output: drawn, encoded and written by threads, and told of in order."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dataset_utilities import PhotoFile, copy_name
from errors import OutputError, PhotoError
from photo_utilities import read_file
from pipeline_utilities import stage
from png_utilities import encode_png
from record_utilities import Places, Thresholds, count_pixels, review_flags, stopped, write_atomically
from storage_utilities import Place

_LOGGER = logging.getLogger("sam2vit")

# What the whole run shares, unlike a name that this one file system can't store. EFBIG: of `ulimit -f`; ENOTCONN: an
# object store does not answer; EMFILE, ENFILE: too many files are open.
FATAL = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTCONN),
    *(errno.EMFILE, errno.ENFILE),
}


class Ledger(Protocol):
    """Who is told what has become of photos: the output's records, or what carries the news there."""

    def record(self, row: Mapping[str, Any], features: np.ndarray | None) -> None:
        """Takes the record of a photo whose PNG is in place, and its image features, (D,)."""
        ...

    def fail(self, source: str, reason: str, *, stage: str) -> None:
        """Takes why a photo can't be done."""
        ...


@dataclass
class _Pending:
    """A cut-out that a thread writes, and what is recorded once it is in place."""

    written: Future[None]
    row: dict[str, Any]
    features: np.ndarray | None


class CutOutWriter:
    """Writes cut-outs, by threads, and tells a ledger of each once it is in place, in the order of `write` calls.

    Args:
        places: Where cut-outs go.
        ledger: Is told.
        thresholds: What is too doubtful for its item's folder.
        threads: How many PNGs are encoded at once.
        most_pixels: So many pixels may wait to be written; a larger photo is alone.
    """

    def __init__(
        self,
        places: Places,
        ledger: Ledger,
        *,
        thresholds: Thresholds,
        threads: int = 2,
        most_pixels: float = math.inf,
    ) -> None:
        self._places, self._ledger, self._thresholds = places, ledger, thresholds
        self._pending: deque[_Pending] = deque()
        self._most_pending = 2 * threads  # full-size photos, so no more than keeps the threads busy
        self._most_pixels = most_pixels
        self._pool = ThreadPoolExecutor(threads)

    def write(
        self,
        photo: PhotoFile,
        file_name: str,
        draw: Callable[[], np.ndarray],
        record: Mapping[str, Any],
        *,
        mask: np.ndarray | None = None,
        features: np.ndarray | None = None,
    ) -> None:
        """Begins to write a cut-out; waits where the threads are far behind.

        Args:
            photo: The photo.
            file_name: Of its cut-out, relative to the output, such as `red/berlin/car.png`.
            draw: Makes the cut-out, (H, W, 4) uint8 RGBA, in a thread.
            record: What metadata.jsonl will say, but for file_name and source; `label` is the item.
            mask: (H, W) bool, the photo's mask, which the PNG keeps; see `png_utilities`.
            features: (D,) the image features, for the ledger.

        Raises:
            OutputError: An earlier PNG or record could not be written, for a reason that all share.
        """
        row = {"file_name": file_name, "label": record["label"], "source": photo.source, **record}
        row["flags"] = review_flags(row, self._thresholds)
        written = self._pool.submit(_draw_and_write, self._places.png(row), draw, mask)
        self._pending.append(_Pending(written, row, features))
        while self._pending and (self._pending[0].written.done() or self._is_behind()):
            self._tell_of_first()

    def drop_waiting(self) -> None:
        """Forgets the cut-outs that no thread has begun with."""
        self._pending = deque(entry for entry in self._pending if not entry.written.cancel())

    def finish(self) -> None:
        """Waits until every cut-out is in place, and told of.

        Raises:
            OutputError: See `write`.
        """
        while self._pending:
            self._tell_of_first()

    def close(self) -> None:
        """Ends the threads, and deletes what they have written and nobody could be told of."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for entry in self._pending:
            self._unlink(entry.row)

    def _is_behind(self) -> bool:
        pixels = sum(count_pixels(each.row) for each in self._pending)
        return len(self._pending) > self._most_pending or (len(self._pending) > 1 and pixels > self._most_pixels)

    def _tell_of_first(self) -> None:
        entry = self._pending[0]
        row = entry.row
        error = entry.written.exception()  # waits; an interrupt meanwhile leaves the entry for `close`
        self._pending.popleft()
        if isinstance(error, OSError):
            if error.errno in FATAL:
                raise stopped(self._places.png(row), error)
            self._ledger.fail(row["source"], f"can't be written: {error.strerror or error}", stage="write")
            return
        if isinstance(error, Exception):  # whatever drawing one photo raises is that photo's reason
            _LOGGER.debug("%s", row["source"], exc_info=error)
            self._ledger.fail(row["source"], PhotoError.of(error, stage="write").reason, stage="write")
            return
        if error is not None:
            raise error
        try:
            self._ledger.record(row, entry.features)
        except OutputError:
            self._unlink(row)
            raise

    def _unlink(self, row: Mapping[str, Any]) -> None:
        """Deletes a PNG that gets no record, where the disk lets it; else a later run does."""
        with contextlib.suppress(OSError):
            self._places.png(row).unlink(missing_ok=True)


def _draw_and_write(path: Place, draw: Callable[[], np.ndarray], mask: np.ndarray | None) -> None:
    image = draw()
    with stage("PNG"):
        write_atomically(path, encode_png(image, mask))


def copy_aside(photo: PhotoFile, folder: Place) -> None:
    """Copies a photo to the folder of those without a subject.

    Raises:
        OutputError: It can't be written there.
    """
    path = folder / copy_name(photo)
    try:
        contents = read_file(photo.path)
    except OSError as error:
        _LOGGER.warning("%s: can't be copied to %s: %s", photo.source, folder, error.strerror)
        return
    try:
        write_atomically(path, contents)
    except OSError as error:
        if error.errno not in FATAL:
            _LOGGER.warning("%s: can't be copied to %s: %s", photo.source, folder, error.strerror)
            return
        raise OutputError(
            f"{path}: can't be written: {error.strerror}; make room, or leave out --keep-unknown"
        ) from None
