"""The benchmark of speed runs and adds up; what it measures is no matter for a test."""

import json
import subprocess
import sys

import pytest

from benchmarks.throughput import derive, save_photos
from config_utilities import PROGRAM_DIR


def test_the_benchmark_runs_from_end_to_end():
    command = [sys.executable, "-m", "benchmarks.throughput", "--models", "micro", "--photos", "9", "--scripts", "2"]
    process = subprocess.run([*command, "--json"], cwd=PROGRAM_DIR, capture_output=True, text=True, check=True)
    result = json.loads(process.stdout)
    assert result["program"]["photos"] == 9
    stages = result["program"]["stages"]
    assert {"decode", "encoder", "decoder", "mask", "CLIP", "PNG", "prompts", "all photos"} <= set(stages)
    assert stages["all photos"] == pytest.approx(
        result["waiting"] + stages["encoder"] + stages["decoder"] + stages["CLIP"], rel=1e-6
    )
    assert result["peak"]["bf16"] > 0
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert 0 < result["start"]["help"] < result["start"]["first_photo"]


def test_ratios_are_those_of_the_figures():
    result = {
        "precision": {"encoder": "bf16", "CLIP": "fp32"},
        "peak": {"bf16": 100.0, "fp32": 100.0},
        "flops": {"encoder": 150, "CLIP": 50},
        "scripts": {"documents": 90.0, "careful": 12.0},
        "program": {"stages": {"all photos": 4.4, "encoder": 3.0, "decoder": 0.5, "CLIP": 0.5}},
    }
    derived = derive(result)
    assert derived["waiting"] == pytest.approx(0.4)
    assert derived["ratios"] == pytest.approx(
        {
            "documents / program": 90 / 4.4,
            "careful script / program": 12 / 4.4,
            "program / its models": 1.1,
            "SAM 2's image encoder / its bound": 2.0,
            "CLIP's image tower / its bound": 1.0,
            "documents / both encoders at the peak": 45.0,
            "careful script / both encoders at the peak": 6.0,
        }
    )


def test_photos_take_their_sizes_in_turn(tmp_path):
    from PIL import Image

    paths = save_photos(tmp_path / "photos", [(40, 30), (64, 48)], 35, tmp_path / "scenes")
    assert [Image.open(path).size for path in paths[:4]] == [(40, 30), (64, 48), (40, 30), (64, 48)]
    assert paths[34].read_bytes() == paths[2].read_bytes()  # 16 scenes per size, then copies
