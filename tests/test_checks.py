"""The benchmark of the checks counts right and runs; what it measures is no matter for a test."""

import json
import sys

import pytest

from benchmarks import checks
from benchmarks.checks import CheckResult, Opinion, measure_check
from conftest import save_photo

# Margins from low to high: right, wrong, right, wrong, right, wrong.
WRONG = [False, True, False, True, False, True]


def opinions(flagged):
    # From high to low, so that the order of the photos is not that of the margins.
    return [Opinion(WRONG[at], at / 10, {"view": at in flagged}, doubts_chance=False) for at in reversed(range(6))]


@pytest.mark.parametrize(
    ("flagged", "caught", "disturbed", "lowest_caught", "both", "both_caught", "lowest_both_caught"),
    [
        pytest.param((), 0, 0, 0, 0, 0, 0, id="nothing"),
        pytest.param((5,), 1, 0, 0, 2, 1, 1, id="what the margin is surest of"),
        pytest.param((0, 1), 1, 1, 1, 2, 1, 1, id="the lowest margins"),
        pytest.param((3, 4, 5), 2, 1, 1, 6, 3, 3, id="the highest margins"),
        pytest.param(range(6), 3, 3, 3, 6, 3, 3, id="everything"),
    ],
)
def test_what_a_check_does_is_counted_beside_the_lowest_margins(
    flagged, caught, disturbed, lowest_caught, both, both_caught, lowest_both_caught
):
    numbers = (caught, disturbed, lowest_caught, both, both_caught, lowest_both_caught)
    assert measure_check("view", opinions(flagged)) == CheckResult("view", 6, 3, *numbers)


def measure(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["checks", *flags])
    checks.main()
    return capsys.readouterr().out


def test_the_benchmark_runs_on_scenes(monkeypatch, capsys):
    result = json.loads(measure(monkeypatch, capsys, "--scenes", "4", "--json"))
    view, colour, either, any_view = result["checks"]
    assert [each["name"] for each in result["checks"]] == ["view", "colour", "either", "any view"]
    assert {each["photos"] for each in result["checks"]} == {4}
    flagged = [each["caught"] + each["disturbed"] for each in (view, colour, either, any_view)]
    assert max(flagged[:2]) <= flagged[2] <= sum(flagged[:2])
    assert flagged[0] <= flagged[3]


def test_the_benchmark_runs_on_folders_of_photos(monkeypatch, capsys, tmp_path):
    save_photo(tmp_path / "grey" / "a.jpg", 160, 120)
    out = measure(monkeypatch, capsys, "--photos", str(tmp_path), "--clip-view", "crop")
    assert ": 1 photos" in out
    assert "Of 1 labels drawn at random" in out
