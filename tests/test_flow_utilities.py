import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from clip_utilities import ClipModel
from config_utilities import Settings
from conftest import make_image, save_photo
from dataset_utilities import find_photos
from detector_utilities import Detection
from errors import NoSubjectError, PhotoError
from flow_utilities import Flow, Photo, cut_photo, find_subjects, take_photos, verify_subjects
from focus_utilities import Focus
from sam_utilities import Segmentation

POINTS = np.zeros((3, 2), int)


class Records:
    """What a flow asks of the output and of the progress."""

    def __init__(self):
        self.failures, self.advanced, self.skipped, self.aside = [], 0, 0, []

    def fail(self, source, reason, *, stage):
        self.failures.append((source, reason, stage))

    def set_aside(self, photo):
        self.aside.append(photo.source)

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


def test_a_photo_that_is_set_aside_has_no_device_checked(records):
    checked = []

    def work(photo):
        raise (NoSubjectError if photo.file.source == "0.jpg" else PhotoError)("nothing in it", stage="segment")

    flow = Flow(records, records, batch_size=1, threads=1, check=lambda: checked.append(len(records.failures)))
    assert list(flow.in_threads(make_photos(2), work)) == []
    assert checked == [1]  # over the second, before it is recorded
    assert len(records.failures) == 2


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
    photo.segmentation = Segmentation(logits, 0.9, POINTS, Focus("center", (48, 32)))
    cut_photo(clip_model, Settings(), photo)
    white = photo.image.copy()
    white[~photo.mask] = 255
    assert 0.2 < photo.mask.mean() < 0.3
    assert photo.clip_pixels.equal(clip_model.to_pixels(white))


def test_a_photo_that_stays_uncut_is_seen_whole(clip_model):
    [photo] = make_photos(1)
    cut_photo(clip_model, Settings(), photo)
    assert photo.mask is None
    assert photo.clip_pixels.equal(clip_model.to_pixels(photo.image))


def test_an_empty_mask_is_no_subject(clip_model):
    [photo] = make_photos(1)
    photo.segmentation = Segmentation(np.full((8, 8), -9.0, np.float32), 0.9, POINTS, Focus("center", (48, 32)))
    with pytest.raises(PhotoError, match="mask is empty"):
        cut_photo(clip_model, Settings(), photo)


def cut(clip_model, logits, **settings):
    [photo] = make_photos(1)
    photo.segmentation = Segmentation(logits, 0.9, POINTS, Focus("center", (48, 32)))
    return cut_photo(clip_model, Settings(**settings), photo)


def block(top, bottom, left, right):
    logits = np.full((64, 96), -9.0, np.float32)
    logits[top:bottom, left:right] = 9.0
    return logits


def test_an_island_goes_where_masks_are_cleaned(clip_model):
    logits = block(16, 48, 24, 72)
    logits[2:4, 2:4] = 9.0
    assert cut(clip_model, logits).mask[2:4, 2:4].any()
    assert not cut(clip_model, logits, clean_mask=0.02).mask[:10, :10].any()


def test_soft_edges_are_between_inside_and_outside(clip_model):
    logits = block(16, 48, 24, 72)
    assert cut(clip_model, logits).alpha is None
    feathered = cut(clip_model, logits, feather=4)
    assert set(np.unique(feathered.alpha)) >= {0, 255}
    assert ((feathered.alpha > 0) & (feathered.alpha < 255)).any()
    logits[16:20] = 0.5
    assert (cut(clip_model, logits, edges="soft").alpha[16:20, 30:60] < 255).any()


def test_clip_may_see_the_subjects_box_alone(clip_model):
    logits = block(20, 40, 4, 90)
    whole, part = cut(clip_model, logits), cut(clip_model, logits, clip_view="crop")
    assert not part.clip_pixels.equal(whole.clip_pixels)
    assert (part.clip_pixels[:10] == 255).all()  # a long subject, so white above it in the square


@pytest.mark.parametrize(
    ("logits", "settings", "flags"),
    [
        (block(31, 33, 47, 49), {}, ("small",)),
        (block(16, 48, 24, 72), {}, ()),
        (block(16, 48, 24, 72), {"min_area": 0.4}, ("small",)),
        (block(16, 48, 24, 72), {"max_area": 0.1}, ("large",)),
        (block(0, 64, 0, 96), {}, ("large", "borders")),
    ],
)
def test_doubtful_masks_are_flagged_and_where_asked_set_aside(clip_model, logits, settings, flags):
    assert cut(clip_model, logits, **settings).flags == flags
    if flags:
        with pytest.raises(NoSubjectError, match="--strict keeps none such"):
            cut(clip_model, logits, strict=True, **settings)
    else:
        cut(clip_model, logits, strict=True, **settings)


class Finder:
    """A detector that finds what it was told, in the order of the photos, and remembers what it saw."""

    def __init__(self, *found):
        self.found, self.seen = found, []

    def detect(self, images, *, fill=0):
        self.seen += images
        return [list(each) for each in self.found]


CAR = Detection((10.0, 10.0, 80.0, 50.0), "car", 0.8)


def test_the_detectors_choice_is_the_focus_and_the_centre_stays_where_it_finds_nothing():
    photos = make_photos(3)
    settings = Settings(focus="detector", focus_labels=("car",))
    detector = Finder([CAR], [], [Detection(CAR.box, "dog", 0.9)])
    assert find_subjects(detector, settings, photos) == photos
    assert photos[0].focus == Focus("detector", (45, 30), CAR.box, "car", 0.8)
    assert photos[1].focus is photos[2].focus is None


def test_a_photo_without_a_subject_is_set_aside_where_one_is_required(records):
    photos = make_photos(3)
    settings = Settings(focus="detector", focus_labels=("car", "bus"), require_focus=True)
    detector = Finder([CAR], [Detection(CAR.box, "car", 0.3)], [])
    flow = Flow(records, records, batch_size=3, threads=2)
    kept = list(flow.in_batches(photos, lambda some, *, fill: find_subjects(detector, settings, some, fill=fill)))
    assert kept == photos[:1]
    reason = "no subject: the detector finds none of car, bus in the photo from a confidence of 0.4 on"
    assert records.failures == [("1.jpg", reason, "focus"), ("2.jpg", reason, "focus")]
    assert records.aside == ["1.jpg", "2.jpg"]


def test_a_cut_out_must_show_the_subject_where_that_is_verified(clip_model):
    photos = [cut(clip_model, block(16, 48, 24, 72)) for _ in range(2)]
    detector = Finder([CAR], [])
    kept, lost = verify_subjects(detector, Settings(verify_focus=True), photos)
    assert kept is photos[0]
    assert isinstance(lost, NoSubjectError)
    assert str(lost) == "no subject: the detector finds nothing in the cut-out from a confidence of 0.4 on"
    assert (detector.seen[0][:10] == 255).all()  # it saw the cut-out, not the photo


def test_the_detectors_time_is_the_photos_too(clip_model):
    photos = [cut(clip_model, block(16, 48, 24, 72)) for _ in range(2)]
    find_subjects(Finder([CAR], []), Settings(focus="detector"), photos)
    found = [photo.seconds for photo in photos]
    verify_subjects(Finder([CAR], [CAR]), Settings(verify_focus=True), photos)
    assert 0 < found[0] == found[1] < photos[0].seconds == photos[1].seconds


def test_photos_that_only_the_detector_has_seen_are_finished_where_a_run_is_to_end(records):
    stop = threading.Event()

    def find(photos, *, fill):
        stop.set()
        return find_subjects(Finder(*[[CAR]] * len(photos)), Settings(focus="detector"), photos, fill=fill)

    photos = make_photos(6)
    flow = Flow(records, records, batch_size=2, threads=2, stopping=stop.is_set)
    assert list(flow.in_batches(flow.in_batches(photos, find), lambda some, *, fill: some)) == photos[:2]


@pytest.mark.parametrize(("limit", "taken"), [(1, 1), (2, 3), (3, 4), (9, 5)])
def test_a_limit_takes_the_files_that_hold_no_image_with_it_and_does_not_count_them(tmp_path, limit, taken):
    for name in ("a.png", "c.png", "d.png"):
        save_photo(tmp_path / name)
    (tmp_path / "b.txt").write_text("no photo")
    (tmp_path / "e.png").write_bytes(b"torn")
    files = list(find_photos(tmp_path))
    some = take_photos(files, limit=limit, max_pixels=10**6, is_done=lambda file: file.source == "c.png")
    assert list(some) == files[:taken]
