"""How a cluster is shared out, and how photos and news travel; the work itself is a stand-in here."""

import contextlib
import functools
import hashlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ray_utilities
from conftest import make_image
from dataset_utilities import PhotoFile
from errors import ConfigError, DeviceError, OutputError
from mask_utilities import cut_out
from prompt_utilities import Label
from ray_utilities import (
    CarriedFiles,
    Courier,
    Plan,
    Surroundings,
    _find_or_fetch,
    block_size,
    join_cluster,
    plan_actors,
)
from record_utilities import Places, Thresholds, photo_record

_LOGGER = logging.getLogger("sam2vit")

GPU_BOX = {"CPU": 64.0, "GPU": 8.0, "memory": 1e12}
SMALL_GPU_NODE = {"CPU": 8.0, "GPU": 1.0}
CPU_NODE = {"CPU": 32.0}
HEAD = {"memory": 1e10}  # of a cluster whose head lends nothing

PLANS = {
    "one per GPU": ([GPU_BOX], "auto", None, Plan(8, 8, 1, 8)),
    "two per GPU": ([GPU_BOX], "auto", 16, Plan(16, 4, 0.5, 16)),
    "three on two GPUs": ([SMALL_GPU_NODE, SMALL_GPU_NODE], "cuda", 3, Plan(3, 4, 0.5, 2)),
    "three share one GPU": ([SMALL_GPU_NODE], "auto", 3, Plan(3, 2, 0.3333, 3)),
    "fewer than GPUs": ([GPU_BOX], "auto", 2, Plan(2, 16, 1, 2)),
    "the smallest node decides": ([HEAD, GPU_BOX, SMALL_GPU_NODE], "auto", None, Plan(9, 8, 1, 8)),
    "nodes without a GPU are left out": ([CPU_NODE, SMALL_GPU_NODE], "auto", None, Plan(1, 8, 1, 1)),
    "one per node without GPUs": ([HEAD, CPU_NODE, CPU_NODE], "auto", None, Plan(2, 16, 0, 1)),
    "GPUs that are not wanted": ([SMALL_GPU_NODE], "cpu", None, Plan(1, 8, 0, 1)),
    "more actors than cores": ([{"CPU": 2.0}], "auto", 4, Plan(4, 0.5, 0, 4)),
}


@pytest.mark.parametrize(("nodes", "device", "actors", "plan"), PLANS.values(), ids=PLANS)
def test_a_cluster_is_shared_out_evenly(nodes, device, actors, plan):
    assert plan_actors(nodes, device=device, actors=actors) == plan


@pytest.mark.parametrize(("nodes", "device", "actors", "plan"), PLANS.values(), ids=PLANS)
def test_all_actors_have_room(nodes, device, actors, plan):
    room = 0
    for node in nodes:
        by_gpu = (node.get("GPU", 0) + 1e-9) // plan.num_gpus if plan.num_gpus else float("inf")
        room += min(by_gpu, node.get("CPU", 0) // plan.num_cpus)
    assert room >= plan.actors


def test_a_gpu_that_no_node_has_is_named():
    with pytest.raises(DeviceError, match="--device cuda: no node of the Ray cluster has a GPU"):
        plan_actors([CPU_NODE], device="cuda", actors=None)


def test_a_cluster_that_lends_nothing_is_named():
    with pytest.raises(DeviceError, match="no node of the cluster has a CPU to lend"):
        plan_actors([HEAD], device="auto", actors=None)


@pytest.mark.parametrize(
    ("photos", "actors", "batch_size", "size"),
    [(24, 1, 8, 8), (24, 2, 8, 8), (10_000, 2, 8, 64), (10_000, 1, 1, 8), (1_000_000, 64, 32, 256), (1, 8, 32, 32)],
)
def test_blocks_are_whole_batches_and_leave_each_actor_some(photos, actors, batch_size, size):
    assert block_size(photos, actors=actors, batch_size=batch_size) == size


def test_a_file_that_a_node_lacks_is_fetched_once_and_again_where_it_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    content, fetched = b"weights", []
    digest = hashlib.sha256(content).hexdigest()

    def fetch(path):
        fetched.append(path)
        return content

    here = [_find_or_fetch("/nowhere/sam.pt", digest, fetch) for _ in range(2)]
    assert here[0] == here[1] != "/nowhere/sam.pt"
    assert fetched == ["/nowhere/sam.pt"]
    Path(here[0]).write_bytes(b"torn")
    assert Path(_find_or_fetch("/nowhere/sam.pt", digest, fetch)).read_bytes() == content


def test_a_file_of_the_same_path_and_other_contents_is_no_substitute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "sam.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert _find_or_fetch(str(path), digest, lambda _: pytest.fail("fetched")) == str(path)
    path.write_bytes(b"of last week")
    copy = Path(_find_or_fetch(str(path), digest, lambda _: b"weights"))
    assert (copy.read_bytes(), path.read_bytes()) == (b"weights", b"of last week")


def test_without_ray_a_run_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ConfigError, match=r"--ray: .*pip install -r requirements-ray.txt"),
        join_cluster("local", device="auto", actors=None),
    ):
        pass


def test_a_courier_writes_cut_outs_and_takes_news_in_the_order_of_the_photos(tmp_path):
    label = Label("red", "a red car", 0.25, 0.75, "blue", 0.5, (("red", 0.75), ("blue", 0.25)))
    record = photo_record(label, None, None, (64, 96, 3), seconds=0.5)
    image = cut_out(make_image(), None)

    def fails():
        raise ValueError("out of paint")

    photos = [PhotoFile(tmp_path / name, name, name.replace(".jpg", ".png")) for name in ("a.jpg", "b.jpg", "c.jpg")]
    around = Surroundings(Places(tmp_path / "out", tmp_path / "review"), Thresholds(margin=0.6), None, 2, 1e9)
    with Courier(around, {"c.jpg": ("red",)}) as courier:
        courier.write(photos[0], lambda: image, record)
        courier.write(photos[1], fails, record)
        courier.write(photos[2], lambda: image, record, features=np.ones(4, np.float16))
        courier.skip()
    verbs = [verb for verb, _ in courier.news]
    assert [verb for verb in verbs if verb != "skip"] == ["record", "fail", "record"]
    rows = {arguments[0]["source"]: arguments for verb, arguments in courier.news if verb == "record"}
    assert rows["a.jpg"][0]["file_name"] == "red/a.png"
    assert rows["a.jpg"][0]["flags"] == ["low margin", "review"]
    assert rows["c.jpg"][0]["file_name"] != "red/c.png"  # which another photo has
    assert rows["c.jpg"][1].tolist() == [1, 1, 1, 1]
    assert ("fail", ("b.jpg", "ValueError: out of paint", "write")) in courier.news
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert written == {f"review/{row['file_name']}" for row, _ in rows.values()}


class Told:
    """Stands in for the output and the progress."""

    def __init__(self):
        self.records, self.failures, self.skipped, self.photos, self.cleared = [], [], 0, 0, 0

    def is_done(self, photo):
        return photo.source == "done.jpg"

    def prepare(self, photo):
        return ("red",) if photo.source == "taken.jpg" else ()

    def record(self, row, features):
        self.records.append((row["source"], features))

    def fail(self, source, reason, *, stage):
        self.failures.append((source, reason, stage))

    def skip(self):
        self.skipped += 1

    def clear_after_deaths(self):
        self.cleared += 1

    def advance(self, files):
        self.photos += files

    def actor(self, number, photos, seconds):
        assert photos >= 0 < seconds


def start_work(folder, error=None):
    """Loads no model; what does photos goes by their names."""
    if error is not None:
        raise error

    def work(files, courier, stopping):
        for file in files:
            name = file.source.partition(".")[0]
            if name == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            elif name == "once" and not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            elif name == "bug":
                raise ZeroDivisionError("a bug")
            elif name == "full":
                raise OutputError("the disk is full; make room")
            elif name == "note":
                courier.skip()
            elif name == "bad":
                courier.fail(file.source, "no photo", stage="decode")
            else:
                courier.record({"source": file.source}, None)
            assert not stopping()

    return work


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where workers find this module
        with join_cluster("local", device="cpu", actors=1) as joined:
            yield joined


def do(
    cluster, folder, *names, error=None, batch_size=2, start=None, guard=contextlib.nullcontext, stopping=lambda: False
):
    told = Told()
    progress = Told()
    files = [PhotoFile(folder / name, name, name) for name in names]
    cluster.do(
        files,
        told,
        type("Progress", (), {"skip": progress.skip, "advance": progress.advance, "actor": progress.actor})(),
        start=start or functools.partial(start_work, folder, error),
        surroundings=Surroundings(Places(folder, folder), Thresholds(), None, 1, 1e9, guard),
        batch_size=batch_size,
        stopping=lambda: False,
    )
    return told, progress


def test_news_comes_in_the_order_of_the_photos_and_what_is_done_is_not_sent(cluster, tmp_path):
    names = [f"{index:03}.jpg" for index in range(40)]
    told, progress = do(cluster, tmp_path, *names[:20], "note.txt", "bad.jpg", "done.jpg", *names[20:])
    assert [source for source, _ in told.records] == names
    assert told.failures == [("bad.jpg", "no photo", "decode")]
    assert (told.skipped, progress.skipped, progress.photos) == (1, 1, 42)


def test_a_photo_that_kills_its_process_fails_alone(cluster, tmp_path, caplog, capfd):
    names = ["a.jpg", "b.jpg", "deadly.jpg", "d.jpg", "e.jpg"]
    told, _ = do(cluster, tmp_path, *names, batch_size=4)
    assert [source for source, _ in told.records] == ["a.jpg", "b.jpg", "d.jpg", "e.jpg"]
    [(source, reason, stage)] = told.failures
    assert (source, stage) == ("deadly.jpg", "model")
    assert "the process that was doing it died, 2 times" in reason
    assert told.cleared == 1
    failed, died = (record.getMessage() for record in caplog.records)
    assert failed == f"deadly.jpg: failed in model: {reason}"
    assert died == "--ray: processes that died, and were started anew: 3; too little memory?"
    time.sleep(1)  # what Ray says of it comes later
    assert capfd.readouterr() == ("", "")


def test_a_process_that_dies_once_costs_nothing(cluster, tmp_path):
    names = ["a.jpg", "once.jpg", "c.jpg", "d.jpg"]
    told, _ = do(cluster, tmp_path, *names)
    assert [source for source, _ in told.records] == names
    assert told.failures == []


@contextlib.contextmanager
def mark(path):
    path.touch()
    yield
    path.unlink()


def start_marked(path):
    """What it does photos with records those that are done while there is a mark."""

    def work(files, courier, stopping):
        for file in files:
            if path.exists():
                courier.record({"source": file.source}, None)

    assert path.exists()
    return work


def test_workers_begin_and_work_behind_the_guard_of_the_output(cluster, tmp_path):
    path = tmp_path / "mark"
    start, guard = functools.partial(start_marked, path), functools.partial(mark, path)
    told, _ = do(cluster, tmp_path, "a.jpg", start=start, guard=guard)
    assert [source for source, _ in told.records] == ["a.jpg"]


def test_what_processes_log_when_they_begin_is_told_once(cluster, tmp_path, caplog):
    assert cluster.ask(warn, "a slow machine", 3) == 3
    do(cluster, tmp_path, "a.jpg", "b.jpg", start=functools.partial(start_warning, tmp_path))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "a slow machine"),
        ("WARNING", "a worker's own"),
    ]


def warn(text, result):
    _LOGGER.warning(text)
    _LOGGER.debug("of no interest")
    return result


def start_warning(folder):
    warn("a slow machine", None)
    return warn("a worker's own", start_work(folder))


def test_an_error_that_all_photos_share_ends_the_run_after_what_came_before(cluster, tmp_path):
    with pytest.raises(OutputError, match="the disk is full; make room"):
        do(cluster, tmp_path, "a.jpg", "full.jpg", "c.jpg")


def test_a_bug_in_a_worker_shows_its_traceback(cluster, tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)in a worker of Ray:.*ZeroDivisionError: a bug"):
        do(cluster, tmp_path, "a.jpg", "bug.jpg")


def test_models_that_a_worker_can_not_load_end_the_run(cluster, tmp_path):
    with pytest.raises(ConfigError, match="no such model"):
        do(cluster, tmp_path, "a.jpg", error=ConfigError("no such model"))


def test_what_a_node_answers_with_is_returned_or_raised(cluster):
    assert cluster.ask(sum, [1, 2]) == 3
    with pytest.raises(ConfigError, match="not there"):
        cluster.ask(refuse)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_workers_begin_with_one_arena_and_the_priority_of_the_driver(cluster):
    began_with, niceness = cluster.ask(look_at_process)
    assert b"MALLOC_ARENA_MAX=1" in began_with
    assert niceness == os.nice(0)


def look_at_process():
    return Path("/proc/self/environ").read_bytes().split(b"\0"), os.nice(0)


@pytest.mark.parametrize("does", ["ask", "do"])
def test_a_run_that_finds_no_place_says_so(cluster, tmp_path, monkeypatch, caplog, does):
    import ray

    monkeypatch.setattr(ray_utilities, "_TOLD_OF_WAITING", 0.5)
    other = ray.remote(num_cpus=1)(work_until).remote(tmp_path / "begun", tmp_path / "end")
    wait_for(tmp_path / "begun")
    threading.Timer(3, (tmp_path / "end").touch).start()
    if does == "ask":
        assert cluster.ask(sum, [1, 2]) == 3
    else:
        assert len(do(cluster, tmp_path, "a.jpg", "b.jpg")[0].records) == 2
    cpus = os.cpu_count()
    [message] = [record.message for record in caplog.records if "waiting" in record.message]
    # Ray Data looks at its blocks by a task of its own, which may have the other CPU while its process starts.
    free = [cpus - 1] if does == "ask" else [cpus - 1, cpus - 2]
    told = [f"waiting for a place with {min(16, cpus)} CPU; the cluster has {count} CPU free;" for count in free]
    assert any(each in message for each in told)
    ray.get(other)


def work_until(begun, end):
    begun.touch()
    wait_for(end)


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)


def refuse():
    raise ConfigError("not there")


def test_files_are_carried_by_their_settings(cluster, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    carried = cluster.carry({"sam_model": (tmp_path / "model.pt", digest)})
    assert isinstance(carried, CarriedFiles)
    assert carried.here() == {"sam_model": str(tmp_path / "model.pt")}
    assert carried._fetch(str(tmp_path / "model.pt")) == b"weights"
