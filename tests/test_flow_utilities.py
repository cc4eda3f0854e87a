import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from clip_utilities import ClipModel
from conftest import make_image
from errors import PhotoError
from flow_utilities import Flow, Photo, cut_photo
from sam_utilities import Segmentation


class Records:
    """What a flow asks of the output and of the progress."""

    def __init__(self):
        self.failures, self.advanced, self.skipped = [], 0, 0

    def fail(self, source, reason, *, stage):
        self.failures.append((source, reason, stage))

    def advance(self):
        self.advanced += 1


@pytest.fixture
def records():
    return Records()


def make_photos(count):
    return [Photo(SimpleNamespace(source=f"{index}.jpg"), make_image(seed=index)) for index in range(count)]


@pytest.mark.parametrize("overlap", [False, True])
def test_the_last_batch_is_filled_up(records, overlap):
    calls = []

    def model(photos, *, fill):
        calls.append((len(photos), fill))
        return photos

    photos = make_photos(7)
    flow = Flow(records, records, batch_size=3, threads=2, overlap=overlap)
    assert list(flow.in_batches(photos, model)) == photos
    assert calls == [(3, 0), (3, 0), (1, 2)]


def test_on_a_gpu_two_models_work_at_once(records):
    both = threading.Barrier(2, timeout=20)  # broken, and a failure, where one waits for the other to end

    def model(photos, *, fill):
        both.wait()
        return photos

    flow = Flow(records, records, batch_size=2, threads=2, overlap=True)
    photos = make_photos(8)
    # The first has its first two batches alone: so many are taken before one goes on to the second.
    first = itertools.chain([lambda photos, fill: photos] * 2, itertools.repeat(model))
    last = itertools.chain([model] * 2, itertools.repeat(lambda photos, fill: photos))
    segmented = flow.in_batches(photos, lambda photos, fill: next(first)(photos, fill=fill))
    assert list(flow.in_batches(segmented, lambda photos, fill: next(last)(photos, fill=fill))) == photos
    assert records.failures == []


def test_a_stage_may_have_batches_of_its_own_size(records):
    calls = []

    def model(photos, *, fill):
        calls.append((len(photos), fill))
        return photos

    list(Flow(records, records, batch_size=3, threads=2).in_batches(make_photos(3), model, 2))
    assert calls == [(2, 0), (1, 1)]


def test_a_batch_that_does_not_fit_is_halved_with_its_filling_kept(records):
    calls = []

    def model(photos, *, fill):
        calls.append(len(photos) + fill)
        if len(photos) + fill > 4:
            raise MemoryError
        return photos

    photos = make_photos(6)
    assert list(Flow(records, records, batch_size=8, threads=2).in_batches(photos, model)) == photos
    assert calls == [8, 5, 3, 4, 5, 3, 4]
    assert records.failures == []


def test_a_photo_that_a_thread_fails_on_goes_no_further(records):
    def work(photo):
        if photo.file.source == "1.jpg":
            raise ValueError("a bug\nand more lines")
        if photo.file.source == "2.jpg":
            raise PhotoError("nothing in it", stage="segment")
        return photo

    photos = make_photos(4)
    assert list(Flow(records, records, batch_size=1, threads=2).in_threads(photos, work)) == [photos[0], photos[3]]
    assert records.failures == [
        ("1.jpg", "ValueError: a bug", "model"),
        ("2.jpg", "nothing in it", "segment"),
    ]
    assert records.advanced == 2


def test_the_model_is_at_the_next_batch_while_threads_work_on_this_one(records):
    order = []

    def model(photos, *, fill):
        order.append([photo.file.source for photo in photos])
        return photos

    flow = Flow(records, records, batch_size=2, threads=2)
    results = flow.in_threads(flow.in_batches(make_photos(8), model), lambda photo: photo)
    assert next(results).file.source == "0.jpg"
    assert order == [["0.jpg", "1.jpg"], ["2.jpg", "3.jpg"]]
    results.close()
    assert len(order) == 2


@pytest.fixture(scope="module")
def clip_model(clip_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return ClipModel(str(clip_checkpoint), items=["red"], prompts=["a red car"], checkpoints_dir=folder)


def test_clip_sees_the_subject_on_white(clip_model):
    [photo] = make_photos(1)
    logits = np.full((8, 8), -9.0, np.float32)
    logits[2:6, 2:6] = 9.0
    photo.segmentation = Segmentation(logits, 0.9, np.zeros((3, 2), int))
    cut_photo(clip_model, photo, refine=False)
    white = photo.image.copy()
    white[~photo.mask] = 255
    assert 0.2 < photo.mask.mean() < 0.3
    assert photo.clip_pixels.equal(clip_model.to_pixels(white))


def test_a_photo_that_stays_uncut_is_seen_whole(clip_model):
    [photo] = make_photos(1)
    cut_photo(clip_model, photo, refine=False)
    assert photo.mask is None
    assert photo.clip_pixels.equal(clip_model.to_pixels(photo.image))


def test_an_empty_mask_is_no_subject(clip_model):
    [photo] = make_photos(1)
    photo.segmentation = Segmentation(np.full((8, 8), -9.0, np.float32), 0.9, np.zeros((3, 2), int))
    with pytest.raises(PhotoError, match="mask is empty"):
        cut_photo(clip_model, photo, refine=False)
