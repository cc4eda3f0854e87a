"""Objects by the verbs of pathlib, files that grow in parts, and leases; against an S3 server on this machine."""

import contextlib
import errno
import io
import os
import pickle
import socket
import sys
import threading
import time
from pathlib import Path, PurePosixPath

import pytest

import lease_utilities
import parts_utilities
import storage_utilities
from errors import ConfigError
from lease_utilities import hold_lease
from object_store import ENVIRONMENT, free_port, serve_s3
from parts_utilities import PartsFile, parts_of, read_whole
from record_utilities import iterate_lines, to_line
from storage_utilities import Entry, RemotePath, TooLongError, is_url, to_place


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with serve_s3(tmp_path_factory.mktemp("s3") / "log") as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        storage_utilities._store.cache_clear()
        yield RemotePath("s3://bucket", PurePosixPath("."))
    storage_utilities._store.cache_clear()


@pytest.fixture
def folder(bucket, request):
    """A folder of this test's own."""
    return bucket / request.node.name


def test_urls_are_told_from_paths():
    assert [is_url(text) for text in ("s3://bucket/a", "photos", "C://photos", "/a/b://c", "file:///a")] == [
        *(True, False, False, False, True)
    ]


@pytest.mark.parametrize("path", ["photos", "/data/photos", "C:\\photos"])
def test_paths_stay_paths(path):
    assert to_place(path, flag="--output") == Path(path)


REFUSED = {
    "ftp://server/photos": "no place that is known; use a path, or one of file://, s3://, gs://, az://",
    "s3:///photos": "names no bucket; write s3://BUCKET/FOLDER",
    "s3://bucket/": "names a whole bucket; name a folder in it",
    "s3://bucket": "names a whole bucket; name a folder in it",
    "s3://bucket/a/../b": "holds a part that is only dots",
}


@pytest.mark.parametrize(("url", "problem"), REFUSED.items(), ids=REFUSED)
def test_urls_that_name_no_folder_are_refused(url, problem):
    with pytest.raises(ConfigError, match=f"^--output {url}: {problem}"):
        to_place(url, flag="--output")


def test_without_obstore_a_url_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"-i s3://b/x: .*pip install -r requirements-urls.txt"):
        to_place("s3://b/x", flag="-i")


def test_a_place_is_spelt_as_it_was_given_and_has_the_parts_of_a_path():
    place = to_place("s3://bucket/a b/c%20d.tar.gz", flag="--output")
    assert str(place) == "s3://bucket/a b/c%20d.tar.gz"
    assert (place.name, place.stem, place.suffix) == ("c%20d.tar.gz", "c%20d.tar", ".gz")
    assert str(place.parent / "e/f.png") == "s3://bucket/a b/e/f.png"
    assert (place.parent / "e/f.png").relative_to(place.parent) == PurePosixPath("e/f.png")
    assert place.is_relative_to(place.parent)
    assert not place.is_relative_to(place / "more")
    assert not place.is_relative_to(Path("/a b"))
    assert pickle.loads(pickle.dumps(place)) == place


NAMES = ("plain.png", "a b%20#?ü.jpg", "~x/y+.png", "é%/[1] {2}.png", "a&b=c;d.png", "'quoted' \"twice\".png")


def test_names_of_any_kind_come_back_as_they_were(folder):
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    assert {str(path.relative_to(folder)): path.read_text() for path in folder.walk()} == {name: name for name in NAMES}


def test_a_folder_lists_what_is_in_it_and_no_more(folder):
    for name in ("b.jpg", "a/1.jpg", "a/2.jpg", "c/d/3.jpg", "a.jpg"):
        (folder / name).write_bytes(b"x")
    folder.with_name(f"{folder.name}-beside").write_bytes(b"x")
    names = [("a", True), ("a.jpg", False), ("b.jpg", False), ("c", True)]
    assert folder.scan() == [Entry(name, is_folder) for name, is_folder in names]
    assert [path.name for path in folder.iterdir()] == ["a", "a.jpg", "b.jpg", "c"]
    assert [(folder / name).is_dir() for name in ("a", "a.jpg", "nothing")] == [True, False, False]
    assert [(folder / name).exists() for name in ("a", "a.jpg", "nothing")] == [False, True, False]
    with pytest.raises(FileNotFoundError):
        (folder / "nothing").iterdir()


def test_a_large_file_is_one_object(folder):
    contents = b"\1" * (6 << 20) + b"\2" * (6 << 20)
    (folder / "large").write_file(io.BytesIO(contents))
    assert (folder / "large").read_bytes() == contents
    assert b"".join((folder / "large").chunks()) == contents
    assert (folder / "large").read_head(10) == b"\1" * 10


@pytest.mark.parametrize(
    ("name", "kind"), [("index.html", "text/html; charset=utf-8"), ("a.png", "image/png"), (".image_features", None)]
)
def test_a_browser_is_told_what_an_object_is(folder, name, kind):
    (folder / name).write_bytes(b"x")
    attributes = storage_utilities._store(folder.root).get(str((folder / name).key)).attributes
    assert attributes.get("Content-Type") in (kind, "binary/octet-stream" if kind is None else kind)


def test_an_object_is_created_once(folder):
    (folder / "lock").create(b"mine")
    with pytest.raises(FileExistsError) as caught:
        (folder / "lock").create(b"yours")
    assert (folder / "lock").read_bytes() == b"mine"
    assert caught.value.strerror == "File exists"


@pytest.mark.parametrize("name", ["../outside.png", "a/../../outside.png"])
def test_a_name_that_leads_out_of_a_folder_is_not_in_it_and_no_object_s(folder, name):
    assert not (folder / name).resolve().is_relative_to(folder)
    for use in ((folder / name).read_bytes, (folder / name).unlink, lambda: (folder / name).write_bytes(b"")):
        with pytest.raises(OSError, match="is no name of an object"):
            use()


def test_what_is_deleted_is_gone(folder):
    (folder / "a").write_bytes(b"")
    (folder / "a").unlink()
    (folder / "a").unlink(missing_ok=True)
    assert list(folder.walk()) == []


def test_what_is_too_long_is_not_read(folder):
    (folder / "a").write_bytes(b"12345")
    assert (folder / "a").read_limited(5) == b"12345"
    with pytest.raises(TooLongError) as caught:
        (folder / "a").read_limited(4)
    assert caught.value.length == 5


def test_errors_are_those_of_files(folder):
    for path, reason in [
        (folder / "nothing", "No such file or directory"),
        (RemotePath("s3://nobucket", PurePosixPath("a")), "no such bucket"),
    ]:
        with pytest.raises(FileNotFoundError) as caught:
            path.read_bytes()
        assert (caught.value.strerror, caught.value.filename) == (reason, str(path))
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        RemotePath("s3://nobucket", PurePosixPath("a")).scan()
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        RemotePath("s3://nobucket", PurePosixPath("a")).write_bytes(b"")


@pytest.fixture
def another_server(bucket, monkeypatch):
    def change(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        storage_utilities._store.cache_clear()

    yield change
    storage_utilities._store.cache_clear()


def test_a_server_that_is_not_there_is_named(bucket, another_server):
    address = f"http://127.0.0.1:{free_port()}"
    another_server(AWS_ENDPOINT_URL=address)
    with pytest.raises(ConnectionError) as caught:
        (bucket / "a").read_bytes()
    assert caught.value.strerror == f"{address} does not answer"


def test_missing_credentials_are_named(bucket, another_server, monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    another_server(AWS_METADATA_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(PermissionError, match="no credentials; set those of the store in the environment"):
        (bucket / "a").read_bytes()


def test_pieces_are_in_the_file_after_a_join_and_before_it_in_parts(folder, monkeypatch):
    monkeypatch.setattr(parts_utilities, "_SECONDS", 0)
    path = folder / "metadata.jsonl"
    file = PartsFile(path, head=b"head ")
    for piece in (b"one ", b"two "):
        file.append(piece)
    assert not path.exists()
    assert read_whole(path) == b"head one two "
    assert len(parts_of(path)) == 2
    file.join()
    assert path.read_bytes() == b"head one two "
    assert parts_of(path) == []
    PartsFile(path, head=b"head ").join()
    assert path.read_bytes() == b"head one two "


def test_few_pieces_wait_for_each_other(folder):
    path = folder / "metadata.jsonl"
    file = PartsFile(path)
    file.append(b"one ")
    assert parts_of(path) == []
    file.append(b"x" * (1 << 20))
    assert len(parts_of(path)) == 1


def test_what_a_killed_run_has_left_comes_first_and_counts_once(folder, monkeypatch):
    monkeypatch.setattr(parts_utilities, "_SECONDS", 0)
    path = folder / "metadata.jsonl"
    killed = PartsFile(path)
    killed.append(to_line({"source": "a"}))
    [part] = parts_of(path)
    kept = part.read_bytes()
    assert list(iterate_lines(path, {"source": str})) == [{"source": "a"}, None]
    file = PartsFile(path)
    part.write_bytes(kept)  # as if it had been killed again, before it could delete it
    file.append(to_line({"source": "b"}))
    file.join()
    assert [row["source"] for row in iterate_lines(path, {"source": str}) if row] == ["a", "a", "b"]


def test_an_object_is_replaced_where_nobody_else_has(folder):
    path = folder / "lock"
    path.write_bytes(b"first")
    contents, version = path.read_with_version()
    path.replace(b"mine", version)
    with pytest.raises(FileExistsError):
        path.replace(b"yours", version)
    assert (contents, path.read_bytes()) == (b"first", b"mine")
    path.unlink()
    with pytest.raises(FileExistsError):
        path.replace(b"yours", version)
    assert not path.exists()


def test_large_files_are_put_together_without_holding_them(folder, monkeypatch):
    monkeypatch.setattr(parts_utilities, "_IN_MEMORY", 1 << 20)
    path = folder / "large"
    path.write_bytes(b"a" * (7 << 20))
    file = PartsFile(path)
    file.append(b"b" * (2 << 20))
    file.join()
    assert path.read_bytes() == b"a" * (7 << 20) + b"b" * (2 << 20)


def refuse(holder):
    raise PermissionError(holder)


def test_a_lease_that_is_watched_has_been_renewed_meanwhile():
    assert 3 * lease_utilities.RENEW <= lease_utilities.WATCH


def test_one_lease_at_a_time(folder):
    with hold_lease(folder / "lock", on_held=refuse, renew=0.05) as lost:
        with (
            pytest.raises(PermissionError, match=f"process {os.getpid()} on {socket.gethostname()}"),
            hold_lease(folder / "lock", on_held=refuse, watch=2),
        ):
            pass
        assert not lost()
    assert not (folder / "lock").exists()


def test_the_lease_of_a_dead_process_is_taken_over_at_once(folder):
    (folder / "lock").write_bytes(b'{"token": "x", "process": 999999999, "host": "%s"}' % socket.gethostname().encode())
    began = time.monotonic()
    with hold_lease(folder / "lock", on_held=refuse):
        assert time.monotonic() - began < 10


def test_a_process_of_another_machine_is_watched_whatever_runs_here(folder):
    left = b'{"token": "x", "process": 999999999, "host": "elsewhere", "count": %d}'
    (folder / "lock").write_bytes(left % 0)
    threading.Timer(0.3, (folder / "lock").write_bytes, [left % 1]).start()  # it lives
    with (
        pytest.raises(PermissionError, match="process 999999999 on elsewhere"),
        hold_lease(folder / "lock", on_held=refuse, watch=20),
    ):
        pytest.fail("both hold it")


@pytest.mark.parametrize("left", [b'{"token": "x", "process": 1, "host": "elsewhere"}', b"no lease"])
def test_a_lease_that_nobody_renews_is_taken_over(folder, left):
    (folder / "lock").write_bytes(left)
    with hold_lease(folder / "lock", on_held=refuse, watch=0.2):
        assert b"token" in (folder / "lock").read_bytes()


def test_of_two_runs_that_find_a_lease_dead_one_takes_it_over(folder, monkeypatch):
    (folder / "lock").write_bytes(b'{"token": "x", "process": 1, "host": "elsewhere"}')
    changes = lease_utilities._changes

    def the_other_is_quicker(*_):
        monkeypatch.setattr(lease_utilities, "_changes", changes)
        others.enter_context(hold_lease(folder / "lock", on_held=refuse, renew=0.05, watch=0.2))
        return False

    monkeypatch.setattr(lease_utilities, "_changes", the_other_is_quicker)
    with (
        contextlib.ExitStack() as others,
        pytest.raises(PermissionError),
        hold_lease(folder / "lock", on_held=refuse, watch=2),
    ):
        pytest.fail("both hold it")


def test_a_lease_that_is_given_back_meanwhile_is_taken(folder):
    (folder / "lock").write_bytes(b'{"token": "x", "process": 1, "host": "elsewhere"}')
    threading.Timer(0.3, (folder / "lock").unlink).start()
    with hold_lease(folder / "lock", on_held=refuse, watch=20):
        assert b'"elsewhere"' not in (folder / "lock").read_bytes()


def test_who_has_lost_its_lease_learns_of_it_and_leaves_the_other_s_alone(folder):
    with hold_lease(folder / "lock", on_held=refuse, renew=0.05) as lost:
        (folder / "lock").write_bytes(b'{"token": "another"}')
        until = time.monotonic() + 10
        while not lost() and time.monotonic() < until:
            (folder / "lock").write_bytes(b'{"token": "another"}')  # a renewal may have crossed it
            time.sleep(0.02)
        assert lost()
    assert (folder / "lock").read_bytes() == b'{"token": "another"}'


def refuse_objects(number):
    def create(*_):
        raise OSError(number, "refused")

    return create


def test_a_store_without_locks_is_written_without_one(folder, monkeypatch, caplog):
    monkeypatch.setattr(RemotePath, "create", refuse_objects(errno.ENOTSUP))
    with hold_lease(folder / "lock", on_held=refuse):
        assert "can't be locked in this store; let no other run write to it" in caplog.text


def test_a_store_that_refuses_to_be_written_is_no_store_without_locks(folder, monkeypatch):
    monkeypatch.setattr(RemotePath, "create", refuse_objects(errno.EACCES))
    with pytest.raises(OSError, match="refused"), hold_lease(folder / "lock", on_held=refuse):
        pytest.fail("goes on without a lock")


def test_who_finds_its_lease_gone_has_lost_it(folder):
    with hold_lease(folder / "lock", on_held=refuse, renew=0.05) as lost:
        until = time.monotonic() + 10
        while not lost() and time.monotonic() < until:
            (folder / "lock").unlink(missing_ok=True)  # a renewal may have crossed it
            time.sleep(0.02)
        assert lost()


def test_a_listing_that_is_denied_says_so():
    said = "Generic S3 error: Error performing list request: Server returned non-2xx status code: 403 Forbidden: <Code>"
    error = storage_utilities._to_os_error(said, "s3://bucket/connect")
    assert isinstance(error, PermissionError)
    assert error.strerror == "access denied; are the credentials right?"
