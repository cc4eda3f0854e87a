"""Whole runs over photos in an object store, into one: what they leave is what runs on a disk leave."""

import functools
import os
import re
import signal
import urllib.parse
import urllib.request

import pytest

import folder_utilities
import lease_utilities
import main
import storage_utilities
from conftest import save_photo, save_photos
from object_store import ENVIRONMENT, download, free_port, place, serve_s3, upload
from output_utilities import OutputFolder
from program import differing, results, rows, start
from prompt_utilities import Label
from record_utilities import iterate_lines, iterate_records, photo_record


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """The log of an S3 server that the program finds by its environment."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with serve_s3(log) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        storage_utilities._store.cache_clear()
        yield log
    storage_utilities._store.cache_clear()


@pytest.fixture
def url(requests, request):
    """A folder of this test's own in the bucket."""
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def damaged(photos):
    (photos / "berlin" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return photos


def test_photos_and_output_may_be_urls(run, damaged, tmp_path, url):
    assert run()[0] == 1
    code, out, err = run("--debug", dataset=upload(damaged, f"{url}/photos"), output=f"{url}/out")
    assert code == 1
    assert err == ""
    assert "6 photos written, 1 failed, 1 other file skipped" in out
    assert f"{url}/out-report/index.html" in out
    assert differing(results(download(f"{url}/out", tmp_path / "copy")), results(tmp_path / "out")) == []
    report = {path.name for path in place(f"{url}/out-report").walk()}
    assert {"index.html", "report.js", "index.js", "rows-0000.js"} <= report
    assert sum(name.endswith(".webp") for name in report) == 6
    assert len(list(place(f"{url}/out-debug").walk())) == 6


def test_a_run_into_a_store_goes_on_and_tries_failures_again(run, damaged, tmp_path, url):
    run()
    assert run("--limit", "3", output=url)[0] == 0
    code, out, _ = run(output=url)
    assert code == 1
    assert "going on after 3 photos done earlier" in out
    assert differing(results(download(url, tmp_path / "copy")), results(tmp_path / "out")) == []


def test_overwriting_without_a_report_leaves_no_thumbnails_of_other_photos(run, photos, url):
    run(output=url)
    thumbnails = place(f"{url}-report/thumbnails")
    assert len(list(thumbnails.walk())) == 12
    assert run("--overwrite", "--no-report", output=url)[0] == 0
    assert not list(thumbnails.walk())


def test_overwriting_deletes_what_was_there_and_other_settings_are_refused(run, photos, tmp_path, url):
    run(output=url)
    code, _, err = run("--background", "#102030", output=url)
    assert code == 2
    assert "was made with other settings: background was" in err
    (photos / "a.png").unlink()
    assert run("--overwrite", output=url)[0] == 0
    run()
    assert differing(results(download(url, tmp_path / "copy")), results(tmp_path / "out")) == []


def test_a_photo_whose_cut_out_would_have_too_long_a_name_is_a_failure(run, photos, url):
    dataset = place(upload(photos, f"{url}/p"))
    folders = (f"{'x' * 99}/" * 10)[: 1018 - len(str(dataset.key))]
    (dataset / f"{folders}a.jpg").write_bytes((photos / "car.jpg").read_bytes())
    code, out, _ = run(dataset=str(dataset), output=f"{url}/out")
    assert code == 1
    assert "6 photos written, 1 failed" in out
    [failure] = iterate_lines(place(f"{url}/out") / "failures.jsonl", {})
    assert failure["reason"] == "can't be written: File name too long"


@pytest.mark.parametrize("name", ["a//b.jpg", "a/./b.jpg", "a/../b.jpg"], ids=["slash", "dot", "dots"])
def test_a_folder_with_an_object_that_no_path_leads_to_is_a_failure_and_the_run_goes_on(run, photos, url, name):
    upload(photos, f"{url}/p")
    key = urllib.parse.quote(f"{url.removeprefix('s3://bucket/')}/p/{name}")
    address = f"{os.environ['AWS_ENDPOINT_URL']}/bucket/{key}"
    urllib.request.urlopen(urllib.request.Request(address, b"x", method="PUT"), timeout=50).close()
    code, out, err = run(dataset=f"{url}/p", output=f"{url}/out")
    assert code == 1, err
    assert "6 photos written, 1 failed" in out
    [failure] = iterate_lines(place(f"{url}/out") / "failures.jsonl", {})
    assert failure["source"] == "a"
    assert failure["reason"].startswith("can't be listed: holds an object with a name that can't be read, ")
    assert failure["reason"].endswith(f"/p/{name.removesuffix('b.jpg')}; rename it")


def test_what_is_doubtful_goes_to_a_review_folder_beside_it(run, tmp_path, url):
    run("--min-margin", "1")
    assert run("--min-margin", "1", output=url)[0] == 0
    assert differing(results(download(f"{url}-review", tmp_path / "copy")), results(tmp_path / "out-review")) == []
    assert not [path for path in place(url).walk() if path.suffix == ".png"]


def test_photos_in_a_store_are_exported_where_they_need_not_be_copied(run, photos, tmp_path, url):
    dataset = upload(photos, f"{url}/photos")
    code, out, _ = run("--no-report", "--export", "coco", dataset=dataset)
    assert (code, "coco 6" in out) == (0, True)
    assert "is no disk" in run("--report-only", "--export", "yolo", dataset=dataset)[2]
    code, out, _ = run("--report-only", "--no-report", "--export", "yolo")  # from a copy
    assert (code, "yolo 6" in out) == (0, True)


def test_cut_outs_in_other_folders_of_the_dataset_are_no_photos(run, photos, url):
    dataset = upload(photos, url)
    for _ in range(2):
        _, out, _ = run(output=f"{url}/out", dataset=dataset)
        assert "(7 files)" in out


def test_a_dry_run_writes_nothing(run, photos, url):
    code, out, _ = run("--dry-run", dataset=upload(photos, f"{url}/photos"), output=f"{url}/out")
    assert code == 0
    assert f"{url}/out/<item>/berlin/c.png" in " ".join(out.split())
    assert not place(f"{url}/out").is_dir()


def test_a_dry_run_counts_what_is_done(run, url):
    run("--limit", "2", output=url)
    assert "2 photos of an earlier run, which stay" in run("--dry-run", output=url)[1]


def test_one_run_at_a_time(run, url, monkeypatch):
    quick = functools.partial(lease_utilities.hold_lease, watch=2)
    monkeypatch.setattr(folder_utilities, "hold_lease", quick)
    with lease_utilities.hold_lease(place(url) / ".lock", on_held=lambda _: None, renew=0.1):
        code, _, err = run(output=url)
    assert code == 2
    assert f"--output {url}: process {os.getpid()} on " in err
    assert "is writing to it; wait for its end" in err
    assert run(output=url)[0] == 0
    assert not (place(url) / ".lock").exists()


def test_a_foreign_folder_is_refused(run, url):
    (place(url) / "thesis.doc").write_bytes(b"years of work")
    code, _, err = run(output=url)
    assert code == 2
    assert "holds files that are not of a sam2vit run, such as 'thesis.doc'" in err


def test_an_output_around_the_photos_is_refused(run, photos, url):
    code, _, err = run(dataset=upload(photos, f"{url}/out/photos"), output=f"{url}/out")
    assert code == 2
    assert f"contains the dataset {url}/out/photos" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-i", "s3://nobucket/photos"], "s3://nobucket/photos: no such bucket"),
        (["-o", "s3://nobucket/out"], "--output s3://nobucket/out: can't be written: no such bucket"),
        (["-o", "s3://bucket/out", "--relabel"], "need it on a disk; copy it to one first"),
        (["-o", "s3://bucket/out", "--export", "coco"], "need it on a disk; copy it to one first"),
        (
            ["-o", "s3://KEY:SECRET@bucket/out", "--export", "coco"],
            "--output s3://...: what comes before the first slash",
        ),
        (["-o", "ftp://somewhere/out"], "--output ftp://somewhere/out: no place that is known"),
    ],
    ids=["no bucket to read", "no bucket to write", "relabel", "export", "secret", "scheme"],
)
def test_what_can_not_be_done_is_one_line(requests, models, photos, capsys, flags, words):
    code = main.main(["-i", str(photos), *models, *flags])
    err = capsys.readouterr().err
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line(requests, run, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    storage_utilities._store.cache_clear()
    code, _, err = run(dataset="s3://bucket/photos")
    storage_utilities._store.cache_clear()
    assert code == 2
    assert re.search(r"s3://bucket/photos: http://127.0.0.1:\d+ does not answer", err)


def test_a_file_url_is_a_path(run, photos, tmp_path):
    (tmp_path / "with blank").mkdir()
    run()
    assert run(dataset=photos.as_uri(), output=(tmp_path / "with blank" / "out").as_uri())[0] == 0
    assert differing(results(tmp_path / "with blank" / "out"), results(tmp_path / "out")) == []


def test_a_photo_costs_one_request_to_read_and_three_to_write(run, requests, tmp_path, url):
    def count(pattern):
        return len(re.findall(pattern, requests.read_text(encoding="utf-8")))

    save_photo(tmp_path / "more" / "a.jpg")
    few = upload(tmp_path / "more", f"{url}/few")
    for seed in range(20):
        save_photo(tmp_path / "more" / f"{seed}.jpg", seed=seed)
    many = upload(tmp_path / "more", f"{url}/many")
    counts = []
    for number, dataset in enumerate((few, many)):
        before = count("GET /"), count("PUT /")
        assert run("--quiet", dataset=dataset, output=f"{url}/{number}")[0] == 0
        counts.append((count("GET /") - before[0], count("PUT /") - before[1]))
    reads, writes = (after - before for before, after in zip(*counts, strict=True))
    assert writes == 20 * 3  # the PNG, and two thumbnails
    assert reads == 20 * 2  # the photo, and for the page the mask in the PNG's head


def test_after_deaths_what_is_recorded_stays_and_what_is_not_goes(requests, url):
    with OutputFolder(place(url), {}, items=["red"]) as output:
        for name in ("a", "left"):
            (place(url) / f"red/{name}.png").write_bytes(b"")
        label = Label("red", "a red car", 0.9, 0.9, None, 0.9, (("red", 0.9),))
        row = photo_record(label, None, None, (4, 6, 3), seconds=1.0)
        output.record({"file_name": "red/a.png", "source": "a.jpg", **row}, None)
        output.clear_after_deaths()
    assert [path.name for path in (place(url) / "red").walk()] == ["a.png"]
    assert [row["source"] for row in iterate_records([place(url)])] == ["a.jpg"]


def test_a_killed_run_loses_nothing(requests, models, tmp_path, url):
    dataset = save_photos(tmp_path / "many", 60)
    flags = [*models, "-i", dataset, "--batch-size", "2"]
    assert main.main([*map(str, flags), "-o", str(tmp_path / "undisturbed"), "--quiet"]) == 0
    process = start(*flags, "-o", url)
    while sum(path.suffix == ".png" for path in place(url).walk()) < 20:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out, err = start(*flags, "-o", url).communicate(timeout=100)
    assert "0 failed" in out, err
    assert differing(results(download(url, tmp_path / "copy")), results(tmp_path / "undisturbed")) == []
    assert len(rows(tmp_path / "copy" / "metadata.jsonl")) == 60
    assert not list((place(url) / ".records").walk())
