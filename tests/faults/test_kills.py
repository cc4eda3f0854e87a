"""SIGKILL, the nearest that a test comes to a power cut: whatever the moment, the same command finishes the job."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
from conftest import save_photo
from program import contents, count_records, pngs, rows, start, wait_for_records
from record_utilities import write_atomically

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")

CRASHES = Path(__file__).with_name("crashes.py")


def make_dataset(folder, count):
    """Photos in three folders; every tenth is broken, and one folder holds what is no photo."""
    for seed in range(count):
        path = folder / f"{seed % 3}" / f"{seed}.jpg"
        save_photo(path, 400, 300, seed)
        if seed % 10 == 9:
            path.write_bytes(path.read_bytes()[:400])
    (folder / "1" / "notes.txt").write_text("no photo")
    return folder


def temporaries(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]


def test_the_bundled_models_killed_at_random_moments_lose_nothing(tmp_path, soak, figure):
    kills, photos = (50, 400) if soak else (3, 50)
    dataset, out = make_dataset(tmp_path / "photos", photos), tmp_path / "out"
    flags = ["--micro", "--debug", "-i", str(dataset), "-o"]
    rng, survived = random.Random(0), 0
    for kill in range(kills):
        left = photos * 8 // 10 - count_records(out)
        process = start(*flags, out)
        if kill % 5 == 2:  # at any moment of a start, most of them before the first photo
            time.sleep(rng.uniform(0, 5))
        else:
            wait_for_records(
                process, out, count_records(out) + rng.randint(0, max(0, 3 * left // (2 * (kills - kill))))
            )
            time.sleep(rng.uniform(0, 0.05))  # within a photo
        process.kill()
        process.communicate()
        survived += process.returncode == -signal.SIGKILL  # else it was done already
    assert survived > kills // 2
    assert main.main([*flags, str(out)]) == main.main([*flags, str(tmp_path / "undisturbed")]) == 1
    assert contents(out) == contents(tmp_path / "undisturbed")
    records, failures = rows(out / "metadata.jsonl"), rows(out / "failures.jsonl")
    assert pngs(out) == sorted(row["file_name"] for row in records)
    assert len(records) + len(failures) == photos
    assert temporaries(out) + temporaries(tmp_path / "out-debug") == []
    figure("kills survived", survived)
    figure("records lost", photos - len(records) - len(failures))


def test_there_is_no_file_operation_that_a_kill_may_not_precede(tmp_path, figure):
    result = subprocess.run([sys.executable, str(CRASHES), str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert found["wrong"] == []
    assert found["kills"] > 190
    figure("file operations killed before", found["kills"])


def test_a_record_may_be_torn_at_any_byte(tmp_path, run, photos):
    run(output=tmp_path / "undisturbed")
    expected = contents(tmp_path / "undisturbed")
    records = (tmp_path / "undisturbed" / "metadata.jsonl").read_bytes()
    last = records[: len(records) - 1].rindex(b"\n") + 1
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "out")
    for torn in (last, last + 1, (last + len(records)) // 2, len(records) - 2, len(records) - 1):
        (tmp_path / "out" / "metadata.jsonl").write_bytes(records[:torn])
        assert run()[0] == 0
        assert contents(tmp_path / "out") == expected


def test_what_a_power_cut_leaves_at_the_end_of_a_file_is_no_record(tmp_path, run):
    run(output=tmp_path / "undisturbed")
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "out")
    with (tmp_path / "out" / "metadata.jsonl").open("ab") as file:
        file.write(bytes(4096))  # a length that reached the disk before the bytes
    assert run()[0] == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_no_name_appears_before_its_contents_are_on_the_disk(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda _: events.append("fsync"))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (events.append("rename"), replace(path, target)))
    write_atomically(tmp_path / "a.png", b"a picture")
    assert events == ["fsync", "rename"]
