"""The lock of an output in an object store: an object that its run keeps changing, as long as it lives."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_utilities import RemotePath, fence

_LOGGER = logging.getLogger("sam2vit")

RENEW, WATCH = 20.0, 60.0  # seconds


@dataclass(frozen=True)
class _Lease:
    """What an object tells of the run that holds it, and the version of that state."""

    told: dict[str, Any]
    version: dict[str, str]


@dataclass(frozen=True)
class Hold:
    """What a run knows of the output that it holds.

    Attributes:
        is_lost: Whether another run has it now, in spite of that.
        guard: Fences off another process of this run, as long as its block takes; it can be pickled. See `guard_lease`.
    """

    is_lost: Callable[[], bool] = lambda: False
    guard: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


@contextlib.contextmanager
def hold_lease(
    path: RemotePath, *, on_held: Callable[[str], None], renew: float = RENEW, watch: float = WATCH
) -> Iterator[Hold]:
    """Holds the lease of an object, which is made for it and deleted afterwards, as long as the block takes.

    No clocks are compared: whoever finds the object watches whether it changes. A run that was killed changes nothing
    any more; one of this machine is known to be gone at once. Who has lost its lease can write neither to the object's
    folder any more nor to those beside it: another run does.

    Args:
        path: Of the object.
        on_held: Called with the holder where a living run has it; it raises.
        renew: Seconds between two changes.
        watch: Seconds without a change after which the holder counts as dead.

    Yields:
        The hold. Another run may take it over where this process was stopped for so long.

    Raises:
        OSError: The store can't be written.
    """
    mine = {
        "token": uuid.uuid4().hex,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "machine": _machine(),
        "count": 0,
    }
    renewed = time.time()
    if not _take(path, mine, on_held, watch):
        yield Hold()
        return
    lost, ended = threading.Event(), threading.Event()

    def look() -> _Lease | None:
        lease = _read(path)
        if lease is None or lease.told.get("token") != mine["token"]:
            lost.set()
        return lease

    def keep() -> None:
        nonlocal renewed
        while not ended.wait(renew):
            mine["count"] += 1
            with contextlib.suppress(OSError):  # the run itself will notice that the store is gone
                now, lease = time.time(), look()
                if lost.is_set():
                    return
                path.replace(_encode(mine), lease.version)
                renewed = now

    def is_lost() -> bool:
        # Without a renewal for long, as after a machine's sleep, another run may have it without this one's knowledge.
        if not lost.is_set() and abs(time.time() - renewed) > 2 * renew:
            with contextlib.suppress(OSError):
                look()
        return lost.is_set()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        with fence(path, is_lost):
            yield Hold(is_lost, functools.partial(guard_lease, path, mine["token"], renew=renew))
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            look()
            if not lost.is_set():
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def guard_lease(path: RemotePath, token: str, *, renew: float = RENEW) -> Iterator[None]:
    """Lets this process write no more once the lease is lost that another process of its run holds.

    That one may stand still while this one works. As long as it is seen to renew the lease, a look at times will do;
    else every write looks first.

    Args:
        path: Of the object; see `hold_lease`.
        token: Of the holder.
        renew: Seconds between two changes.
    """
    seen: _Lease | None = None
    looked = changed = -math.inf
    lost = False

    def is_lost() -> bool:
        nonlocal seen, looked, changed, lost
        now = time.time()  # which goes on while a machine sleeps
        if not lost and not (abs(now - looked) < renew and abs(now - changed) < 2 * renew):
            with contextlib.suppress(OSError):  # the write itself will notice that the store is gone
                lease = _read(path)
                lost = lease is None or lease.told.get("token") != token
                if seen is not None and lease != seen:
                    changed = now
                seen, looked = lease, now
        return lost

    with fence(path, is_lost):
        yield


def _take(path: RemotePath, mine: dict[str, Any], on_held: Callable[[str], None], watch: float) -> bool:
    """Takes a lease; returns whether the store can tell who has it."""
    while True:
        try:
            path.create(_encode(mine))
            return True
        except FileExistsError:
            before = _read(path)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            _LOGGER.warning("%s: can't be locked in this store; let no other run write to it", path.parent)
            return False
        if before is None:  # given back meanwhile
            continue
        if before.told.get("token") == mine["token"]:  # the store had it before it said so, and was asked again
            return True
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
    here = lease.get("machine") == _machine() != "" and isinstance(process, int) and process > 0
    if not here:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _machine() -> str:
    """Returns what processes share whose numbers mean the same; containers have host names in common.

    Empty where /proc does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


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
