"""What Ctrl-C, SIGTERM and a closed terminal do to a run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

_GRACE = 10.0  # seconds for what is to end at once


class Signals:
    """What Ctrl-C, SIGTERM and a closed terminal (SIGHUP) do; a context manager.

    Inside `stop_gently` the first one only asks the run to stop, which then finishes what it has begun: nothing is cut
    off in the middle of its bookkeeping. Elsewhere, and from the second one on, they raise KeyboardInterrupt; and where
    that has ended nothing ten seconds later, the process ends as if it were killed. Python raises nothing as long as a
    library does not return, from a request to a store that does not answer for one, and waits for its threads.

    Attributes:
        number: Of the first signal that came; 0 before it.
    """

    def __init__(self) -> None:
        self.number = 0
        self._gently = False
        self._before: dict[int, Any] = {}
        self._others: list[Callable[[], bool]] = []
        self._left = threading.Event()

    def __enter__(self) -> Signals:
        handled = [signal.SIGINT, signal.SIGTERM]
        hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # nohup ignores it
            handled.append(hang_up)
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        self._wakes, woken = socket.socketpair()
        self._wakes.settimeout(0)  # as set_wakeup_fd wants it
        self._woke_before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, args=(woken,), daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        signal.set_wakeup_fd(self._woke_before)
        self._wakes.shutdown(socket.SHUT_WR)  # closing alone would not end it: a forked process may have it, too
        self._wakes.close()
        self._watcher.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopping(self) -> bool:
        """Whether the run is to end."""
        return self.number > 0 or any(other() for other in self._others)

    def stop_where(self, other: Callable[[], bool]) -> None:
        """Lets something else end the run, too, once it is true."""
        self._others.append(other)

    @contextlib.contextmanager
    def stop_gently(self) -> Iterator[None]:
        """Lets the first signal in the block ask, not interrupt."""
        self._gently = True
        try:
            yield
        finally:
            self._gently = False

    def _handle(self, number: int, _: object) -> None:
        first = self.number == 0
        self.number = self.number or number
        if not (first and self._gently):
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):  # not by print: the signal may have come in the middle of one
            os.write(2, b"\nmain.py: stopping after the photos in hand; the same signal again stops at once\n")

    def _watch(self, woken: socket.socket) -> None:
        """Ends the process where a signal that was to interrupt it has not; is told of signals by Python's C code."""
        came: list[int] = []
        with woken:
            while told := woken.recv(1):
                came += [number for number in told if number in self._before]
                only_asks = self._gently and len(came) == 1
                if came and not only_asks and not self._left.wait(_GRACE):
                    with contextlib.suppress(OSError):
                        os.write(2, b"\nmain.py: ended in the middle of something that did not end by itself\n")
                        os.write(2, b"\x1b[?25h" * os.isatty(2))  # the cursor, which a progress bar hides
                    os._exit(128 + came[0])
