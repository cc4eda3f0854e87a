"""Objects by the verbs of pathlib, files that grow in parts, and leases; against an S3 server on this machine."""

import contextlib
import errno
import io
import itertools
import json
import os
import pickle
import re
import socket
import struct
import sys
import threading
import time
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest

import lease_utilities
import parts_utilities
import storage_utilities
from errors import ConfigError, OutputError
from feature_utilities import FEATURES, FeatureFile, read_features
from lease_utilities import guard_lease, hold_lease
from object_store import ENVIRONMENT, free_port, serve_answers, serve_s3
from output_utilities import OutputFolder
from parts_utilities import PartsFile, parts_of, read_whole
from record_utilities import iterate_lines, replace_file, to_line
from storage_utilities import Entry, RemotePath, TooLongError, fence, is_url, to_place


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
    "s3://bucket/a/../b": "holds a part that is empty or only dots; leave it out",
    "s3://bucket/./b": "holds a part that is empty or only dots; leave it out",
    "s3://bucket//out": "holds a part that is empty or only dots; leave it out",
    "s3://bucket/out//": "holds a part that is empty or only dots; leave it out",
}


@pytest.mark.parametrize(("url", "problem"), REFUSED.items(), ids=REFUSED)
def test_urls_that_name_no_folder_are_refused(url, problem):
    with pytest.raises(ConfigError, match=f"^--output {url}: {problem}"):
        to_place(url, flag="--output")


@pytest.mark.parametrize(
    "url",
    [
        *("s3://KEY:SECRET@bucket/x", "s3://KEY:SEC/RET@bucket/x", "s3://KEY@bucket", "ftp://KEY:SEC/RET@server/x"),
        *("s3://bucket:80/x", "s3://bucket?x", "s3://bucket#x", "az://a b/x"),
    ],
)
def test_a_url_that_holds_more_than_a_bucket_is_refused_without_its_secret(url):
    with pytest.raises(ConfigError, match=r"^--output (s3|az|ftp)://[^\n]*; (write|use a path)") as caught:
        to_place(url, flag="--output")
    assert not re.search("KEY|SEC|RET", str(caught.value))


@pytest.mark.parametrize(
    "address", ["name:secret@localhost:9000", "localhost", "http://", "http:///x", "http://a b", "http://a:65536"]
)
def test_an_address_of_a_server_that_is_none_is_refused(monkeypatch, address):
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(
        ConfigError, match=r"^AWS_ENDPOINT_URL: is no address of a server; write https://HOST"
    ) as caught:
        to_place("s3://bucket/x", flag="--output")
    assert "secret" not in str(caught.value)
    assert to_place("gs://bucket/x", flag="--output").name == "x"


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


def test_a_name_that_is_too_long_for_a_store_is_that_of_a_file_too_long_for_a_disk(folder):
    path = folder / ("x" * (1023 - len(str(folder.key))))
    path.write_bytes(b"")
    longer = path.with_name(f"{path.name}x")
    for use in (longer.write_bytes, longer.create, lambda data: longer.replace(data, {})):
        with pytest.raises(OSError, match="File name too long") as caught:
            use(b"")
        assert caught.value.errno == errno.ENAMETOOLONG


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
        storage_utilities._AWAY.clear()

    yield change
    storage_utilities._store.cache_clear()


def test_a_server_that_is_not_there_is_named(bucket, another_server):
    address = f"http://127.0.0.1:{free_port()}"
    another_server(AWS_ENDPOINT_URL=address)
    with pytest.raises(ConnectionError) as caught:
        (bucket / "a").read_bytes()
    assert caught.value.strerror == f"{address} does not answer"


def test_a_run_outlasts_a_store_that_is_throttled(bucket, another_server):
    with serve_answers((404, ""), *[(503, "<Error><Code>SlowDown</Code></Error>")] * 6, (200, "x")) as address:
        another_server(AWS_ENDPOINT_URL=address)
        assert (bucket / "a").read_bytes() == b"x"


def test_a_store_that_stays_away_is_waited_for_once(bucket, another_server, monkeypatch):
    monkeypatch.setitem(storage_utilities._PATIENT, "max_retries", 2)
    monkeypatch.setitem(storage_utilities._IMPATIENT, "max_retries", 0)
    away = (503, "")
    answers = [(404, ""), *[away] * 3, away, (200, "back"), *[away] * 2, (200, "still")]
    with serve_answers(*answers) as address:
        another_server(AWS_ENDPOINT_URL=address)
        for _ in range(2):
            with pytest.raises(OSError, match="503"):
                (bucket / "a").read_bytes()
        assert [(bucket / "a").read_bytes() for _ in range(2)] == [b"back", b"still"]


def body(code):
    return (
        f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>What is wrong.</Message><HostId>x</HostId></Error>"
    )


ANSWERS = {
    "bad request": (400, body("BadDigest"), "400 Bad Request: BadDigest: What is wrong."),
    "no XML": (400, "<html>nginx</html>", "400 Bad Request: <html>nginx</html>"),
    "denied": (403, body("AccessDenied"), "access denied; are the credentials right?"),
    "signature": (403, body("SignatureDoesNotMatch"), "access denied (SignatureDoesNotMatch); are the credentials"),
    "no XML, denied": (403, "", "access denied; are the credentials right?"),
    "clock": (403, body("RequestTimeTooSkewed"), "RequestTimeTooSkewed: this machine's clock is wrong; set it"),
    "expired": (400, body("ExpiredToken"), "ExpiredToken: the credentials have expired; renew AWS_SESSION_TOKEN"),
    "region": (301, body("PermanentRedirect"), "PermanentRedirect: the bucket is in another region; set AWS_REGION"),
    "other region": (400, body("AuthorizationHeaderMalformed"), "the bucket is in another region; set AWS_REGION"),
}


@pytest.mark.parametrize(("status", "text", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_what_a_store_answers_is_told_without_what_it_was_asked(bucket, another_server, status, text, reason):
    folder = bucket / "photos of the credentials" / ("x" * 200)
    with serve_answers((404, ""), (status, text)) as address:
        another_server(AWS_ENDPOINT_URL=address)
        for use in (folder.read_bytes, folder.scan, lambda: folder.write_bytes(b"")):
            with pytest.raises(OSError, match=r"\w") as caught:
                use()
            assert reason in caught.value.strerror
            assert "xxx" not in caught.value.strerror


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (403, body("AccessDenied")),
        (200, "<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message/></Error></DeleteResult>"),
    ],
    ids=["all", "one"],
)
def test_where_deleting_is_denied_that_is_said(bucket, another_server, status, text):
    with serve_answers((404, ""), (status, text)) as address:
        another_server(AWS_ENDPOINT_URL=address)
        with pytest.raises(PermissionError, match="deleting is denied"):
            (bucket / "a").unlink()


def test_a_server_s_address_is_told_without_its_password(bucket, another_server):
    another_server(AWS_ENDPOINT_URL=f"http://name:secret@127.0.0.1:{(port := free_port())}")
    with pytest.raises(ConnectionError) as caught:
        (bucket / "a").read_bytes()
    assert caught.value.strerror == f"http://127.0.0.1:{port} does not answer"


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


def test_the_longer_a_run_lasts_the_more_its_parts_hold(folder, monkeypatch):
    seconds = itertools.count(step=7)  # a photo
    monkeypatch.setattr(parts_utilities, "time", SimpleNamespace(monotonic=lambda: next(seconds), time_ns=time.time_ns))
    file = PartsFile(folder / "metadata.jsonl")
    for _ in range(100):
        file.append(b"x")
    lengths = [len(part.read_bytes()) for part in parts_of(folder / "metadata.jsonl")]
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert lengths[-1] > 2


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
    assert [row["source"] for row in iterate_lines(path, {"source": str}) if row] == ["a", "b"]


FEATURES_OF_FIVE = struct.pack("<8sII", b"sam2vit1", 5, 0) + bytes(16 + 2 * 5)


def kill(*_):
    raise KeyboardInterrupt


def test_features_keep_their_places_where_a_run_is_killed_after_it_has_joined_them(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(parts_utilities, "_SECONDS", 0)
    sources = [f"{number}.jpg" for number in range(6)]
    for some in (sources[:3], sources[3:5], sources[5:]):
        file = FeatureFile(folder)
        for source in some:
            file.append(source, np.full(4, int(source[0]), np.float32))
        with contextlib.suppress(KeyboardInterrupt), monkeypatch.context() as patch:
            patch.setattr(parts_utilities, "drop_parts", kill)
            file.sync()
    (tmp_path / FEATURES).write_bytes(read_whole(folder / FEATURES))
    features, indices = read_features(tmp_path, sources, 4)
    assert len(features) == 6
    assert features[indices, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_recorded_has_its_features_whenever_a_run_is_killed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(parts_utilities, "_BYTES", 100)  # a record is longer, its features are not
    output = OutputFolder(folder, {}, items=["red"])
    row = {
        "source": "a.jpg",
        "label": "red",
        "model_label": "red",
        "item_probability": 0.9,
        "flags": [],
        "size": [1] * 50,
    }
    output.record(row, np.ones(4))
    assert [each["source"] for each in iterate_lines(folder / "metadata.jsonl", {"source": str}) if each] == ["a.jpg"]
    (tmp_path / FEATURES).write_bytes(read_whole(folder / FEATURES))
    features, indices = read_features(tmp_path, ["a.jpg"], 4)
    assert features[indices].tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("left", [b"", b"something else entirely, and long", FEATURES_OF_FIVE])
def test_features_of_another_kind_give_way(folder, tmp_path, monkeypatch, left):
    monkeypatch.setattr(parts_utilities, "_SECONDS", 0)
    PartsFile(folder / FEATURES).append(left)
    file = FeatureFile(folder)
    file.append("a.jpg", np.ones(4, np.float32))
    file.sync()
    (tmp_path / FEATURES).write_bytes((folder / FEATURES).read_bytes())
    features, indices = read_features(tmp_path, ["a.jpg"], 4)
    assert features[indices].tolist() == [[1, 1, 1, 1]]


def test_a_file_is_replaced_only_once_its_parts_are_gone(folder, monkeypatch):
    monkeypatch.setattr(parts_utilities, "_SECONDS", 0)
    path = folder / "metadata.jsonl"
    PartsFile(path).append(b"old")
    with contextlib.suppress(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(parts_utilities, "drop_parts", kill)
        replace_file(path, b"new")
    assert read_whole(path) == b"old"
    replace_file(path, b"new")
    assert read_whole(path) == b"new"


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
    with hold_lease(folder / "lock", on_held=refuse, renew=0.05) as hold:
        with (
            pytest.raises(PermissionError, match=f"process {os.getpid()} on {socket.gethostname()}"),
            hold_lease(folder / "lock", on_held=refuse, watch=2),
        ):
            pass
        assert not hold.is_lost()
    assert not (folder / "lock").exists()


@pytest.mark.parametrize("setting", ["disabled", "etag"])
def test_a_store_that_can_not_tell_who_came_first_is_warned_of_and_locks_nothing(
    bucket, another_server, caplog, setting
):
    with serve_answers((501, body("NotImplemented"))) as address:
        another_server(AWS_ENDPOINT_URL=address, AWS_CONDITIONAL_PUT=setting)
        with hold_lease(bucket / "out" / "lock", on_held=refuse, renew=0) as hold:
            assert not hold.is_lost()
    assert "s3://bucket/out: can't be locked in this store; let no other run write to it" in caplog.text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="has no /proc")
def test_the_lease_of_a_dead_process_is_taken_over_at_once(folder, monkeypatch):
    lease = {"token": "x", "process": 999999999, "machine": lease_utilities._machine()}
    (folder / "lock").write_bytes(json.dumps(lease).encode())
    monkeypatch.setattr(lease_utilities, "_changes", lambda *_: pytest.fail("is watched"))
    with hold_lease(folder / "lock", on_held=refuse):
        pass


@pytest.mark.parametrize("machine", ["another", "", None])
def test_of_another_machine_s_process_nobody_here_knows_whether_it_lives(folder, monkeypatch, machine):
    monkeypatch.setattr(lease_utilities, "_machine", lambda: "this" if machine else "")
    lease = {"token": "x", "process": 999999999, "host": socket.gethostname(), "machine": machine}
    (folder / "lock").write_bytes(json.dumps(lease).encode())
    monkeypatch.setattr(lease_utilities, "_changes", lambda *_: True)
    with pytest.raises(PermissionError, match="process 999999999"), hold_lease(folder / "lock", on_held=refuse):
        pass


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
    with hold_lease(folder / "lock", on_held=refuse, renew=0.05) as hold:
        (folder / "lock").write_bytes(b'{"token": "another"}')
        until = time.monotonic() + 10
        while not hold.is_lost() and time.monotonic() < until:
            (folder / "lock").write_bytes(b'{"token": "another"}')  # a renewal may have crossed it
            time.sleep(0.02)
        assert hold.is_lost()
    assert (folder / "lock").read_bytes() == b'{"token": "another"}'


def test_who_ends_before_it_learns_that_its_lease_is_lost_leaves_the_other_s_alone(folder):
    with hold_lease(folder / "lock", on_held=refuse, renew=1000):
        (folder / "lock").write_bytes(b'{"token": "another"}')
    assert (folder / "lock").read_bytes() == b'{"token": "another"}'


def test_after_a_sleep_a_run_looks_for_its_lease_before_it_writes(folder, monkeypatch):
    beside = folder.with_name(f"{folder.name}-review") / "metadata.jsonl"
    (folder / "a").write_bytes(b"theirs")
    with hold_lease(folder / "lock", on_held=refuse, renew=1000) as hold:
        (folder / "lock").write_bytes(b'{"token": "another"}')
        later = time.time() + 5000
        monkeypatch.setattr(lease_utilities.time, "time", lambda: later)
        for use in ((folder / "a").unlink, lambda: (folder / "a").write_bytes(b""), lambda: beside.write_bytes(b"")):
            with pytest.raises(OSError, match="another run has taken the output over"):
                use()
        assert hold.is_lost()
    assert (folder / "a").read_bytes() == b"theirs"
    assert not beside.exists()
    (folder / "a").write_bytes(b"mine")


def test_a_run_without_its_lease_records_nothing_any_more(folder):
    lost = threading.Event()
    with fence(folder / ".lock", lost.is_set):
        output = OutputFolder(folder, {}, items=["red"])
        before = {path: path.read_bytes() for path in folder.walk()}
        row = {"source": "a.jpg", "label": "red", "model_label": "red", "item_probability": 0.9, "flags": []}
        output.record(row, np.zeros(4))
        output.fail("b.jpg", "is broken", stage="decode")
        lost.set()
        with pytest.raises(OutputError, match="another run has taken the output over"), output:
            pass
    assert {path: path.read_bytes() for path in folder.walk()} == before


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
    with hold_lease(folder / "lock", on_held=refuse, renew=0.05) as hold:
        until = time.monotonic() + 10
        while not hold.is_lost() and time.monotonic() < until:
            (folder / "lock").unlink(missing_ok=True)  # a renewal may have crossed it
            time.sleep(0.02)
        assert hold.is_lost()


def test_another_process_of_a_run_writes_no_more_once_the_lease_is_lost(folder):
    with hold_lease(folder / "lock", on_held=refuse, renew=1000) as hold, pickle.loads(pickle.dumps(hold.guard))():
        (folder / "a").write_bytes(b"mine")
        (folder / "lock").write_bytes(b'{"token": "another"}')
        assert not hold.is_lost()  # it has not looked yet
        for use in ((folder / "a").unlink, lambda: (folder / "b").write_bytes(b""), (folder / "").delete_below):
            with pytest.raises(OSError, match="another run has taken the output over"):
                use()
    assert (folder / "a").read_bytes() == b"mine"


def test_where_the_lease_is_seen_to_be_renewed_a_look_at_times_will_do(folder, monkeypatch):
    looks = []
    read = RemotePath.read_with_version
    monkeypatch.setattr(RemotePath, "read_with_version", lambda path: looks.append(path) or read(path))
    now = SimpleNamespace(seconds=1e9)
    monkeypatch.setattr(lease_utilities, "time", SimpleNamespace(time=lambda: now.seconds))

    def write(*, after, renewed=False):
        """Returns how often a write some seconds later has looked."""
        now.seconds += after
        if renewed:
            (folder / "lock").write_bytes(json.dumps({"token": "x", "time": now.seconds}).encode())
        looks.clear()
        (folder / "a").write_bytes(b"")
        return len(looks)

    (folder / "lock").write_bytes(b'{"token": "x"}')
    with guard_lease(folder / "lock", "x", renew=20):
        assert [write(after=1), write(after=1)] == [1, 1]  # it may have been renewed last long before
        assert [write(after=1, renewed=True), write(after=1), write(after=1)] == [1, 0, 0]
        assert [write(after=20), write(after=10), write(after=10), write(after=1)] == [1, 0, 1, 1]
        assert [write(after=1, renewed=True), write(after=1)] == [1, 0]


def test_all_that_lies_below_a_folder_is_deleted_and_nothing_beside_it(folder):
    for name in ("a/1", "a/b/2", "ab/3"):
        (folder / name).write_bytes(b"")
    (folder / "a").delete_below()
    (folder / "missing").delete_below()
    assert [path.name for path in folder.walk()] == ["3"]
