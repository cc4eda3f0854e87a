"""A step that raises over one photo: the run neither hangs nor ends, and the other photos are as ever."""

import threading

import pytest

import clip_utilities
import flow_utilities
import main
import picture_utilities
import writer_utilities
from errors import DeviceError
from program import contents, results, rows

ODD = (104, 64)  # the size of B.JPG, by which each step can tell it from the others


def raise_over_the_odd_one(function, find_shape):
    """Wraps a step; it raises where one of its photos is the odd one."""

    def step(*arguments, **options):
        if any(shape[:2] == (ODD[1], ODD[0]) for shape in find_shape(*arguments, **options)):
            raise RuntimeError("out of luck\nand more lines")
        return function(*arguments, **options)

    return step


STEPS = {
    "decoding": (flow_utilities, "to_pixels", lambda image, *_: [image.shape], "model"),
    "SAM 2": (flow_utilities, "predict_sam2", lambda images, *_, **__: [image.shape for image in images], "model"),
    "cutting": (flow_utilities, "subject_mask", lambda image, *_, **__: [image.shape], "model"),
    "CLIP's pixels": (clip_utilities.ClipModel, "to_pixels", lambda _, image: [image.shape], "model"),
    "PNG": (writer_utilities, "encode_png", lambda image, _: [image.shape], "write"),
}


@pytest.mark.parametrize(("module", "name", "find_shape", "stage"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_whatever_a_step_raises_is_the_reason_of_one_photo(
    run, tmp_path, monkeypatch, module, name, find_shape, stage, batch_size
):
    run(output=tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, raise_over_the_odd_one(getattr(module, name), find_shape))
        code, out, _ = run("--batch-size", batch_size)
    assert code == 1
    assert "5 photos written, 1 failed" in out
    assert rows(tmp_path / "out" / "failures.jsonl") == [
        {"source": "B.JPG", "reason": "RuntimeError: out of luck", "stage": stage}
    ]
    assert run("--batch-size", batch_size)[0] == 0
    assert set(contents(tmp_path / "out")) == set(contents(tmp_path / "undisturbed"))
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 6


def test_where_every_photo_fails_the_run_ends(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr(flow_utilities, "predict_sam2", refuse)
    assert run()[0] == 1
    assert {row["reason"] for row in rows(tmp_path / "out" / "failures.jsonl")} == {"MemoryError"}
    assert len(rows(tmp_path / "out" / "failures.jsonl")) == 6


def test_a_gpu_that_is_lost_stops_the_run_instead_of_failing_each_photo(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: unspecified launch failure")

    def check(device):
        raise DeviceError(f"{device}: no longer answers")

    monkeypatch.setattr(flow_utilities, "predict_sam2", refuse)
    monkeypatch.setattr("device_utilities.check_device", check)
    code, _, err = run()
    assert (code, err.count("\n")) == (2, 1)
    assert "no longer answers" in err
    assert rows(tmp_path / "out" / "failures.jsonl") == []


def test_an_inspection_picture_that_can_not_be_drawn_costs_no_cut_out(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no picture")

    monkeypatch.setattr(picture_utilities, "draw_inspection", refuse)
    code, out, _ = run("--debug")
    assert code == 0
    assert "B.JPG: no inspection picture: ValueError: no picture" in out
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 6


def test_no_thread_is_left_when_a_run_ends(run, monkeypatch):
    before = threading.active_count()
    run()
    monkeypatch.setattr(main, "write_photo", lambda *_: (_ for _ in ()).throw(KeyError("a bug")))
    with pytest.raises(KeyError, match="a bug"):
        run("--overwrite")
    assert threading.active_count() == before


def test_photos_that_are_too_large_to_wait_together_pass_two_by_two(
    many_photos, run, tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setattr("device_utilities.select_pixels_at_once", lambda: 300_000)  # two of them
    assert run(dataset=many_photos)[0] == 0
    assert results(tmp_path / "out") == undisturbed
