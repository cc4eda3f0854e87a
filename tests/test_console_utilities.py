import io
import logging
import math
import os

import pytest
from rich.console import Console

import console_utilities
from console_utilities import (
    NotingConsole,
    RunProgress,
    SparableStream,
    count_of,
    format_seconds,
    logging_to,
    print_facts,
    print_summary,
    printable,
)


def make_console(**options):
    return Console(file=io.StringIO(), width=100, **options)


def text(console):
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("grün 車.jpg", "grün 車.jpg"), ("a\nb", "a\\nb"), ("\x1b[2J", "\\x1b[2J"), ("gr\udcfcn", "gr\\udcfcn")],
)
def test_no_name_steers_the_terminal(raw, shown):
    assert printable(raw) == shown


def test_facts_stand_in_columns_and_brackets_are_no_markup():
    console = make_console()
    print_facts(console, {"photos": "[red]x[/red]", "CLIP": "y"})
    assert text(console) == "photos  [red]x[/red]\nCLIP    y\n"


@pytest.mark.parametrize(("seconds", "shown"), [(4.23, "4.2 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_read_like_speech(seconds, shown):
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 photos"), (1, "1 photo"), (2, "2 photos")])
def test_counts_agree_with_their_noun(count, shown):
    assert count_of(count, "photo") == shown


SUMMARY = {
    "items": [("red", 3, 0, 0.5), ("blue", 1, 0, 0.9)],
    "mean_probability": 0.6,
    "failures": [],
    "written": 4,
    "skipped": 1,
    "seconds": 2.0,
}


def summarise(**changes):
    console = make_console()
    print_summary(console, **{**SUMMARY, **changes})
    return text(console)


def test_the_summary_counts_items_and_their_mean_probability():
    lines = summarise().splitlines()
    assert any("red" in line and "3" in line and "0.500" in line for line in lines)
    assert any("all" in line and "4" in line and "0.600" in line for line in lines)
    assert "4 photos written, 0 failed, 1 other file skipped; 2.0 s, 2.00 photos/s" in lines[-1]


def test_what_is_in_review_has_a_column_of_its_own():
    lines = summarise(items=[("red", 3, 2, 0.5), ("blue", 0, 4, math.nan)], mean_probability=0.5).splitlines()
    assert "in review" in lines[2]
    assert "in review" not in summarise()
    assert any("red" in line and "0.500" in line and line.endswith("2 │") for line in lines)
    assert any("blue" in line and line.endswith("0 │                  │         4 │") for line in lines)
    assert any("all" in line and "3" in line and "0.500" in line and line.endswith("6 │") for line in lines)


def test_failures_are_counted_by_stage():
    failures = [{"source": "a", "reason": "r", "stage": stage} for stage in ("decode", "decode", "segment")]
    assert "2 in decode, 1 in segment" in summarise(failures=failures)


def test_a_run_that_did_nothing_divides_by_nothing():
    nothing = {"items": [], "mean_probability": math.nan, "written": 0, "skipped": 0, "seconds": 0.0}
    assert "0 photos written, 0 failed, 0 other files skipped" in summarise(**nothing)


def test_progress_is_plain_lines_where_the_output_is_no_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console_utilities.time, "monotonic", lambda: now[0])
    console = make_console()
    with RunProgress(console, total=20) as progress:
        for _ in range(4):
            progress.skip()
        for _ in range(8):
            now[0] += 2.5
            progress.advance()
    assert text(console).splitlines() == [
        "8/20 photos, 0.40 photos/s, 30.0 s left",
        "12/20 photos, 0.40 photos/s, 20.0 s left",
    ]


def test_progress_of_several_actors_says_what_each_does_and_leaves_out_their_start(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console_utilities.time, "monotonic", lambda: now[0])
    console = make_console()
    with RunProgress(console, total=20) as progress:
        assert progress.actors == ""
        now[0] += 50  # models are loaded
        for actor, seconds in [(1, 4.0), (2, 5.0), (1, 4.0)]:
            now[0] += 5
            progress.actor(actor, 4, seconds)
            progress.advance(4)
    assert text(console).splitlines() == [
        "4/20 photos, 1.00 photos/s, 16.0 s left; by actor: 1.00",
        "12/20 photos, 0.86 photos/s, 9.3 s left; by actor: 1.00, 0.80",
    ]
    for actor in range(3, 20):
        progress.actor(actor, 3, 1.0)
    assert progress.actors == "19 actors, 0.80 to 3.00 each"


def test_progress_is_a_bar_on_a_terminal():
    console = make_console(force_terminal=True)
    with RunProgress(console, total=2) as progress:
        progress.advance()
        progress.advance()
    assert "2/2" in text(console)
    assert "photos/s" in text(console)


def test_the_console_shows_from_its_level_up_and_the_file_everything(tmp_path):
    console = make_console()
    with logging_to(console, level=logging.WARNING, log_file=str(tmp_path / "run.log")) as logger:
        logger.info("details")
        logger.warning("evil\x1b[2J[bold]name")
    assert text(console) == "evil\\x1b[2J[bold]name\n"
    log = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "INFO details" in log
    assert "\x1b" not in log


def noted(tmp_path, say, **options):
    """What stands in the log file, without times, where something is said on a console."""
    console = NotingConsole(file=io.StringIO(), width=60, **options)
    with logging_to(console, level=logging.WARNING, log_file=str(tmp_path / "run.log")) as logger:
        say(console, logger)
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    return text(console), [line.split(" ", 2)[2] for line in lines]


@pytest.mark.parametrize("options", [{}, {"quiet": True}, {"force_terminal": True}], ids=["pipe", "quiet", "terminal"])
def test_what_a_console_prints_stands_in_the_file_once_and_plain(tmp_path, options):
    def say(console, logger):
        print_facts(console, {"photos": "[red]x[/red]\x1b[2J" + "y" * 200})
        logger.warning("a warning")
        print_summary(console, **{**SUMMARY, "items": [("red", 3, 0, 0.5)]})

    printed, log = noted(tmp_path, say, **options)
    assert log[:2] == ["INFO photos  [red]x[/red]\\x1b[2J" + "y" * 200, "WARNING a warning"]
    assert log[-1] == "INFO 4 photos written, 0 failed, 1 other file skipped; 2.0 s, 2.00 photos/s"
    assert "INFO │ red  │      3 │            0.500 │" in log
    assert (printed.count("a warning"), log.count("WARNING a warning")) == (not options.get("quiet"), 1)


def test_a_bar_is_lines_in_the_file(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console_utilities.time, "monotonic", lambda: now[0])

    def say(console, _):
        with RunProgress(console, total=20) as progress:
            for _ in range(5):
                now[0] += 2.5
                progress.advance()
                console.print("a line")

    printed, log = noted(tmp_path, say, force_terminal=True)
    assert "5/20" in printed
    assert log == [*["INFO a line"] * 3, "INFO 4/20 photos, 0.40 photos/s, 40.0 s left", *["INFO a line"] * 2]


def test_a_mistake_of_the_program_stands_in_the_file(tmp_path):
    def say(*_):
        raise ZeroDivisionError("of all things")

    with pytest.raises(ZeroDivisionError):
        noted(tmp_path, say)
    assert "ZeroDivisionError: of all things" in (tmp_path / "run.log").read_text(encoding="utf-8")


def test_logging_ends_with_its_block(tmp_path):
    console, logger, told = make_console(), logging.getLogger("sam2vit"), logging.getLogger("sam2vit.told")
    before = logger.level, logger.propagate, logger.handlers[:]
    told_before = told.handlers[:]
    with logging_to(console, level=logging.INFO, log_file=str(tmp_path / "run.log")):
        assert (logger.level, logger.propagate, len(logger.handlers)) == (logging.DEBUG, False, len(before[2]) + 2)
        assert len(told.handlers) == len(told_before) + 1
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert told.handlers == told_before
    logger.warning("afterwards")
    assert text(console) == ""


def test_what_a_closed_pipe_should_have_got_goes_nowhere():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        stream = SparableStream(pipe)
        for _ in range(3):
            assert stream.write("a line\n") == 7
            stream.flush()
