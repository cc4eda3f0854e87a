"""The lock of an output in an object store: an object that its run keeps changing, as long as it lives."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from storage_utilities import RemotePath

_LOGGER = logging.getLogger("sam2vit")

RENEW, WATCH = 20.0, 60.0  # seconds


@dataclass(frozen=True)
class _Lease:
    """What an object tells of the run that holds it, and the version of that state."""

    told: dict[str, Any]
    version: dict[str, str]


@contextlib.contextmanager
def hold_lease(
    path: RemotePath, *, on_held: Callable[[str], None], renew: float = RENEW, watch: float = WATCH
) -> Iterator[Callable[[], bool]]:
    """Holds the lease of an object, which is made for it and deleted afterwards, as long as the block takes.

    No clocks are compared: whoever finds the object watches whether it changes. A run that was killed changes nothing
    any more; one of this machine is known to be gone at once.

    Args:
        path: Of the object.
        on_held: Called with the holder where a living run has it; it raises.
        renew: Seconds between two changes.
        watch: Seconds without a change after which the holder counts as dead.

    Yields:
        Whether another run has taken it over, as one may where this process was stopped for so long.

    Raises:
        OSError: The store can't be written.
    """
    mine = {"token": uuid.uuid4().hex, "process": os.getpid(), "host": socket.gethostname(), "count": 0}
    _take(path, mine, on_held, watch)
    lost, ended = threading.Event(), threading.Event()

    def keep() -> None:
        while not ended.wait(renew):
            mine["count"] += 1
            with contextlib.suppress(OSError):  # the run itself will notice that the store is gone
                lease = _read(path)
                if lease is None or lease.told.get("token") != mine["token"]:
                    lost.set()
                    return
                path.replace(_encode(mine), lease.version)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield lost.is_set
    finally:
        ended.set()
        thread.join()
        if not lost.is_set():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _take(path: RemotePath, mine: dict[str, Any], on_held: Callable[[str], None], watch: float) -> None:
    while True:
        try:
            path.create(_encode(mine))
            return
        except FileExistsError:
            before = _read(path)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            _LOGGER.warning("%s: can't be locked in this store; let no other run write to it", path.parent)
            return
        if before is None:  # given back meanwhile
            continue
        if before.told.get("token") == mine["token"]:  # the store had it before it said so, and was asked again
            return
        if before.told and not _is_dead(before.told):
            _LOGGER.warning("%s: is locked by %s; watching whether that lives", path.parent, _holder(before.told))
            if _changes(path, before, watch):
                if (now := _read(path)) is not None:
                    on_held(_holder(now.told))
                continue
        with contextlib.suppress(FileExistsError):  # of all who find it dead, one takes it over
            path.replace(_encode(mine), before.version)


def _changes(path: RemotePath, before: _Lease, watch: float) -> bool:
    """Whether a lease changes within so many seconds, or is given back."""
    until = time.monotonic() + watch
    while time.monotonic() < until:
        time.sleep(watch / 20)
        if _read(path) != before:
            return True
    return False


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    process = lease.get("process")
    here = lease.get("host") == socket.gethostname() and isinstance(process, int) and process > 0
    if not here or os.name == "nt":  # where signal 0 is Ctrl-C
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _holder(lease: dict[str, Any]) -> str:
    return f"process {lease.get('process')} on {lease.get('host')}"


def _read(path: RemotePath) -> _Lease | None:
    """Returns a lease, which tells nothing where it is none of this program's; None where there is none."""
    try:
        contents, version = path.read_with_version()
    except FileNotFoundError:
        return None
    try:
        told = json.loads(contents)
    except ValueError:
        told = None
    return _Lease(told if isinstance(told, dict) else {}, version)


def _encode(lease: dict[str, Any]) -> bytes:
    return json.dumps(lease).encode()
