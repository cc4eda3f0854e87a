"""Work ahead of the model and around its failures: generic helpers that know nothing of photos."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

stage_seconds: Counter[str] = Counter()  # by stage, the sum over all threads
_lock = threading.Lock()
_wait_for_devices: Callable[[], object] | None = None


@contextlib.contextmanager
def stage(name: str, *, synchronize: bool = False) -> Iterator[None]:
    """Adds the time that its block takes to `stage_seconds`.

    Args:
        name: Of the stage.
        synchronize: The block hands work to a device that goes on after the block has ended; `measure_devices` waits.
    """
    began = time.perf_counter()
    yield
    if synchronize and _wait_for_devices is not None:
        _wait_for_devices()
    with _lock:
        stage_seconds[name] += time.perf_counter() - began


def measure_devices(wait: Callable[[], object]) -> None:
    """Lets stages end when their device has, one after the other, at the price of speed: for benchmarks.

    Args:
        wait: Such as `torch.cuda.synchronize`.
    """
    global _wait_for_devices  # noqa: PLW0603 (one measurement per process)
    _wait_for_devices = wait


def measures_devices() -> bool:
    """Whether `measure_devices` was called."""
    return _wait_for_devices is not None


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    ahead: int,
    weigh: Callable[[Item], float] = lambda _: 0,
    most: float = math.inf,
) -> Iterator[Result]:
    """Yields function(item) in order, computed by threads while the caller is busy with earlier results.

    At most `ahead` results wait, so memory stays bounded however many items there are. An exception of the
    function is raised where its result would have been yielded. Closing the iterator cancels what has not begun.

    Args:
        function: What threads call.
        items: What they call it with.
        threads: How many.
        ahead: See above.
        weigh: What an item weighs, such as its size in memory.
        most: So much may what waits weigh together; an item that weighs more is alone.
    """
    pending: deque[tuple[Future[Result], float]] = deque()
    weight = 0.0

    def first() -> Result:
        nonlocal weight
        future, lighter = pending.popleft()
        weight -= lighter
        return future.result()

    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            heavier = weigh(item)
            while pending and weight + heavier > most:
                yield first()
            pending.append((pool.submit(function, item), heavier))
            weight += heavier
            if len(pending) >= ahead:
                yield first()
        while pending:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_batches(
    items: Iterable[Item], size: int, *, weigh: Callable[[Item], float] = lambda _: 0, most: float = math.inf
) -> Iterator[list[Item]]:
    """Yields lists of `size` items, shorter at the end and where more would weigh more than `most` together."""
    batch: list[Item] = []
    weight = 0.0
    for item in items:
        heavier = weigh(item)
        if batch and weight + heavier > most:
            yield batch
            batch, weight = [], 0.0
        batch.append(item)
        weight += heavier
        if len(batch) == size:
            yield batch
            batch, weight = [], 0.0
    if batch:
        yield batch


def call_in_parts(
    function: Callable[[Sequence[Item]], list[Result]],
    batch: Sequence[Item],
    on_error: Callable[[Item, Exception], Result],
) -> list[Result]:
    """Returns function(batch); where that raises, the halves are tried, down to the items that raise alone.

    So one bad photo does not take its neighbours with it, and a batch too large for the GPU shrinks until it
    fits. The result of an item that raises alone is `on_error(item, exception)`.
    """
    try:
        return function(batch)
    except Exception as error:  # whatever a model raises over one photo is that photo's reason
        if len(batch) == 1:
            return [on_error(batch[0], error)]
    # Out of the except block, whose traceback would keep the failed call's tensors alive.
    middle = len(batch) // 2
    return [
        *call_in_parts(function, batch[:middle], on_error),
        *call_in_parts(function, batch[middle:], on_error),
    ]
