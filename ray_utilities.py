"""Ray: the same run on several GPUs or machines. What is done with a photo is decided elsewhere; here it is carried.

The photos are a Ray Dataset, a pool of actors maps blocks of them to news of what has become of each, and the driver,
who alone keeps the output's records, replays that news in the order of the photos. Placement, retries and the restart
of what has died are Ray's.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoint_utilities import file_digest
from config_utilities import PROGRAM_DIR
from dataset_utilities import PhotoFile, name_cut_out
from device_utilities import ONE_ARENA
from errors import CheckpointError, ConfigError, DeviceError, UserError
from lock_utilities import hold_lock
from record_utilities import Places, Thresholds, write_atomically
from storage_utilities import is_file
from writer_utilities import CutOutWriter, copy_aside

if TYPE_CHECKING:
    from console_utilities import RunProgress
    from output_utilities import OutputFolder

_LOGGER = logging.getLogger("sam2vit")

LOCAL = "local"  # --ray without an address

WINDOW = 1_000_000  # photos in one Dataset, whose list the driver holds: some 300 MB
_BATCHES_A_BLOCK = 8  # of photos: what is lost with an actor, or done before its news arrives
_BLOCKS_AN_ACTOR = 4  # at least, where there are so many photos: so that none is left with much more than the others

_MOST_CPUS = 16  # an actor's threads; see `device_utilities.count_threads`
_DEATHS = 2  # of the process that was doing a photo, alone, until that photo is a failure

_POLL, _PATIENCE = 1.0, 10.0  # seconds
_TOLD_OF_WAITING = 30.0  # seconds without a process: starting one takes 10

# What a node needs of the program, where it has no copy of its own.
_CODE = ("*.py", "*.json", "presets", "sam2", "report_page")


@dataclass(frozen=True)
class Plan:
    """How a cluster is shared out.

    Attributes:
        actors: How many have the models.
        num_cpus: Of each; also its threads, where it is 1 or more.
        num_gpus: Of each; below 1 where several share one, 0 where the models run on CPUs.
        per_node: How many are on a node at most, for what they share of its memory.
    """

    actors: int
    num_cpus: float
    num_gpus: float
    per_node: int

    @property
    def per_gpu(self) -> int:
        """How many share a GPU."""
        return max(1, round(1 / self.num_gpus)) if self.num_gpus else 1

    @property
    def threads(self) -> int:
        """How many threads an actor has for each of its stages."""
        return max(1, int(self.num_cpus))

    @property
    def needs(self) -> dict[str, float]:
        """What an actor needs, as Ray names it."""
        return {"CPU": self.num_cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})

    def __str__(self) -> str:
        return f"{self.actors} actor{'s' * (self.actors > 1)} with {_list_resources(self.needs)} each"


def plan_actors(nodes: Sequence[Mapping[str, float]], *, device: str, actors: int | None) -> Plan:
    """Returns how the resources of a cluster's nodes are shared out.

    One actor per GPU, or per node where there is no GPU; more of them share GPUs evenly.

    Args:
        nodes: What Ray says that each has: `CPU`, `GPU`.
        device: Of SAM 2 and CLIP: `auto`, `cuda` or `cpu`.
        actors: How many are wanted, where that is said.

    Raises:
        DeviceError: The cluster lacks what is asked for.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" and not with_gpus:
        raise DeviceError("--device cuda: no node of the Ray cluster has a GPU; leave it out, or add one")
    if device != "cpu" and with_gpus:
        gpus = sum(int(node["GPU"]) for node in with_gpus)
        wanted = actors or gpus
        per_gpu = -(-wanted // gpus)
        cpus = min(node.get("CPU", 0) / (per_gpu * min(int(node["GPU"]), wanted)) for node in with_gpus)
        per_node = per_gpu * max(int(node["GPU"]) for node in with_gpus)
        return Plan(wanted, _share_cpus(cpus), math.floor(1e4 / per_gpu) / 1e4, min(per_node, wanted))
    with_cpus = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not with_cpus:
        raise DeviceError("--ray: no node of the cluster has a CPU to lend; start one with ray start --num-cpus")
    wanted = actors or len(with_cpus)
    per_node = -(-wanted // len(with_cpus))
    return Plan(wanted, _share_cpus(min(node["CPU"] for node in with_cpus) / per_node), 0, per_node)


def _list_resources(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{count:g} {kind}" for kind, count in resources.items())


def _share_cpus(cpus: float) -> float:
    """Returns what an actor is given of CPUs: a whole number, but where there is less than one for each."""
    return min(_MOST_CPUS, math.floor(cpus)) if cpus >= 1 else math.floor(100 * cpus) / 100


class Desk:
    """A small actor beside the driver: what workers need to know, or tell, while they are at work."""

    def __init__(self) -> None:
        self._stopping = False
        self._placed = self._arrivals = 0
        self._attempts: Counter[str] = Counter()

    def place(self) -> None:
        """Notes that a process of the run has found a place in the cluster."""
        self._placed += 1

    def placed(self) -> int:
        """Returns how many have."""
        return self._placed

    def arrive(self) -> int:
        """Returns the number of a worker that has just begun; also of one that Ray has started anew."""
        self.place()
        self._arrivals += 1
        return self._arrivals

    def arrivals(self) -> int:
        """Returns how many workers have begun so far."""
        return self._arrivals

    def begin(self, work: str) -> int:
        """Notes that a block or a photo is about to be done; returns how often it was begun before."""
        self._attempts[work] += 1
        return self._attempts[work] - 1

    def end(self, work: str) -> None:
        """Forgets a photo that has come to its end."""
        del self._attempts[work]

    def stop(self) -> None:
        """Asks all workers to end."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether workers are to end."""
        return self._stopping

    def read(self, path: str) -> np.ndarray:
        """Returns the contents of a file of the driver's machine, as bytes."""
        return np.fromfile(path, np.uint8)


@dataclass(frozen=True)
class CarriedFiles:
    """Files that a setting names, for workers that may have them or not.

    Attributes:
        desk: Where what is missing can be had.
        files: Setting -> its path on the driver's machine, and its SHA-256.
    """

    desk: Any
    files: Mapping[str, tuple[str, str]]

    def here(self) -> dict[str, str]:
        """Returns the paths on this machine, by setting; fetches what is missing, once for all workers of it."""
        return {name: _find_or_fetch(path, digest, self._fetch) for name, (path, digest) in self.files.items()}

    def _fetch(self, path: str) -> bytes:
        import ray

        return ray.get(self.desk.read.remote(path)).tobytes()


def _find_or_fetch(path: str, digest: str, fetch: Callable[[str], bytes]) -> str:
    """Returns a file's path where it is on this machine, else that of a copy, which is kept under its digest."""
    with contextlib.suppress(CheckpointError):  # it can't be read here
        if is_file(Path(path)) and file_digest(Path(path)) == digest:  # shared by all nodes, or the driver's own
            return path
    copy = Path.home() / ".cache" / "sam2vit" / digest[:16] / Path(path).name
    copy.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(copy.with_name(f".{copy.name}.lock"), on_held=lambda: None):
        if not copy.is_file() or file_digest(copy) != digest:
            write_atomically(copy, fetch(path))
    return str(copy)


@dataclass(frozen=True)
class Surroundings:
    """What a worker writes to, and how much of its machine is its own.

    Attributes:
        guard: Lets it write as long as its run has the output; see `lease_utilities.Hold`.
    """

    places: Places
    thresholds: Thresholds
    unknown: Path | None
    threads: int
    most_pixels: float
    guard: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


class Courier:
    """Stands in for the output where a worker does photos: writes their cut-outs, and takes the news to the driver.

    Attributes:
        news: (verb, arguments) of what `OutputFolder` is to be told, in order.
    """

    def __init__(self, surroundings: Surroundings, taken: Mapping[str, Sequence[str]]) -> None:
        self.news: list[tuple[str, tuple[Any, ...]]] = []
        self._unknown, self._taken = surroundings.unknown, taken
        self._writer = CutOutWriter(
            surroundings.places,
            self,
            thresholds=surroundings.thresholds,
            threads=surroundings.threads,
            most_pixels=surroundings.most_pixels,
        )

    def is_done(self, _: PhotoFile) -> bool:
        """Whether an earlier run has finished it: the driver sends only what none has."""
        return False

    def write(self, photo: PhotoFile, draw: Callable[[], np.ndarray], record: Mapping[str, Any], **kept: Any) -> None:
        """Begins to write a cut-out; see `OutputFolder.write`."""
        file_name = name_cut_out(photo, record["label"], taken=self._taken.get(photo.source, ()))
        self._writer.write(photo, file_name, draw, record, **kept)

    def set_aside(self, photo: PhotoFile) -> None:
        """Copies a photo without a subject, where that is wanted."""
        if self._unknown is not None:
            copy_aside(photo, self._unknown)

    def record(self, row: Mapping[str, Any], features: np.ndarray | None) -> None:
        """Takes the record of a photo whose PNG is in place."""
        self.news.append(("record", (row, features)))

    def fail(self, source: str, reason: str, *, stage: str) -> None:
        """Takes why a photo can't be done."""
        self.news.append(("fail", (source, reason, stage)))

    def skip(self) -> None:
        """Takes that a file holds no image."""
        self.news.append(("skip", ()))

    def __enter__(self) -> Courier:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is not None:
                self._writer.drop_waiting()
            self._writer.finish()
        except UserError:
            if error_type is None:
                raise
        finally:
            self._writer.close()


class Unseen:
    """The progress of a worker, which nobody watches: the driver counts the news."""

    def skip(self) -> None:
        """Counts nothing."""

    def advance(self) -> None:
        """Counts nothing."""


# Does photos, and tells the courier of each: (files, courier, stopping).
Work = Callable[[Iterable[PhotoFile], Courier, Callable[[], bool]], None]


class Worker:
    """An actor of the pool: it has the models, and does one block of photos after the other.

    Args:
        desk: Beside the driver.
        start: Loads the models, and returns what does photos with them.
        surroundings: See there.
        level: From which on the driver wants to hear of the program's log.
    """

    def __init__(self, desk: Any, start: Callable[[], Work], surroundings: Surroundings, level: int) -> None:
        import ray

        self._desk, self._surroundings = desk, surroundings
        self._number = ray.get(desk.arrive.remote())
        self._stop = threading.Event()
        self._guard = contextlib.ExitStack()
        self._guard.enter_context(surroundings.guard())  # as long as this process lives
        self._log = _log_to_news(level)
        self._begun_with = self._log.news  # what is logged until the first photo
        threading.Thread(target=self._watch, daemon=True).start()
        self._error: Exception | None = None
        try:
            self._work = start()
        except Exception as error:  # told with the first block: the constructor's own would be tried again and again
            self._error = _portable(error)

    def __call__(self, block: Any) -> dict[str, list[Any]]:
        """Returns the news of a block of photos, in one row."""
        began = time.monotonic()
        rows = [pickle.loads(each) for each in block["photo"].to_pylist()]  # noqa: S301 (the driver's own)
        news: list[tuple[str, tuple[Any, ...]]] = []
        if self._error is not None:
            news = [("error", (self._error,))]
        elif not self._stop.is_set():
            news = self._do(rows)
        told = {
            "photos": sum(verb in ("record", "fail", "skip") for verb, _ in news),
            "actor": self._number,
            "seconds": time.monotonic() - began,
            "stopped": self._stop.is_set(),
            "begun_with": self._begun_with,
        }
        self._begun_with = []
        return {"news": [pickle.dumps((news, told))]}

    def _do(self, rows: Sequence[tuple[PhotoFile, Sequence[str]]]) -> list[tuple[str, tuple[Any, ...]]]:
        import ray

        block = f"block of {rows[0][0].source}"
        if ray.get(self._desk.begin.remote(block)) == 0:
            return self._do_photos(rows)
        # An actor died over this block. One photo at a time, to find out whether it is a photo that kills.
        news: list[tuple[str, tuple[Any, ...]]] = []
        for row in rows:
            source = row[0].source
            if ray.get(self._desk.begin.remote(source)) >= _DEATHS:
                reason = f"the process that was doing it died, {_DEATHS} times: too little memory, or a broken photo?"
                self._log.news = news
                _LOGGER.warning("%s: failed in model: %s", source, reason)
                news.append(("fail", (source, reason, "model")))
            else:
                news += self._do_photos([row])
            ray.get(self._desk.end.remote(source))
            if any(verb == "error" for verb, _ in news):
                break
        return news

    def _do_photos(self, rows: Sequence[tuple[PhotoFile, Sequence[str]]]) -> list[tuple[str, tuple[Any, ...]]]:
        courier = Courier(self._surroundings, {file.source: taken for file, taken in rows})
        self._log.news = courier.news
        try:
            with courier:
                self._work((file for file, _ in rows), courier, self._stop.is_set)
        except Exception as error:
            courier.news.append(("error", (_portable(error),)))
        return courier.news

    def _watch(self) -> None:
        import ray

        while not self._stop.is_set():
            if ray.get(self._desk.stopping.remote()):
                self._stop.set()
            time.sleep(_POLL)


class _Log(logging.Handler):
    """Adds what is logged to the news."""

    def __init__(self) -> None:
        super().__init__()
        self.news: list[tuple[str, tuple[Any, ...]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        self.news.append(("log", (record.levelno, text)))


def _log_to_news(level: int) -> _Log:
    """Lets the program's log of this process go nowhere but into news, from a level on."""
    log = _Log()
    _LOGGER.setLevel(level)
    _LOGGER.propagate = False
    _LOGGER.handlers = [log]
    return log


def _portable(error: Exception) -> Exception:
    """Returns an error that can travel: a user's as it is, a bug with its traceback as text."""
    if isinstance(error, UserError):
        return error.with_traceback(None)
    return RuntimeError("in a worker of Ray:\n" + "".join(traceback.format_exception(error)))


class Cluster:
    """A Ray cluster that this process has joined; see `join_cluster`."""

    def __init__(self, plan: Plan) -> None:
        import ray

        self.plan = plan
        self._told: set[tuple[str, tuple[Any, ...]]] = set()  # what processes have logged when they began
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns what a function returns on a node, with the resources of an actor.

        Raises:
            UserError: The function does.
        """
        import ray

        answer = ray.remote(num_cpus=self.plan.num_cpus, num_gpus=self.plan.num_gpus, max_calls=1)(_answer)
        with _explained(), self._telling_of_waiting():
            value, error, news = ray.get(answer.remote(self._desk, function, arguments, _LOGGER.getEffectiveLevel()))
        self._tell_once(news)
        if error is not None:
            raise error
        return value

    def carry(self, files: Mapping[str, tuple[Path, str]]) -> CarriedFiles:
        """Returns files of this machine with their SHA-256, by the settings that name them, for workers to have."""
        here = {name: (str(path.absolute()), digest) for name, (path, digest) in files.items()}
        return CarriedFiles(self._desk, here)

    def share(self, value: Any) -> Callable[[], Any]:
        """Puts a value into the object store, once for all workers; what is returned gets it there."""
        import ray

        return _Shared(ray.put(value))

    def do(
        self,
        files: Iterable[PhotoFile],
        output: OutputFolder,
        progress: RunProgress,
        *,
        start: Callable[[], Work],
        surroundings: Surroundings,
        batch_size: int,
        stopping: Callable[[], bool],
    ) -> None:
        """Does photos, and tells the output what has become of each, in their order.

        Args:
            files: Of the dataset.
            output: Keeps the records.
            progress: Counts.
            start: See `Worker`.
            surroundings: See there.
            batch_size: Of the models.
            stopping: Whether the run is to end.

        Raises:
            UserError: A worker did, over something that all photos share.
        """
        import ray

        ended = threading.Event()
        threading.Thread(target=self._pass_on, args=(stopping, ended), daemon=True).start()
        constructor = {
            "desk": self._desk,
            "start": start,
            "surroundings": surroundings,
            "level": _LOGGER.getEffectiveLevel(),
        }
        try:
            with _explained():
                deaths = 0
                for window in _windows(_still_to_do(files, output, progress, stopping), WINDOW):
                    before = ray.get(self._desk.arrivals.remote())
                    self._do_window(window, output, progress, constructor=constructor, batch_size=batch_size)
                    deaths += max(0, ray.get(self._desk.arrivals.remote()) - before - self.plan.actors)
                    if stopping():
                        return
                if deaths:
                    _LOGGER.warning("--ray: processes that died, and were started anew: %d; too little memory?", deaths)
                    output.clear_after_deaths()
        finally:
            ended.set()

    def _do_window(
        self,
        window: Sequence[tuple[PhotoFile, Sequence[str]]],
        output: OutputFolder,
        progress: RunProgress,
        *,
        constructor: Mapping[str, Any],
        batch_size: int,
    ) -> None:
        import pyarrow
        import ray.data

        size = block_size(len(window), actors=self.plan.actors, batch_size=batch_size)
        blocks = [
            pyarrow.table({"photo": [pickle.dumps(each) for each in window[first : first + size]]})
            for first in range(0, len(window), size)
        ]
        replies = (
            ray.data.from_arrow(blocks)
            .map_batches(
                Worker,
                fn_constructor_kwargs=dict(constructor),
                batch_size=None,  # a block at a time
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=self.plan.actors, max_tasks_in_flight_per_actor=2),
                num_cpus=self.plan.num_cpus,
                num_gpus=self.plan.num_gpus,
            )
            .iter_batches(batch_size=None, batch_format="pyarrow")
        )
        stopped: set[int] = set()
        with self._telling_of_waiting():
            for table in replies:
                for reply in table["news"].to_pylist():
                    news, told = pickle.loads(reply)  # noqa: S301 (of our own workers)
                    self._tell_once(told["begun_with"])
                    progress.actor(told["actor"], told["photos"], told["seconds"])
                    _replay(news, output)
                    progress.advance(told["photos"])
                    if told["stopped"]:
                        stopped.add(told["actor"])
                # Replies come in the order of the photos: once each actor has given one, no photo is in hand.
                if len(stopped) >= self.plan.actors:
                    return

    def _tell_once(self, news: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        """Logs what a process has when it began, but for what another one had, too."""
        for each in news:
            if each not in self._told:
                self._told.add(each)
                _tell(each)

    @contextlib.contextmanager
    def _telling_of_waiting(self) -> Iterator[None]:
        """Says, once, that no process of the block's has found a place for long: others may have the cluster."""
        import ray

        before, ended = ray.get(self._desk.placed.remote()), threading.Event()

        def watch() -> None:
            if not ended.wait(_TOLD_OF_WAITING) and ray.get(self._desk.placed.remote()) == before:
                needs, free = self.plan.needs, ray.available_resources()
                _LOGGER.warning(
                    "--ray: still waiting for a place with %s; the cluster has %s free; is it busy with other jobs?",
                    _list_resources(needs),
                    _list_resources({kind: free.get(kind, 0) for kind in needs}),
                )

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _pass_on(self, stopping: Callable[[], bool], ended: threading.Event) -> None:
        """Passes on to the workers that the run is to end."""
        while not ended.wait(_POLL):
            if stopping():
                self._desk.stop.remote()
                return


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raises what Ray itself fails of as an error of the cluster; what workers raise, they tell as news."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        _LOGGER.debug("--ray", exc_info=error)
        reason = " ".join(str(error).split())[:300]
        raise DeviceError(f"--ray: the cluster can't go on: {reason}; the same command goes on from there") from None


@dataclass(frozen=True)
class _Shared:
    reference: Any

    def __call__(self) -> Any:
        import ray

        return ray.get(self.reference)


def _answer(
    desk: Any, function: Callable[..., Any], arguments: Sequence[Any], level: int
) -> tuple[Any, Exception | None, list[tuple[str, tuple[Any, ...]]]]:
    desk.place.remote()
    log = _log_to_news(level)
    try:
        return function(*arguments), None, log.news
    except UserError as error:
        return None, error.with_traceback(None), log.news


def _still_to_do(
    files: Iterable[PhotoFile], output: OutputFolder, progress: RunProgress, stopping: Callable[[], bool]
) -> Iterator[tuple[PhotoFile, Sequence[str]]]:
    for file in files:
        if stopping():
            return
        if output.is_done(file):
            progress.skip()
        else:
            yield file, output.prepare(file)


def _windows(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while window := list(itertools.islice(iterator, size)):
        yield window


def block_size(photos: int, *, actors: int, batch_size: int) -> int:
    """Returns how many photos make a block: whole batches, so that the models compute no more than they must."""
    batches = -(-photos // (batch_size * actors * _BLOCKS_AN_ACTOR))
    return batch_size * min(_BATCHES_A_BLOCK, max(1, batches))


def _replay(news: Sequence[tuple[str, tuple[Any, ...]]], output: OutputFolder) -> None:
    """Tells the output what a worker has found.

    Raises:
        UserError: The worker did; also what was no user's error there.
    """
    for verb, arguments in news:
        if verb == "log":
            _tell((verb, arguments))
            continue
        if verb == "error":
            raise arguments[0]
        if verb == "record":
            output.record(*arguments)
        elif verb == "fail":
            source, reason, stage = arguments
            output.fail(source, reason, stage=stage)
        else:
            output.skip()


def _tell(logged: tuple[str, tuple[Any, ...]]) -> None:
    _, (level, text) = logged
    _LOGGER.log(level, "%s", text)


@contextlib.contextmanager
def join_cluster(address: str, *, device: str, actors: int | None) -> Iterator[Cluster]:
    """Starts a Ray of this machine alone, or joins a cluster, as long as the block takes.

    Args:
        address: `local`, or what `ray.init` takes: auto on a node of the cluster, host:6379.
        device: See `plan_actors`.
        actors: See `plan_actors`.

    Raises:
        ConfigError: Ray is not installed, or nothing answers at the address.
        DeviceError: See `plan_actors`.
    """
    # Before Ray is imported, which reads them then: it neither reports home nor talks on our terminal.
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_worker_niceness": "0",  # of a Ray that starts here: as if without it; 15, its own, costs workers 2%
    }.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"--ray: {error}; install what it needs: pip install -r requirements-ray.txt") from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        try:
            _check_answers(address)
            with _keep_signal_handlers(), _silence():
                ray.init(**_how_to_join(address, stack))
            # Else it prints, in colours, what its nodes say of processes that died; there is no public switch.
            ray._private.worker._worker_logs_enabled = False
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--ray {address}: can't be joined: {reason}; is it running, of this version, and does it want "
                "RAY_AUTH_MODE=token?"
            ) from None
        stack.callback(ray.shutdown)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(plan_actors(nodes, device=device, actors=actors))


def _check_answers(address: str) -> None:
    """Raises OSError where nothing listens at host:port; Ray would try for minutes, and not say what is wrong."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _how_to_join(address: str, stack: contextlib.ExitStack) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "configure_logging": False,
        "log_to_driver": False,
    }
    if address == LOCAL:
        paths = [str(PROGRAM_DIR), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths), **ONE_ARENA}}
        return {**arguments, "address": LOCAL, "include_dashboard": False, "runtime_env": environment}
    code = stack.enter_context(tempfile.TemporaryDirectory(prefix="sam2vit-"))
    for pattern in _CODE:
        for path in PROGRAM_DIR.glob(pattern):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, Path(code, path.name))
    return {**arguments, "address": address, "runtime_env": {"working_dir": code, "env_vars": ONE_ARENA}}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Lets nothing be written to standard error: Ray's native part greets there, and raises what matters."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Undoes that Ray puts handlers of its own in the place of this program's."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
