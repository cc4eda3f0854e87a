import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models import get_model, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from checkpoint_utilities import file_digest
from config_utilities import PROGRAM_DIR
from conftest import make_image
from detector_utilities import (
    Detection,
    check_labels,
    choose_detection,
    detection_focus,
    detector_checkpoints,
    load_detector,
)
from errors import CheckpointError, ConfigError
from focus_utilities import Focus

SSDLITE, FASTER_RCNN = "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"


def test_neither_this_nor_focus_utilities_imports_torch_or_opencv():
    heavy = {"torch", "torchvision", "cv2", "ultralytics"}
    code = f"import detector_utilities, sys; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROGRAM_DIR, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def centred(label, confidence, side, shift=0):
    """A square detection in a photo of 1000 x 1000 pixels, so far to the right of its centre."""
    low, high = 500 - side / 2, 500 + side / 2
    return Detection((low + shift, low, high + shift, high), label, confidence)


@pytest.mark.parametrize(
    ("detections", "labels", "threshold", "chosen"),
    [
        ([], None, 0.0, None),
        ([centred("car", 0.5, 400)], None, 0.5, 0),
        ([centred("car", 0.5, 400)], None, 0.51, None),
        ([centred("car", math.nan, 400)], None, 0.5, None),
        ([centred("car", 0.9, 800), centred("dog", 0.6, 200)], {"dog", "cat"}, 0.5, 1),
        ([centred("car", 0.9, 800), centred("dog", 0.6, 200)], (), 0.5, None),
        ([centred("car", 0.6, 400), centred("car", 0.9, 200)], None, 0.5, 0),
        ([centred("car", 0.6, 400), centred("car", 0.9, 410, shift=250)], None, 0.5, 0),
        ([centred("car", 0.6, 400), centred("car", 0.9, 365)], None, 0.5, 1),
        ([centred("car", 0.6, 400), centred("car", 0.9, 355)], None, 0.5, 0),
        ([centred("car", 0.6, 400), centred("car", 0.8, 380), centred("car", 0.9, 350)], None, 0.5, 1),
        ([centred("car", 0.6, 390), centred("dog", 0.6, 400)], None, 0.5, 1),
        ([centred("car", 0.6, 400), Detection((500, 400, 500, 900), "car", 0.9)], None, 0.5, 0),
        ([centred("car", 0.6, 400), Detection((1100, 0, 3000, 1000), "car", 0.9)], None, 0.5, 0),
        ([Detection((math.nan, 0, 900, 900), "car", 0.9)], None, 0.5, None),
    ],
    ids=[
        "nothing found",
        "at the threshold",
        "below the threshold",
        "no confidence",
        "another label",
        "no label",
        "the larger",
        "the closer",
        "nearly equal: the more confident",
        "not nearly equal",
        "equal to the best, not to the next",
        "equally confident: the larger",
        "a degenerate box",
        "a box outside the photo",
        "a broken box",
    ],
)
def test_the_subject_is_large_central_and_confident(detections, labels, threshold, chosen):
    expected = None if chosen is None else detections[chosen]
    for order in (detections, detections[::-1]):
        assert choose_detection(order, 1000, 1000, labels=labels, threshold=threshold) == expected


def test_boxes_count_as_far_as_they_lie_inside_the_photo():
    outside = Detection((-5000.0, 300.0, 100.0, 700.0), "car", 0.9)  # 4% of the photo, at its edge
    assert choose_detection([outside, centred("dog", 0.6, 250)], 1000, 1000, labels=None, threshold=0).label == "dog"
    alone = choose_detection([outside], 1000, 1000, labels=None, threshold=0)
    assert alone == Detection((0.0, 300.0, 100.0, 700.0), "car", 0.9)


coarse = st.integers(-2, 12).map(float)
detection = st.builds(
    Detection, st.tuples(coarse, coarse, coarse, coarse), st.sampled_from("ab"), st.sampled_from([0.3, 0.5, 0.9])
)


@given(st.lists(detection, max_size=8), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order(detections, random):
    chosen = choose_detection(detections, 10, 8, labels=None, threshold=0.4)
    shuffled = random.sample(detections, len(detections))
    assert choose_detection(shuffled, 10, 8, labels=None, threshold=0.4) == chosen


@given(detection, st.integers(1, 10), st.integers(1, 8))
def test_the_focus_of_a_chosen_detection_lies_inside_photo_and_box(found, width, height):
    chosen = choose_detection([found], width, height, labels=None, threshold=0)
    if chosen is not None:
        x, y = detection_focus(chosen, width, height).point
        assert 0 <= x < width
        assert 0 <= y < height
        assert chosen.box[0] <= x + 1
        assert x <= chosen.box[2]


def test_the_focus_of_a_detection_carries_what_was_found():
    found = Detection((10.0, 20.0, 31.0, 50.0), "car", 0.75)
    assert detection_focus(found, 100, 100) == Focus("detector", (20, 35), (10.0, 20.0, 31.0, 50.0), "car", 0.75)


def save_random_detector(name, folder):
    """Saves seeded random weights as the file that torchvision publishes; what they find depends on the photo."""
    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=91)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    noise = torch.rand(2, 3, 320, 320)
    with torch.no_grad():  # once through the batch norms, or the last features are the same for every photo
        features = list(model.train().backbone(noise * 2 - 1).values())
        if name == SSDLITE:
            model.head.classification_head(features)
        else:
            model.roi_heads.box_predictor.cls_score.weight *= 0.2  # or all confidences are 1
    frozen = "fpn" in name  # published with frozen batch norms, which do not count batches
    weights = {key: value for key, value in model.state_dict().items() if not (frozen and "num_batches" in key)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / detector_checkpoints()[name].file_name)


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory):
    """Where both torch.hub and load_detector find the random models."""
    home = tmp_path_factory.mktemp("torch")
    for name in (SSDLITE, FASTER_RCNN):
        save_random_detector(name, home / "hub" / "checkpoints")
    return home


@pytest.fixture(scope="module")
def detectors(torch_home):
    folder = torch_home / "hub" / "checkpoints"
    return {name: load_detector(name, checkpoints_dir=folder) for name in (SSDLITE, FASTER_RCNN)}


def numbers(detections):
    return np.array([(*each.box, each.confidence) for each in detections])


def assert_same(some, others):
    """Both found the same up to rounding, which may turn a near tie over: 1 in 50 may differ."""

    def missing(these, those):
        return [
            one
            for one in these
            if not any(
                one.label == other.label and np.allclose(numbers([one]), numbers([other]), rtol=0, atol=1e-2)
                for other in those
            )
        ]

    assert len(some) > 5
    assert len(missing(some, others)) <= len(some) / 50
    assert len(missing(others, some)) <= len(others) / 50


def torchvisions_own(name, image, torch_home, monkeypatch):
    """What torchvision's documentation does, with the names of its categories."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    model = get_model(name, weights="DEFAULT").eval()
    categories = get_model_weights(name).DEFAULT.meta["categories"]
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    with torch.inference_mode():
        (output,) = model([pixels])
    return [
        Detection(tuple(box), categories[label], confidence)
        for box, label, confidence in zip(*(output[key].tolist() for key in ("boxes", "labels", "scores")), strict=True)
        if categories[label] != "N/A"
    ]


@pytest.mark.parametrize(("name", "size_wh"), [(SSDLITE, (400, 300)), (FASTER_RCNN, (640, 640))])
def test_a_detector_finds_what_torchvision_finds(detectors, torch_home, monkeypatch, name, size_wh):
    image = make_image(*size_wh)
    expected = torchvisions_own(name, image, torch_home, monkeypatch)
    assert len({each.label for each in expected}) > 1
    (found,) = detectors[name].detect([image])
    assert_same(expected, found)


PHOTOS = [make_image(*size_wh, seed=seed) for seed, size_wh in enumerate([(400, 300), (700, 900), (64, 64), (300, 3)])]


@pytest.mark.parametrize("name", [SSDLITE, FASTER_RCNN])
def test_what_is_found_in_a_photo_does_not_depend_on_its_neighbours(detectors, name):
    small, large, tiny, strip = PHOTOS
    (first, second), (same_first, _), (_, same_second) = (
        detectors[name].detect(pair) for pair in [(small, large), (small, tiny), (strip, large)]
    )
    assert_same(first, same_first)
    assert_same(second, same_second)


@pytest.mark.parametrize("name", [SSDLITE, FASTER_RCNN])
def test_what_is_found_depends_on_the_photo_and_its_colours(detectors, name):
    image, other = make_image(160, 120, seed=0), make_image(160, 120, seed=1)
    found = detectors[name].detect([image, other, np.ascontiguousarray(image[:, :, ::-1])])
    best = [max(each.confidence for each in detections) for detections in found]
    assert abs(best[0] - best[1]) > 1e-3
    assert abs(best[0] - best[2]) > 1e-3


@pytest.mark.parametrize("name", [SSDLITE, FASTER_RCNN])
def test_fill_makes_a_batch_larger_and_returns_nothing_more(detectors, name):
    detector, sizes = detectors[name], []
    hook = detector.model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    plain, filled = detector.detect(PHOTOS[:2]), detector.detect(PHOTOS[:2], fill=3)
    hook.remove()
    assert sizes == [2, 5]
    assert len(filled) == 2
    assert_same(plain[0], filled[0])
    assert_same(plain[1], filled[1])


@pytest.mark.parametrize("name", [SSDLITE, FASTER_RCNN])
def test_boxes_are_in_pixels_of_the_whole_photo(detectors, name):
    found = detectors[name].detect(PHOTOS)
    for image, detections in zip(PHOTOS, found, strict=True):
        height, width = image.shape[:2]
        boxes = numbers(detections).reshape(-1, 5)[:, :4]
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert numbers(found[1])[:, 3].max() > 800  # of 900, seen as 640


def test_a_detector_knows_the_labels_of_coco_and_its_file(detectors, torch_home):
    labels = detectors[SSDLITE].labels
    assert len(labels) == len(set(labels)) == 80
    assert {"person", "car", "toothbrush"} <= set(labels)
    path = torch_home / "hub" / "checkpoints" / "ssdlite320_mobilenet_v3_large_coco-a79551df.pth"
    assert detectors[SSDLITE].digest == file_digest(path)


def test_published_detectors_carry_the_first_digits_of_their_digest():
    public = detector_checkpoints()
    assert {SSDLITE, FASTER_RCNN, "retinanet_resnet50_fpn_v2", "maskrcnn_resnet50_fpn", "fcos_resnet50_fpn"} <= set(
        public
    )
    assert public[SSDLITE].sha256 == "a79551df"
    for checkpoint in public.values():
        assert checkpoint.url.startswith("https://")
        assert len(checkpoint.sha256) >= 8


def test_batch_norms_are_those_that_the_weights_were_published_with(tmp_path):
    """Vision #8502: with another epsilon the boxes are slightly wrong."""
    save_random_detector("fasterrcnn_resnet50_fpn", tmp_path)
    model = load_detector("fasterrcnn_resnet50_fpn", checkpoints_dir=tmp_path).model
    norms = [module for module in model.modules() if isinstance(module, (FrozenBatchNorm2d, torch.nn.BatchNorm2d))]
    assert {(type(module), module.eps) for module in norms} == {(FrozenBatchNorm2d, 0.0)}


def test_an_unknown_detector_lists_the_known_ones(tmp_path):
    with pytest.raises(CheckpointError) as error:
        load_detector("fasterrcnn_resnet51_fpn", checkpoints_dir=tmp_path)
    message = str(error.value)
    assert message.startswith(
        "--detector fasterrcnn_resnet51_fpn: no such detector; did you mean fasterrcnn_resnet50_fpn?"
    )
    assert all(name in message for name in detector_checkpoints())
    assert "yolo:FILE.pt" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (
            {"backbone.features.0.0.0.weight": torch.zeros(1)},
            rf"does not fit the architecture {SSDLITE}: Missing key\(s\) in state_dict: .*; delete it to download it",
        ),
        ([1, 2], f"not the weights of {SSDLITE}: it holds no dictionary of weights; fetch or make it again"),
    ],
    ids=["another model", "no weights"],
)
def test_a_file_of_another_model_is_refused_in_one_line(tmp_path, weights, words):
    path = tmp_path / detector_checkpoints()[SSDLITE].file_name
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=rf"{path}: {words}") as error:
        load_detector(SSDLITE, checkpoints_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 250


def test_torchvision_downloads_as_before_once_a_detector_is_loaded(detectors):
    """The builder was handed the file's weights for a moment only."""
    assert "get_state_dict" not in vars(get_model_weights(SSDLITE).DEFAULT)


class FakeYolo:
    """The part of `ultralytics.YOLO` that is used: finds the red rectangle of each photo."""

    task = "detect"

    def __init__(self, model="yolo11n.pt", task=None, verbose=False):
        if Path(model).read_bytes() == b"damaged":
            raise RuntimeError("PytorchStreamReader failed\nreading zip archive")
        self.names = {0: "person", 2: "car"}
        self.batches = []

    def predict(self, source=None, stream=False, predictor=None, **settings):
        self.batches.append((source, settings))
        return [types.SimpleNamespace(boxes=self._boxes(image)) for image in source]

    def _boxes(self, image):
        blue, green, red = np.moveaxis(image.astype(int), 2, 0)
        rows, columns = np.nonzero((red > 200) & (green < 60) & (blue < 60))
        found = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if len(rows) else []
        return types.SimpleNamespace(
            xyxy=torch.tensor(found, dtype=torch.float32).reshape(-1, 4),
            cls=torch.full((len(found),), 2.0),
            conf=torch.full((len(found),), 0.75),
        )


@pytest.fixture
def ultralytics(monkeypatch):
    module = types.ModuleType("ultralytics")
    module.YOLO = type("YOLO", (FakeYolo,), {})
    monkeypatch.setitem(sys.modules, "ultralytics", module)
    return module


def photo_with_red(width, height, x0, y0, x1, y1):
    image = np.full((height, width, 3), 90, np.uint8)
    image[y0:y1, x0:x1] = (255, 0, 0)
    return image


def test_a_yolo_model_finds_in_pixels_of_the_photo(ultralytics, tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"weights")
    detector = load_detector("yolo:mine.pt", checkpoints_dir=tmp_path)
    large, small = photo_with_red(1280, 800, 300, 200, 600, 400), photo_with_red(64, 160, 8, 24, 40, 120)
    nothing = np.zeros((50, 50, 3), np.uint8)
    found = detector.detect([large, nothing, small], fill=2)
    assert found[1] == []
    assert [(each.label, each.confidence) for each in (*found[0], *found[2])] == [("car", 0.75)] * 2
    assert found[0][0].box == pytest.approx((300, 200, 600, 400), abs=2)
    assert found[2][0].box == pytest.approx((8, 24, 40, 120), abs=1)
    assert len(found) == 3
    assert detector.labels == ("person", "car")
    assert detector.digest == file_digest(tmp_path / "mine.pt")


def test_a_yolo_model_sees_squares_of_one_size(ultralytics, tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"weights")
    detector = load_detector(f"yolo:{tmp_path / 'mine.pt'}", "cpu")
    detector.detect([PHOTOS[1], PHOTOS[2]], fill=2)
    ((source, settings),) = detector.model.batches
    assert [(image.shape, image.dtype) for image in source] == [((640, 640, 3), np.uint8)] * 4
    assert (source[0][:, 600] == 114).all()  # beside a photo of 498 x 640
    assert np.array_equal(source[3], source[1])
    assert settings == {"conf": 0.05, "device": "cpu", "verbose": False}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.pt", "--detector yolo:none.pt: no such .pt, neither here nor in .*; name the .pt of a YOLO model"),
        ("other.onnx", "--detector yolo:other.onnx: no such .pt, neither here nor in"),
        (
            "damaged.pt",
            "damaged.pt: ultralytics can't read it: PytorchStreamReader failed reading zip archive; name the",
        ),
    ],
)
def test_a_yolo_file_that_can_not_be_used_says_so(ultralytics, tmp_path, name, words):
    for file in ("other.onnx", "damaged.pt"):
        (tmp_path / file).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=words) as error:
        load_detector(f"yolo:{name}", checkpoints_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_yolo_model_without_boxes_is_refused(ultralytics, tmp_path):
    ultralytics.YOLO.task = "classify"
    (tmp_path / "mine.pt").write_bytes(b"weights")
    with pytest.raises(
        CheckpointError, match=r"mine.pt: a model for 'classify' gives no boxes; use one for detect, seg"
    ):
        load_detector("yolo:mine.pt", checkpoints_dir=tmp_path)


def test_without_ultralytics_the_message_names_package_and_licence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)  # as if it were not installed
    (tmp_path / "mine.pt").write_bytes(b"weights")
    with pytest.raises(CheckpointError) as error:
        load_detector("yolo:mine.pt", checkpoints_dir=tmp_path)
    assert str(error.value).startswith("--detector yolo:mine.pt: needs the package ultralytics (")
    assert str(error.value).endswith(
        "pip install ultralytics (its licence is AGPL-3.0), or use a detector of torchvision"
    )


def test_labels_that_the_detector_knows_pass(detectors):
    check_labels(detectors[SSDLITE], ["car", "traffic light"])


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Cars", "--labels 'Cars': the detector knows no such label; did you mean 'car'"),
        ("zeppelin", "--labels 'zeppelin': the detector knows no such label; it knows: person, bicycle, car, "),
        ("N/A", "--labels 'N/A': the detector knows no such label; it knows: person"),
    ],
)
def test_a_label_that_the_detector_does_not_know_names_what_comes_near(detectors, label, words):
    with pytest.raises(ConfigError) as error:
        check_labels(detectors[SSDLITE], ["car", label], flag="--labels")
    assert str(error.value).startswith(words)
