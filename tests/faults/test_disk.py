"""Full disks, folders that may not be written, and an output that goes away: one line, and the same command goes on."""

import os
import shlex
import shutil
import subprocess
from collections import deque
from pathlib import Path

import pytest

import main
from conftest import save_photo
from errors import OutputError
from program import command, contents, mount, pngs, results, rows
from record_utilities import AppendedFile, to_line

resource = pytest.importorskip("resource", reason="Windows has no limits of file sizes")


def assert_whole(output):
    """Checks that each record has its picture and each picture its record, and that nothing else is there."""
    records = rows(output / "metadata.jsonl")
    assert pngs(output) == sorted(row["file_name"] for row in records)
    assert not [path for path in output.rglob("*") if path.name.startswith((".tmp-", ".lock"))]


def test_a_disk_that_is_full_of_pngs_stops_the_run_until_there_is_room(many_photos, run, tmp_path, disk, undisturbed):
    code, out, err = run(dataset=many_photos, output=disk / "out")
    assert code == 2
    assert err.count("\n") == 1
    assert ".png: can't be written: No space left on device; mend that" in err
    assert "photos written, 0 failed" in out
    assert_whole(disk / "out")
    assert 0 < len(pngs(disk / "out")) < 30
    assert run(dataset=many_photos, output=disk / "out")[0] == 2  # still full, still whole
    assert mount(disk, "remount,size=64m")
    assert run(dataset=many_photos, output=disk / "out")[0] == 0
    result, expected = results(disk / "out"), dict(undisturbed)
    # In another order: after a PNG that had no room, smaller ones may have found some.
    records, records_expected = (
        {row["source"]: row for row in each.pop("metadata.jsonl")} for each in (result, expected)
    )
    assert (records, result) == (records_expected, expected)


def test_a_disk_that_is_full_of_records_keeps_whole_lines(disk):
    lines = AppendedFile(disk / "metadata.jsonl")
    (disk / "ballast").write_bytes(bytes(500_000))
    row = {"file_name": "red/a.png", "prompt": "a" * 1000}
    with pytest.raises(OutputError, match=r"metadata.jsonl: can't be written: No space left on device"):
        deque(map(lines.append, [to_line(row)] * 1000))
    written = rows(disk / "metadata.jsonl")
    assert 10 < len(written) < 200
    (disk / "ballast").unlink()
    lines.append(to_line(row))
    assert rows(disk / "metadata.jsonl") == [*written, row]
    lines.close()


def test_an_output_on_a_full_disk_says_so_before_the_models_are_loaded(many_photos, run, disk):
    with (disk / "ballast").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        deque(map(file.write, [bytes(4096)] * 1000))
    code, _, err = run(dataset=many_photos, output=disk / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left on device; make room" in err


@pytest.mark.parametrize(
    ("size_wh", "limit", "stopped"),
    [((400, 300), 20_000, ".png"), ((40, 30), 9_000, "metadata.jsonl")],
    ids=["in a PNG", "in a record"],
)
def test_a_limit_of_file_sizes_stops_the_run_until_it_is_raised(models, run, tmp_path, size_wh, limit, stopped):
    for seed in range(30):
        save_photo(tmp_path / "some" / f"{seed:02}.jpg", *size_wh, seed)
    limited = subprocess.run(
        command("-i", tmp_path / "some", "-o", tmp_path / "out", *models),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode == 2
    assert limited.stderr.count("\n") == 1
    assert f"{stopped}: can't be written: the limit of file sizes (ulimit -f)" in limited.stderr
    assert_whole(tmp_path / "out")
    assert run(dataset=tmp_path / "some")[0] == 0
    run(dataset=tmp_path / "some", output=tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_limit_of_open_files_stops_the_run_until_it_is_raised(models, run, tmp_path):
    for seed in range(120):
        save_photo(tmp_path / "some" / f"{seed:03}.jpg", 40, 30, seed)
    limited = subprocess.run(
        command("-i", tmp_path / "some", "-o", tmp_path / "out", *models, "--batch-size", "1024"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode == 2
    assert limited.stderr == (
        "main.py: Too many open files: photos of a batch are open at once; lower --batch-size, or raise ulimit -n\n"
    )
    assert rows(tmp_path / "out" / "failures.jsonl") == []
    assert run(dataset=tmp_path / "some")[0] == 0


@pytest.fixture
def run_unprivileged(models):
    """Runs the program as somebody whom permissions stop, which they do not stop root from."""
    prefix = []
    if os.geteuid() == 0:
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        if shutil.which("setpriv") is None:
            pytest.skip("runs as root, whom permissions do not stop")

    def call(dataset, output):
        arguments = [*prefix, *command("-i", dataset, "-o", output, *models)]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert "Traceback" not in result.stderr
        return result.returncode, result.stdout, result.stderr

    return call


@pytest.mark.parametrize("place", ["out", "parent/out"], ids=["the output", "the folder around it"])
def test_an_output_that_may_not_be_written_says_so_at_once(run_unprivileged, photos, tmp_path, place):
    locked = tmp_path / place.split("/")[0]
    locked.mkdir(mode=0o555)
    code, out, err = run_unprivileged(photos, tmp_path / place)
    assert (code, err.count("\n")) == (2, 1)
    assert f"--output {tmp_path / place}: can't be written: Permission denied; make room, mend its permissions" in err
    assert "SAM 2" not in out


def test_a_class_folder_that_may_not_be_written_stops_the_run(run_unprivileged, run, photos, tmp_path):
    run()
    for row in rows(tmp_path / "out" / "metadata.jsonl"):
        (tmp_path / "out" / row["file_name"]).unlink()
    folders = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    code, _, err = run_unprivileged(photos, tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert ".png: can't be written: Permission denied" in err
    for folder in folders:
        folder.chmod(0o755)
    assert run()[0] == 0
    assert_whole(tmp_path / "out")


def test_a_dataset_that_may_not_be_read_says_so(run_unprivileged, photos, tmp_path):
    photos.chmod(0)
    code, _, err = run_unprivileged(photos, tmp_path / "out")
    photos.chmod(0o755)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{photos}: Permission denied; name your folder of photos" in err


def test_what_may_not_be_read_in_a_dataset_fails_alone(run_unprivileged, run, photos, tmp_path):
    (photos / "a.png").chmod(0)
    (photos / "berlin").chmod(0)
    code, out, _ = run_unprivileged(photos, tmp_path / "out")
    (photos / "berlin").chmod(0o755)
    assert code == 1
    assert "3 photos written, 2 failed" in out
    assert {row["source"]: row["reason"] for row in rows(tmp_path / "out" / "failures.jsonl")} == {
        "a.png": "can't be read: Permission denied",
        "berlin": "can't be listed: Permission denied",
    }
    (photos / "a.png").chmod(0o644)
    assert run()[0] == 0
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 6


def test_an_output_that_goes_away_stops_the_run(many_photos, run, tmp_path, monkeypatch):
    write_photo, out = main.write_photo, tmp_path / "out"
    written = []

    def write_and_lose(photo, *arguments):
        written.append(photo)
        if len(written) == 10:
            shutil.move(out, tmp_path / "moved")
        write_photo(photo, *arguments)

    monkeypatch.setattr(main, "write_photo", write_and_lose)
    code, _, err = run(dataset=many_photos)
    assert (code, err.count("\n")) == (2, 1)
    assert "it is gone since the run began" in err
    assert len(written) < 30
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(tmp_path / "moved", out)
    monkeypatch.setattr(main, "write_photo", write_photo)
    assert run(dataset=many_photos)[0] == 0
    assert_whole(out)
    assert len(pngs(out)) == 30


def test_a_read_only_disk_says_so(many_photos, run, disk):
    assert mount(disk, "remount,size=64m")
    assert run("--limit", "3", dataset=many_photos, output=disk / "out")[0] == 0
    assert mount(disk, "remount,ro")
    code, _, err = run(dataset=many_photos, output=disk / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "Read-only file system" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_console_that_can_not_be_written_costs_no_photo(photos, models, tmp_path):
    arguments = command("-i", photos, "-o", tmp_path / "out", *models)
    with Path("/dev/full").open("w") as console:
        result = subprocess.run(arguments, stdout=console, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(pngs(tmp_path / "out")) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_presets_that_can_not_be_shown_are_no_bug():
    with Path("/dev/full").open("w") as console:
        result = subprocess.run(
            command("--list-presets"), stdout=console, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_cost_no_photo(photos, models, tmp_path, closed):
    arguments = shlex.join(command("-i", photos, "-o", tmp_path / "out", *models, "--batch-size", "2"))
    (photos / "broken.jpg").write_bytes(b"")
    result = subprocess.run(f"{arguments} {closed}", shell=True, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "")
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == len(pngs(tmp_path / "out")) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_that_can_not_be_written_says_so_once(run, tmp_path):
    code, out, err = run("--verbose", "--log", "/dev/full")
    assert (code, err) == (0, "")
    assert out.count("--log /dev/full: can't be written: No space left on device; it ends here") == 1
    assert "6 photos written" in out
