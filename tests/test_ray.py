"""Whole runs on Ray: what they leave behind is what runs without it leave, whatever dies meanwhile."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from conftest import save_config
from program import contents, count_records, results, rows, start, wait_for_records


@pytest.fixture
def damaged(photos):
    """Photos with a file among them that is none, and one that claims to be."""
    (photos / "berlin" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return photos


def test_both_ways_leave_the_same_tree(run, damaged, tmp_path):
    code, plain, _ = run(output=tmp_path / "plain")
    assert code == 1
    code, out, err = run("--ray", "--ray-actors", "2", output=tmp_path / "ray")
    assert code == 1
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
    assert err == ""
    assert "2 actors with 1 CPU each" in " ".join(out.split()) or os.cpu_count() != 2
    table = re.compile(r"(?s)Cut-outs by item.*?skipped")
    assert table.search(out)[0] == table.search(plain)[0]


def test_a_run_goes_on_with_ray_and_tries_failures_again(run, damaged, tmp_path):
    run(output=tmp_path / "plain")
    assert run("--limit", "3")[0] == 0
    code, out, _ = run("--ray")
    assert code == 1
    assert "going on after 3 photos done earlier" in out
    assert "3 photos written, 1 failed" in out
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_limit_counts_photos_alike(run, damaged, tmp_path):
    run("--limit", "4", output=tmp_path / "plain")
    run("--ray", "--limit", "4", output=tmp_path / "ray")
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
    assert len(rows(tmp_path / "ray" / "metadata.jsonl")) == 4


def test_other_settings_are_refused_with_ray_too(run):
    run()
    code, _, err = run("--ray", "--background", "#102030")
    assert code == 2
    assert "was made with other settings: background was" in err
    assert err.count("\n") == 1


def test_nothing_at_an_address_is_one_line(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code, _, err = run("--ray", address)
    assert code == 2
    assert err.startswith(f"main.py: --ray {address}: can't be joined: ")
    assert err.count("\n") == 1


@pytest.fixture
def flags(many_photos, sam2_checkpoint, clip_checkpoint, tmp_path):
    config = save_config(tmp_path / "small.json")
    models = ["-s", sam2_checkpoint, "-m", clip_checkpoint, "--config", config]
    return [*models, "-i", many_photos, "-o", tmp_path / "out", "--batch-size", "2", "--ray", "--ray-actors", "2"]


def find_workers(mark):
    """Returns the processes of a run's workers: those that Ray has started with the run's environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (process / "cmdline").read_bytes()
            if title.startswith(b"ray::MapWorker") and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def test_a_worker_that_is_killed_costs_nothing(flags, tmp_path, undisturbed):
    mark = uuid.uuid4().hex
    process = start(*flags, env={**os.environ, "SAM2VIT_TEST_MARK": mark})
    wait_for_records(process, tmp_path / "out", 4)
    workers = find_workers(mark)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, (out, err)
    assert results(tmp_path / "out") == undisturbed
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 30


def test_ctrl_c_keeps_what_is_done_and_ends_the_workers(flags, tmp_path, undisturbed):
    mark = uuid.uuid4().hex
    process = start(*flags, env={**os.environ, "SAM2VIT_TEST_MARK": mark})
    wait_for_records(process, tmp_path / "out", 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "main.py: interrupted; what was finished is in place" in err
    done = count_records(tmp_path / "out")
    assert 2 <= done < 30
    until = time.monotonic() + 30
    while find_workers(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert not find_workers(mark)
    out, err = start(*flags[: flags.index("--ray")]).communicate(timeout=200)
    assert f"{30 - done} photos written" in out, err
    assert results(tmp_path / "out") == undisturbed


@pytest.fixture
def cluster(tmp_path):
    """The address of a Ray cluster of one node that knows nothing of this program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    with (tmp_path / "ray.log").open("w") as log:
        process = subprocess.Popen([*ray, *options], stdout=log, stderr=log, cwd=tmp_path, env=environment)
    until = time.monotonic() + 60
    while "--address='127.0.0.1" not in (tmp_path / "ray.log").read_text() and time.monotonic() < until:
        assert process.poll() is None, (tmp_path / "ray.log").read_text()
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=30)


def test_a_cluster_is_joined_and_gets_the_program(run, cluster, damaged, tmp_path):
    run(output=tmp_path / "plain")
    code, out, err = run("--ray", cluster, output=tmp_path / "ray")
    assert code == 1, (out, err)
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")
