"""Ctrl-C and its like: a clean end, with nothing lost that was begun."""

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import chain

import pytest

import flow_utilities
import main
import signal_utilities
from config_utilities import PROGRAM_DIR
from object_store import ENVIRONMENT
from program import pngs, results, rows, start, wait_for_records

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")


def test_a_signal_keeps_what_was_done_and_says_how_to_go_on(many_photos, models, run, tmp_path, undisturbed):
    number = signal.SIGTERM
    process = start("-i", many_photos, "-o", tmp_path / "out", *models)
    wait_for_records(process, tmp_path / "out", 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert "stopping after the photos in hand" in err
    assert "the same command goes on from there" in err
    assert "photos written" in out
    records = rows(tmp_path / "out" / "metadata.jsonl")
    assert 3 <= len(records) < 30
    assert pngs(tmp_path / "out") == sorted(row["file_name"] for row in records)
    assert run(dataset=many_photos)[0] == 0
    assert results(tmp_path / "out") == undisturbed


@pytest.fixture
def signals_while_segmenting(monkeypatch):
    """Sends this process signals in the middle of SAM 2's third batch; says which photos SAM 2 has begun and ended."""

    def prepare(*numbers):
        seen = []
        segment_photos = flow_utilities.segment_photos

        def segment(model, settings, photos, **options):
            seen.append([photo.file.source for photo in photos])
            if len(seen) == 3:
                for number in numbers:
                    signal.raise_signal(number)
            return segment_photos(model, settings, photos, **options)

        monkeypatch.setattr(flow_utilities, "segment_photos", segment)
        return seen

    return prepare


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_after_a_signal_each_photo_that_a_model_has_begun_is_finished(
    many_photos, run, tmp_path, signals_while_segmenting, name, code
):
    seen = signals_while_segmenting(getattr(signal, name))
    assert run("--batch-size", "4", dataset=many_photos)[0] == code
    assert len(seen) == 3
    assert [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == list(chain(*seen))


def test_the_second_signal_costs_no_more_than_what_was_in_hand(many_photos, run, tmp_path, signals_while_segmenting):
    seen = signals_while_segmenting(signal.SIGTERM, signal.SIGTERM)
    assert run("--batch-size", "4", dataset=many_photos)[0] == 143
    records = rows(tmp_path / "out" / "metadata.jsonl")
    assert [row["source"] for row in records] == list(chain(*seen))[: len(records)]
    assert pngs(tmp_path / "out") == sorted(row["file_name"] for row in records)
    assert run("--batch-size", "4", dataset=many_photos)[0] == 0
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 30


def test_a_signal_while_the_models_load_leaves_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(main, "load_models", lambda *_: signal.raise_signal(signal.SIGINT))
    code, _, err = run()
    assert (code, err.count("\n")) == (130, 1)
    assert not (tmp_path / "out").exists()


def test_signals_are_as_before_when_the_program_is_done(run):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


_HANGS = """
import contextlib, signal_utilities, storage_utilities
signal_utilities._GRACE = 0.1
with signal_utilities.Signals() as signals, signals.stop_gently() if {gently} else contextlib.nullcontext():
    storage_utilities.to_place("s3://bucket/a", flag="test").read_bytes()
"""


@pytest.mark.parametrize(("numbers", "gently"), [([2], False), ([2, 15], True)], ids=["at once", "the second one"])
def test_a_store_that_does_not_answer_keeps_no_run_from_ending(numbers, gently):
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = {**os.environ, **ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}"}
        script = [sys.executable, "-c", _HANGS.format(gently=gently)]
        process = subprocess.Popen(script, cwd=PROGRAM_DIR, env=environment, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            for number in numbers:
                process.send_signal(number)
            _, err = process.communicate(timeout=50)
    assert process.returncode in [128 + number for number in numbers]
    assert err.endswith("ended in the middle of something that did not end by itself\n")


def test_the_thread_that_watches_ends_with_the_block_whoever_else_has_the_socket(monkeypatch):
    watch = signal_utilities.Signals._watch

    def watch_and_linger(self, woken):
        watch(self, woken)
        time.sleep(0.2)

    monkeypatch.setattr(signal_utilities.Signals, "_watch", watch_and_linger)
    with signal_utilities.Signals() as signals:
        held = os.dup(signals._wakes.fileno())  # as a forked process has it
    os.close(held)
    assert not signals._watcher.is_alive()


def test_nohup_is_respected(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signal_utilities.Signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
