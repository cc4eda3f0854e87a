"""An S3 server on this machine, in a process of its own."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
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


@contextlib.contextmanager
def serve_answers(*answers: tuple[int, str]) -> Iterator[str]:
    """Yields the address of a server that gives these answers (status, body) in turn, and then the last one always."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", "some")
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 (the library's names)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


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
