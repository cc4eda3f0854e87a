import contextlib
import json
import os
import shutil

import pytest

import revision_utilities
from errors import OutputError
from program import rows
from record_utilities import METADATA, REVIEW, Places
from revision_utilities import REVISIONS, earlier_names, finish_revision, read_revisions, revise, to_undo


def row(source, label="red", *flags, **more):
    name = source.replace(".jpg", ".png")
    return {
        "file_name": f"{label}/{name}", "label": label, "source": source, "item_probability": 0.5,
        "model_label": "red", "label_source": "model", "prompt": "a red car", "margin": 0.1, "top_items": [],
        "mask_score": 0.9, "mask_area": 0.3, "width": 4, "height": 4, "flags": list(flags), **more,
    }  # fmt: skip


@pytest.fixture
def places(tmp_path):
    """Two red photos and a blue one."""
    places = Places(tmp_path / "out", tmp_path / "out-review")
    records = [row("a.jpg"), row("sub/b.jpg"), row("c.jpg", "blue")]
    for each in records:
        places.png(each).parent.mkdir(parents=True, exist_ok=True)
        places.png(each).write_text(each["source"])
    (places.output / METADATA).write_text("".join(json.dumps(each) + "\n" for each in records))
    (places.output / ".run.json").write_text("{}")
    return places


def pngs(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.png")}


CHANGES = [
    (row("sub/b.jpg"), row("sub/b.jpg", "blue", label_source="human")),
    (row("c.jpg", "blue"), row("c.jpg", "blue", "wrong", REVIEW)),
]


def assert_made(places):
    assert pngs(places.output) == {"red/a.png": "a.jpg", "blue/sub/b.png": "sub/b.jpg"}
    assert pngs(places.review) == {"blue/c.png": "c.jpg"}
    assert rows(places.output / METADATA) == [row("a.jpg"), CHANGES[0][1]]
    assert rows(places.review / METADATA) == [CHANGES[1][1]]
    assert not (places.output / "red/sub").exists()
    assert json.loads((places.output / ".run.json").read_text()) == {"min_probability": 0.5}
    assert "| blue | 1 |" in (places.review / "README.md").read_text()


def change(places):
    revise(places, CHANGES, by="a test", settings=({}, {"min_probability": 0.5}))


def test_files_and_records_move_together(places):
    change(places)
    assert_made(places)
    [revision] = read_revisions(places)
    assert (revision.number, revision.by, list(revision.changes), revision.done) == (1, "a test", CHANGES, True)
    assert len(revision.changes) == 2


def test_what_was_changed_can_be_undone(places):
    before = pngs(places.output), rows(places.output / METADATA)
    change(places)
    revision = to_undo(places)
    revise(
        places, [(after, row) for row, after in revision.changes], by="undo", settings=revision.settings[::-1],
        undoes=revision.number,
    )  # fmt: skip
    assert pngs(places.output) == before[0]
    assert sorted(rows(places.output / METADATA), key=str) == sorted(before[1], key=str)
    assert (pngs(places.review), rows(places.review / METADATA)) == ({}, [])
    assert json.loads((places.output / ".run.json").read_text()) == {}
    assert to_undo(places) is None


def test_folders_that_are_empty_then_go_with_all_that_held_only_them(places):
    revise(places, [(row(source), row(source, "blue")) for source in ("a.jpg", "sub/b.jpg")], by="a test")
    assert [path.name for path in places.output.iterdir() if path.is_dir()] == ["blue"]


def test_settings_alone_are_a_change(places):
    assert revise(places, [], by="a test", settings=({}, {"strict": True})) == 0
    assert json.loads((places.output / ".run.json").read_text()) == {"strict": True}
    assert to_undo(places).settings == ({}, {"strict": True})


def test_what_is_about_to_be_done_is_on_the_disk_before_it_is_done(places, monkeypatch):
    before, synced = pngs(places.output), []

    def sync(file):
        if os.path.sameopenfile(file, log.fileno()):
            synced.append((pngs(places.output) == before, log.read()))

    monkeypatch.setattr(os, "fsync", sync)
    with (places.output / REVISIONS).open("a+b") as log:
        change(places)
    (first, changes), (last, mark) = synced
    assert (first, changes.count(b'"before"'), b'"done"' in changes) == (True, 2, False)
    assert (last, b'"done"' in mark) == (False, True)


def test_earlier_names_are_known(places):
    change(places)
    assert earlier_names(places, {"red/sub/b.png", "blue/c.png", "red/a.png"}) == {"red/sub/b.png": "sub/b.jpg"}
    assert earlier_names(places, {"red/a.png"}) == {}


@pytest.mark.parametrize("operation", ["replace", "write_records", "write_cards", "write_atomically", "append"])
def test_what_was_interrupted_is_finished(places, monkeypatch, operation):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if operation == "replace":
            patch.setattr("pathlib.Path.replace", stop)
        elif operation == "append":
            append = revision_utilities.AppendedFile.append
            patch.setattr(
                revision_utilities.AppendedFile, "append", lambda *a: stop() if b'"done"' in a[1] else append(*a)
            )
        else:
            patch.setattr(revision_utilities, operation, stop)
        with pytest.raises(KeyboardInterrupt):
            change(places)
    finish_revision(places)
    assert_made(places)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_log_that_a_kill_has_cut_off_is_a_revision_that_never_began(places, share):
    copy = Places(places.output.with_name("copy"), places.review.with_name("copy-review"))
    shutil.copytree(places.output, copy.output)
    change(copy)
    written = (copy.output / REVISIONS).read_bytes().splitlines(keepends=True)
    begun = b"".join(written[:-1])
    (places.output / REVISIONS).write_bytes(begun[: int(share * len(begun))])
    before = pngs(places.output), rows(places.output / METADATA)
    finish_revision(places)
    assert (pngs(places.output), rows(places.output / METADATA)) == before
    assert (places.output / REVISIONS).read_bytes() == b""
    change(places)
    assert_made(places)


def test_a_torn_mark_of_the_end_is_written_anew(places):
    change(places)
    log = places.output / REVISIONS
    log.write_bytes(log.read_bytes()[:-3])
    finish_revision(places)
    assert_made(places)
    assert read_revisions(places)[0].done
    assert log.read_bytes().count(b'"done"') == 1


def test_a_log_that_is_damaged_in_the_middle_is_said_to_be(places):
    change(places)
    revise(places, [(CHANGES[0][1], CHANGES[0][0])], by="again")
    log = places.output / REVISIONS
    log.write_bytes(log.read_bytes().replace(b'"before"', b'"before', 1))
    with pytest.raises(OutputError, match=r"revisions.jsonl: is damaged at line 1; delete it: records stay"):
        read_revisions(places)


HEAD = {"revision": 1, "by": "x", "time": "now", "undoes": None, "settings": None, "changes": 1}
EVIL = row("a.jpg") | {"file_name": "red/../../victim.png"}


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ({}, {"before": EVIL, "after": row("a.jpg", "blue")}),
        ({}, {"before": row("a.jpg"), "after": EVIL}),
        ({}, {"before": row("a.jpg"), "after": row("c.jpg", "blue")}),
        ({}, {"before": row("a.jpg")}),
        ({}, {"before": 1, "after": row("a.jpg")}),
        ({"changes": "1"}, {"before": row("a.jpg"), "after": row("a.jpg", "blue")}),
        ({"settings": [1, {}]}, {"before": row("a.jpg"), "after": row("a.jpg", "blue")}),
        ({"undoes": "x"}, {"before": row("a.jpg"), "after": row("a.jpg", "blue")}),
        ({"by": None}, {"before": row("a.jpg"), "after": row("a.jpg", "blue")}),
    ],
)
@pytest.mark.parametrize("done", [False, True])
def test_a_strangers_log_moves_nothing(places, head, change, done):
    victim = places.output.parent / "victim.png"
    victim.write_text("mine")
    lines = [{**HEAD, **head}, change, *([{"revision": 1, "done": True}, {"revision": 2}] if done else [])]
    (places.output / REVISIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = pngs(places.output.parent)
    for act in (finish_revision, to_undo):
        with contextlib.suppress(OutputError):
            assert act(places) is None
    assert pngs(places.output.parent) == before
    assert victim.read_text() == "mine"


def test_a_log_that_can_not_be_read_is_one_line(places):
    (places.output / REVISIONS).mkdir()
    with pytest.raises(OutputError, match=r"revisions.jsonl: can't be read: Is a directory; mend that"):
        finish_revision(places)
