"""An S3 server on this machine, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from storage_utilities import RemotePath, to_place

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serve_s3(log: Path) -> Iterator[str]:
    """Yields the address of a server with a bucket named `bucket`; its requests go to a log, a line each."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(server, stdout=file, stderr=file, env={**os.environ, **ENVIRONMENT})
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"), timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def place(url: str) -> RemotePath:
    found = to_place(url, flag="test")
    assert isinstance(found, RemotePath)
    return found


def upload(folder: Path, url: str) -> str:
    """Copies a folder into the store and returns where to."""
    for path in folder.rglob("*"):
        if path.is_file():
            (place(url) / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return url


def download(url: str, folder: Path) -> Path:
    """Copies a folder from the store and returns where to."""
    for path in place(url).walk():
        copy = folder / path.relative_to(place(url))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder
