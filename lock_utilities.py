"""Locks between runs. They are the operating system's: a run that was killed holds none, whatever file it has left."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_LOGGER = logging.getLogger("sam2vit")

# What file systems without locks say, those of some networks among them.
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def hold_lock(path: Path, *, on_held: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of a file, which is made for it and deleted afterwards, as long as the block takes.

    On a file system without locks it does without, and warns.

    Args:
        path: Of the file.
        on_held: Called where another run has the lock: it raises, or returns to wait for that run's end.

    Raises:
        OSError: The file can't be made.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a run that was killed
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_held()
        lock.acquire()
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _LOGGER.warning("%s: can't be locked on this file system; let no other run write to it", path.parent)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()
