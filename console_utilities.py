"""What the user sees on the terminal while a run goes on: console, log, progress and the final table."""

from __future__ import annotations

import io
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from errors import ConfigError

_LOGGER = logging.getLogger("sam2vit")
_TOLD = logging.getLogger("sam2vit.told")  # what is printed, for the log file alone
_TOLD.propagate = False

_LOG_WIDTH = 120  # characters of tables
_PLAIN_INTERVAL = 10.0  # seconds between progress lines where the output is no terminal
_ACTORS_SHOWN = 8
_STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red"}


def printable(text: str) -> str:
    """Returns a text with its control characters and stray bytes escaped, so that no file name steers the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class SparableStream:
    """A text stream such as standard output, whose failure ends no run: what it should say goes nowhere then.

    A disk may fill up that it is redirected to, a pipe or a terminal may be closed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes as streams do."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flushes as streams do."""
        self._attempt(self._stream.flush)

    def _attempt(self, function: Callable[..., object], *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError:
            # Python flushes the stream once more at its end, and would end with an error of its own.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class NotingConsole(Console):
    """A rich console whose lines stand in the log file, too, as plain text; also where the console is quiet."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as consoles do."""
        super().print(*objects, **options)
        if not _TOLD.isEnabledFor(logging.INFO):
            return
        plain = io.StringIO()
        Console(file=plain, width=_LOG_WIDTH, color_system=None, force_terminal=False).print(*objects, **options)
        for line in filter(None, map(str.rstrip, plain.getvalue().split("\n"))):
            _TOLD.info("%s", line)


class _FileHandler(logging.FileHandler):
    """Appends to a log file until that fails, and says so once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        for logger in (_LOGGER, _TOLD):
            logger.removeHandler(self)
        self.stream = SparableStream(self.stream)
        self.stream.flush()
        _LOGGER.error("--log %s: can't be written: %s; it ends here", self.baseFilename, error.strerror)


class _ConsoleHandler(logging.Handler):
    """Prints log records on a rich console, above a progress bar where there is one."""

    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        line = Text(printable(record.getMessage()), style=_STYLES.get(record.levelno, "dim"))
        Console.print(self._console, line, soft_wrap=True)  # not noted, as the log file has the record itself


class _FileFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        record.message = printable(record.message)
        return super().formatMessage(record)


@contextmanager
def logging_to(console: Console, *, level: int, log_file: str | None) -> Iterator[logging.Logger]:
    """Sends the program's log to the console from `level` up, and all of it to a file, with what a console prints."""
    logger = logging.getLogger("sam2vit")
    level_before, propagated = logger.level, logger.propagate
    handlers: list[logging.Handler] = [_ConsoleHandler(console, level)]
    if log_file:
        try:
            handlers.append(_FileHandler(log_file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise ConfigError(f"--log {log_file}: {error.strerror}; name a file that can be written") from None
        handlers[-1].setFormatter(_FileFormatter("%(asctime)s %(levelname)s %(message)s"))
        _TOLD.addHandler(handlers[-1])
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if log_file else level)
    logger.propagate = False
    try:
        yield logger
    except Exception:
        _TOLD.exception("ended by a mistake of the program")
        raise
    finally:
        logger.setLevel(level_before)
        logger.propagate = propagated
        for handler in handlers:
            logger.removeHandler(handler)
            _TOLD.removeHandler(handler)
            handler.close()


def print_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Prints the facts of a run, one `name  value` line each."""
    width = max(map(len, facts))
    for name, value in facts.items():
        line = Text.assemble((printable(name).ljust(width + 2), "bold"), printable(value))
        console.print(line, soft_wrap=True)


def print_line(console: Console, text: str) -> None:
    """Prints a line as it is: names in it are no markup, and it is not broken."""
    console.print(Text(printable(text)), soft_wrap=True)


class RunProgress:
    """A progress bar on a terminal, a line every ten seconds elsewhere; a context manager.

    Args:
        console: Where to.
        total: Files to be dealt with, as far as known.
    """

    def __init__(self, console: Console, *, total: int) -> None:
        self._console, self._total = console, total
        self._done_before = self._completed = 0
        self._bar: Progress | None = None
        if console.is_terminal and not console.quiet:
            columns = (TextColumn("photos"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("photos", total=total, pace="")
        self._actors: dict[int, tuple[int, float]] = {}
        self._begin = self._last_line = time.monotonic()

    def __enter__(self) -> RunProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def skip(self) -> None:
        """Counts a photo that an earlier run has done; it says nothing of this run's speed."""
        self._done_before += 1
        self._show()

    def advance(self, files: int = 1) -> None:
        """Counts files as dealt with, whether written, failed or skipped."""
        self._completed += files
        self._show()

    def actor(self, number: int, photos: int, seconds: float) -> None:
        """Notes how many photos one of several actors has just done, and in how long."""
        if not self._actors:  # until now they were loading their models
            self._begin = time.monotonic() - seconds
        before = self._actors.get(number, (0, 0.0))
        self._actors[number] = before[0] + photos, before[1] + seconds

    @property
    def actors(self) -> str:
        """How many photos each actor does in a second, where there are any."""
        speeds = [photos / seconds for photos, seconds in self._actors.values() if photos]
        if len(speeds) > _ACTORS_SHOWN:
            return f"{len(speeds)} actors, {min(speeds):.2f} to {max(speeds):.2f} each"
        return f"by actor: {', '.join(f'{speed:.2f}' for speed in speeds)}" if speeds else ""

    def _show(self) -> None:
        now = time.monotonic()
        position = self._done_before + self._completed
        speed = self._completed / (now - self._begin) if now > self._begin else 0.0
        left = format_seconds(max(0, self._total - position) / speed) if speed else "unknown time"
        pace = f"{speed:.2f} photos/s, {left} left" + (f"; {self.actors}" if self._actors else "")
        if self._bar:
            self._bar.update(self._task, completed=position, pace=pace)
        if now - self._last_line >= _PLAIN_INTERVAL:
            self._last_line = now
            line = f"{position}/{self._total} photos, {pace}"
            if self._bar:
                _TOLD.info("%s", line)
            else:
                self._console.print(line, highlight=False)


def print_summary(
    console: Console,
    *,
    items: Sequence[tuple[str, int, int, float]],
    mean_probability: float,
    failures: Sequence[Mapping[str, Any]],
    written: int,
    skipped: int,
    seconds: float,
) -> None:
    """Prints the end of a run.

    Args:
        console: Where to.
        items: (item, photos, photos in review, mean probability of the former) of all photos in the output; NaN where
            people have chosen all of them.
        mean_probability: Of all items.
        failures: The rows of failures.jsonl.
        written: Photos written by this run.
        skipped: Files that are no images.
        seconds: This run's.
    """
    if items:
        table = Table(title="Cut-outs by item", title_justify="left")
        table.add_column("item")
        table.add_column("photos", justify="right")
        table.add_column("mean probability", justify="right")
        total, doubtful = (sum(row[column] for row in items) for column in (1, 2))
        if doubtful:
            table.add_column("in review", justify="right")
        rows = sorted(items, key=lambda row: (-row[1], row[0]))
        rows.append(("all", total, doubtful, mean_probability))
        for number, (item, count, in_review, probability) in enumerate(rows):
            if number == len(rows) - 1:
                table.add_section()
            shown = "" if math.isnan(probability) else f"{probability:.3f}"
            table.add_row(Text(printable(item)), str(count), shown, *([str(in_review)] if doubtful else []))
        console.print(table)
    speed = written / seconds if seconds else 0.0
    console.print(
        f"{count_of(written, 'photo')} written, {len(failures)} failed, {count_of(skipped, 'other file')} skipped; "
        f"{format_seconds(seconds)}, {speed:.2f} photos/s",
        highlight=False,
    )
    if failures:
        stages = {row["stage"]: 0 for row in failures}
        for row in failures:
            stages[row["stage"]] += 1
        by_stage = ", ".join(f"{count} in {stage}" for stage, count in sorted(stages.items()))
        console.print(Text(f"failures.jsonl has the reasons ({by_stage}); the same command tries them again"))


def print_changes(console: Console, changed: Mapping[tuple[str, str], int]) -> None:
    """Prints how many photos went from which item to which, the most frequent first."""
    if not changed:
        return
    table = Table("before", "after", "photos", title="Changed items", title_justify="left")
    table.columns[-1].justify = "right"
    for (before, after), count in sorted(changed.items(), key=lambda each: (-each[1], each[0])):
        table.add_row(Text(printable(before)), Text(printable(after)), str(count))
    console.print(table)


def count_of(count: int, noun: str) -> str:
    """Returns a count with its noun: "1 photo", "2 photos"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_seconds(seconds: float) -> str:
    """Returns a duration as people read it: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
