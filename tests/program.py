"""The program as its users run it, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from config_utilities import PROGRAM_DIR


def command(*flags: object) -> list[str]:
    return [sys.executable, str(PROGRAM_DIR / "main.py"), *map(str, flags)]


def start(*flags: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def peak_of(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the most bytes that a function held of Python's memory: in a process where no other test has threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_trace, function, *arguments).result()


def _trace(function: Callable[..., Any], *arguments: Any) -> int:
    tracemalloc.start()
    function(*arguments)
    return tracemalloc.get_traced_memory()[1]


def count_records(output: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (output / "metadata.jsonl").read_bytes().count(b"\n")
    return 0


def wait_for_records(process: subprocess.Popen[str], output: Path, count: int) -> None:
    """Waits until `count` photos are recorded; the process must not end before."""
    while process.poll() is None:
        if count_records(output) >= count:
            return
        time.sleep(0.005)
    pytest.fail(f"ended too early: {process.communicate()}")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pngs(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def contents(folder: Path) -> dict[str, Any]:
    """The tree of an output, but for the seconds, which no two runs share."""
    tree: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    if ".image_features" in tree:  # by photo: one that was done twice stands there twice
        kept = tree[".image_features"]
        size = 16 + 2 * int.from_bytes(kept[8:12], "little")
        records = (kept[place : place + size] for place in range(16, len(kept), size))
        tree[".image_features"] = {record[:16]: record[16:] for record in records}
    tree["metadata.jsonl"] = [{**row, "seconds": None} for row in rows(folder / "metadata.jsonl")]
    return tree


def results(folder: Path) -> dict[str, Any]:
    """As `contents`, but without the settings, which name the dataset: for the same photos elsewhere."""
    return {name: content for name, content in contents(folder).items() if name != ".run.json"}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The files in which two trees differ, by name: pytest would print what they hold."""
    return sorted(name for name in {**one, **other} if one.get(name) != other.get(name))


def mount(folder: Path, options: str) -> bool:
    """Whether a disk in memory could be mounted, or given other options."""
    arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None
        and subprocess.run(arguments, capture_output=True, check=False).returncode == 0
    )


def count_refusals(tries: int, attempt: Callable[[int], object], refusal: type[Exception]) -> int:
    """Returns how many of so many seeded attempts were refused, each in one line; some have to be, and not all."""
    messages = [message for seed in range(tries) if (message := _refusal(attempt, seed, refusal))]
    assert [message for message in messages if "\n" in message] == []
    assert 0 < len(messages) < tries
    return len(messages)


def _refusal(attempt: Callable[[int], object], seed: int, refusal: type[Exception]) -> str | None:
    try:
        attempt(seed)
    except refusal as error:
        return str(error)
    return None
