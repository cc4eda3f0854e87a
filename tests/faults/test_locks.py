"""Two runs on one output: the second is refused, and a dead one is no obstacle."""

import errno
import os
import signal
import sys

import pytest

from errors import OutputError
from folder_utilities import lock_output
from program import start, wait_for_records


def test_a_second_run_is_refused_at_once_with_the_pid_of_the_first(many_photos, models, run, tmp_path):
    process = start("-i", many_photos, "-o", tmp_path / "out", *models)
    wait_for_records(process, tmp_path / "out", 1)
    code, out, err = run(dataset=many_photos)
    assert code == 2
    assert f"process {process.pid} on " in err
    assert "wait for its end, or name another --output" in err
    assert "SAM 2" not in out  # no model was loaded for nothing
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_the_lock_of_a_killed_run_is_taken_over(many_photos, models, run, tmp_path):
    process = start("-i", many_photos, "-o", tmp_path / "out", *models)
    wait_for_records(process, tmp_path / "out", 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "out" / ".lock").exists()
    assert run(dataset=many_photos)[0] == 0
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_lock_file_with_a_living_pid_in_it_is_no_lock(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").write_text(f"process {os.getppid()} on here")
    with lock_output(tmp_path / "out"):
        assert (tmp_path / "out" / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_is_held_against_this_process_too(tmp_path):
    with (
        lock_output(tmp_path / "out"),
        pytest.raises(OutputError, match="is writing to it"),
        lock_output(tmp_path / "out"),
    ):
        pass
    with lock_output(tmp_path / "out"):
        pass


def test_a_lock_leaves_no_folder_that_nothing_was_written_to(tmp_path):
    with lock_output(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    with lock_output(tmp_path / "mine"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_without_locks_on_the_file_system_the_run_goes_on_with_a_warning(run, tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    code, out, err = run()
    assert (code, err) == (0, "")
    assert f"{tmp_path / 'out'}: can't be locked on this file system; let no other run write to it" in out
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_lock_that_fails_for_another_reason_stops_the_run(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    code, _, err = run()
    assert (code, err.count("\n")) == (2, 1)
    assert "can't be written: Input/output error" in err
    monkeypatch.undo()
    assert run()[0] == 0


def test_two_outputs_are_written_side_by_side(many_photos, models, run, tmp_path):
    process = start("-i", many_photos, "-o", tmp_path / "other", *models)
    wait_for_records(process, tmp_path / "other", 1)
    assert run(dataset=many_photos)[0] == 0
    assert process.wait(60) == 0
    process.communicate()
