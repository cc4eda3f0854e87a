"""What Ctrl-C, SIGTERM and a closed terminal do to a run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any


class Signals:
    """What Ctrl-C, SIGTERM and a closed terminal (SIGHUP) do; a context manager.

    Inside `stop_gently` the first one only asks the run to stop, which then finishes what it has begun: nothing is cut
    off in the middle of its bookkeeping. Elsewhere, and from the second one on, they raise KeyboardInterrupt.

    Attributes:
        number: Of the first signal that came; 0 before it.
    """

    def __init__(self) -> None:
        self.number = 0
        self._gently = False
        self._before: dict[int, Any] = {}
        self._others: list[Callable[[], bool]] = []

    def __enter__(self) -> Signals:
        handled = [signal.SIGINT, signal.SIGTERM]
        hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # nohup ignores it
            handled.append(hang_up)
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
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
