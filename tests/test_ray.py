"""Whole runs on Ray: what they leave behind is what runs without it leave, whatever dies meanwhile."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import storage_utilities
from conftest import save_config, save_photos
from object_store import ENVIRONMENT, download, free_port, place, serve_s3, upload
from program import contents, count_records, differing, results, rows, start, wait_for_records

WITHOUT_TOKEN = {**os.environ, "RAY_AUTH_MODE": "disabled"}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Ray cluster of one node that knows nothing of this program."""
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    options = [f"--num-cpus={os.cpu_count()}", "--include-dashboard=false", "--disable-usage-stats"]
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            [*ray, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**WITHOUT_TOKEN, "PYTHONPATH": ""},
        )
    until = time.monotonic() + 60
    while not (address := re.search(r"--address='(\S+)'", (folder / "ray.log").read_text())):
        assert process.poll() is None, (folder / "ray.log").read_text()
        assert time.monotonic() < until, (folder / "ray.log").read_text()
        time.sleep(0.1)
    yield address[1]
    process.terminate()
    process.wait(timeout=60)


@pytest.fixture
def run(photos, models, tmp_path):
    """Runs the program in a process of its own: what Ray reads of its environment, it reads once."""

    def call(*flags, output=tmp_path / "out"):
        process = start(*models, "-i", photos, "-o", output, *flags, env=WITHOUT_TOKEN)
        out, err = process.communicate(timeout=200)
        return process.returncode, out, err

    return call


@pytest.fixture
def damaged(photos):
    """Photos with a file among them that is none, and one that claims to be."""
    (photos / "berlin" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return photos


def test_both_ways_leave_the_same_tree(run, cluster, damaged, tmp_path):
    code, plain, _ = run(output=tmp_path / "plain")
    assert code == 1
    code, out, err = run("--ray", cluster, output=tmp_path / "ray")
    assert code == 1
    assert differing(contents(tmp_path / "ray"), contents(tmp_path / "plain")) == []
    assert err == ""
    assert f"1 actor with {min(16, os.cpu_count())} CPU" in out
    table = re.compile(r"(?s)Cut-outs by item.*?skipped")
    assert table.search(out)[0] == table.search(plain)[0]


def test_a_run_goes_on_with_ray_and_tries_failures_again(run, cluster, damaged, tmp_path):
    run(output=tmp_path / "plain")
    assert run("--limit", "3")[0] == 0
    code, out, _ = run("--ray", cluster)
    assert code == 1
    assert "going on after 3 photos done earlier" in out
    assert "3 photos written, 1 failed" in out
    assert differing(contents(tmp_path / "out"), contents(tmp_path / "plain")) == []


def test_a_limit_counts_photos_alike(run, cluster, damaged, tmp_path):
    run("--limit", "4", output=tmp_path / "plain")
    run("--ray", cluster, "--limit", "4", output=tmp_path / "ray")
    assert differing(contents(tmp_path / "ray"), contents(tmp_path / "plain")) == []
    assert len(rows(tmp_path / "ray" / "metadata.jsonl")) == 4


def test_workers_read_from_a_store_and_write_into_it(photos, models, tmp_path, monkeypatch):
    with serve_s3(tmp_path / "log") as address:
        for name, value in {**WITHOUT_TOKEN, **ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        storage_utilities._store.cache_clear()
        upload(photos, "s3://bucket/photos")
        outs = []
        for name, flags in (("plain", []), ("ray", ["--ray"])):
            url = f"s3://bucket/{name}"
            process = start(*models, "-i", "s3://bucket/photos", "-o", url, *flags)
            out, err = process.communicate(timeout=200)
            assert process.returncode == 0, (out, err)
            outs.append(contents(download(url, tmp_path / name)))
            assert sum(path.suffix == ".webp" for path in place(f"{url}-report").walk()) == 6
    storage_utilities._store.cache_clear()
    assert differing(*outs) == []


def test_workers_stop_where_another_run_has_taken_the_output_over(photos, models, tmp_path, monkeypatch):
    with serve_s3(tmp_path / "log") as address:
        for name, value in {**WITHOUT_TOKEN, **ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        storage_utilities._store.cache_clear()
        process = start(*models, "-i", photos, "-o", "s3://bucket/out", "--ray")
        lock = place("s3://bucket/out/.lock")
        until = time.monotonic() + 100
        while not lock.exists() and time.monotonic() < until:
            time.sleep(0.01)
        lock.write_bytes(b'{"token": "another"}')  # before there are workers; the driver looks 20 seconds later
        out, err = process.communicate(timeout=200)
        assert process.returncode not in (0, 1), (out, err)
        assert "another run has taken the output over" in err
        assert not [path for path in place("s3://bucket/out").walk() if path.name.endswith(".png")]
    storage_utilities._store.cache_clear()


def test_other_settings_are_refused_with_ray_too(run, cluster):
    run()
    code, _, err = run("--ray", cluster, "--background", "#102030")
    assert code == 2
    assert "was made with other settings: background was" in err
    assert err.count("\n") == 1


def test_nothing_at_an_address_is_one_line(run):
    address = f"127.0.0.1:{free_port()}"
    code, _, err = run("--ray", address)
    assert code == 2
    assert err.startswith(f"main.py: --ray {address}: can't be joined: ")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def plain(tmp_path_factory, sam2_checkpoint, clip_checkpoint):
    """Flags for 200 photos, and what a run without Ray makes of these; with as many threads as an actor has, each.

    The last digits of a product hang on how many threads share it, and masks of random weights on the last digits.
    """
    folder = tmp_path_factory.mktemp("plain")
    config = save_config(folder / "small.json")
    flags = ["-s", sam2_checkpoint, "-m", clip_checkpoint, "--config", config, "-i", save_photos(folder / "many", 200)]
    start(*flags, "-o", folder / "out", env=ONE_THREAD).communicate(timeout=200)
    return flags, results(folder / "out")


def find_workers(mark):
    """Returns the processes of a run's workers: those that Ray has started with the run's environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (process / "cmdline").read_bytes()
            if title.startswith(b"ray::MapWorker") and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def start_marked(*flags):
    """Starts the program with a mark in the environment, which its workers have, too."""
    mark = uuid.uuid4().hex
    shares = ["--ray", "--ray-actors", str(os.cpu_count())]  # of one CPU each
    return start(*flags, *shares, env={**os.environ, "SAM2VIT_TEST_MARK": mark}), mark


def test_a_worker_that_is_killed_costs_nothing(plain, tmp_path):
    flags, undisturbed = plain
    process, mark = start_marked(*flags, "-o", tmp_path / "out")
    wait_for_records(process, tmp_path / "out", 4)
    workers = find_workers(mark)
    assert len(workers) == os.cpu_count()
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, (out, err)
    assert differing(results(tmp_path / "out"), undisturbed) == []
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 200


def in_order(tree):
    return {**tree, "metadata.jsonl": sorted(tree["metadata.jsonl"], key=lambda row: row["source"])}


def test_ctrl_c_keeps_what_is_done_and_ends_the_workers(plain, tmp_path):
    flags, undisturbed = plain
    process, mark = start_marked(*flags, "-o", tmp_path / "out", "--debug")  # which takes longer
    wait_for_records(process, tmp_path / "out", 4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "main.py: interrupted; what was finished is in place" in err
    done = count_records(tmp_path / "out")
    assert 4 <= done < 200
    until = time.monotonic() + 30
    while find_workers(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert not find_workers(mark)
    out, err = start(*flags, "-o", tmp_path / "out", env=ONE_THREAD).communicate(timeout=200)
    assert f"{200 - done} photos written" in out, err
    # Blocks that were in hand at the same time ended early, each: what follows them in the records differs, no more.
    assert differing(in_order(results(tmp_path / "out")), in_order(undisturbed)) == []
