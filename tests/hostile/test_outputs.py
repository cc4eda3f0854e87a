"""What people open afterwards: nothing that a photo or an item is called acts in it."""

import json

import yaml

from config_utilities import PROGRAM_DIR
from console_utilities import printable
from output_utilities import OutputFolder
from program import rows


def card(tmp_path, *items):
    with OutputFolder(tmp_path / "out", {}, items=items) as output:
        output.counts.update(dict.fromkeys(items, 1))
    return (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_items_are_plain_text_in_the_card(tmp_path):
    text = card(tmp_path, "[free](evil)", "`code`", "_it_ is", "a & b", "rose gold", "off-white")
    assert r"| \[free\](evil) | 1 |" in text
    assert r"| \`code\` | 1 |" in text
    assert r"| \_it\_ is | 1 |" in text
    assert r"| a \& b | 1 |" in text
    assert "| rose gold | 1 |" in text
    assert "| off-white | 1 |" in text


def test_no_item_reaches_the_settings_at_the_head_of_the_card(tmp_path):
    head = card(tmp_path, "--- evil", "configs- x").split("---\n")[1]
    assert set(yaml.safe_load(head)) == {"configs", "task_categories"}


def test_a_run_writes_pictures_json_and_markdown_and_beside_them_one_page_of_html(run, tmp_path):
    run("--debug")
    kinds = {
        folder: {path.suffix or path.name for path in (tmp_path / folder).rglob("*") if path.is_file()}
        for folder in ("out", "out-debug", "out-report")
    }
    assert kinds == {
        "out": {".png", ".jsonl", ".md", ".json", ".image_features"},
        "out-debug": {".jpg"},
        "out-report": {".html", ".css", ".js", ".json", ".jpg", ".webp"},
    }
    # No name stands in the page itself; see tests/test_report_page.py for what the browser makes of the data.
    page = (PROGRAM_DIR / "report_page" / "index.html").read_bytes()
    assert (tmp_path / "out-report" / "index.html").read_bytes() == page


def test_reasons_that_are_no_unicode_are_still_json(tmp_path):
    with OutputFolder(tmp_path / "out", {}, items=("red",)) as output:
        output.fail("a.jpg", "half a pair \ud83d and \x1b[0m", stage="decode")
    [row] = rows(tmp_path / "out" / "failures.jsonl")
    assert row["reason"] == "half a pair ? and \x1b[0m"
    assert "\x1b" not in (tmp_path / "out" / "failures.jsonl").read_text(encoding="utf-8")
    assert printable(row["reason"]) == "half a pair ? and \\x1b[0m"


def test_records_that_nest_too_deeply_are_dropped(tmp_path):
    with OutputFolder(tmp_path / "out", {}, items=("red",)):
        pass
    (tmp_path / "out" / "metadata.jsonl").write_text("[" * 100_000 + "\n")
    with OutputFolder(tmp_path / "out", {}, items=("red",)) as output:
        assert output.done == 0
    (tmp_path / "out" / ".run.json").write_text("[" * 100_000)
    assert json.loads((tmp_path / "out" / "metadata.jsonl").read_text() or "[]") == []
