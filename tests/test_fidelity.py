"""How far the fast path, bf16, is from the exact one, fp32, with the bundled models on generated scenes."""

import numpy as np
import pytest

from benchmarks.quality import ALL_KINDS_SEEDS, VEHICLE_SEEDS, iou, scene_examples
from clip_utilities import ClipModel
from config_utilities import MICRO_CLIP, MICRO_SAM2
from device_utilities import has_bf16
from mask_utilities import full_size_mask, paint_background
from sam_utilities import load_sam2, predict_sam2

pytestmark = pytest.mark.skipif(not has_bf16("cpu"), reason="this CPU emulates bf16, hundreds of times slower")

SCENES = 100  # of each set


@pytest.fixture(scope="module")
def images():
    vehicles = scene_examples(VEHICLE_SEEDS, SCENES, vehicles=True)
    return [example.image for example in [*vehicles, *scene_examples(ALL_KINDS_SEEDS, SCENES, vehicles=False)]]


@pytest.fixture(scope="module")
def results(images, prompts, cars):
    """The masks and labels of all images, by precision."""
    by_precision = {}
    for precision in ("fp32", "bf16"):
        sam2_model = load_sam2(MICRO_SAM2, precision=precision)
        clip_model = ClipModel(MICRO_CLIP, items=cars["items"], prompts=prompts, precision=precision)
        masks = []
        for index in range(0, len(images), 8):
            batch = images[index : index + 8]
            for image, segmentation in zip(batch, predict_sam2(batch, sam2_model), strict=True):
                masks.append(full_size_mask(segmentation.mask_logits, image.shape[:2]))
        views = [paint_background(image, mask) for image, mask in zip(images, masks, strict=True)]
        by_precision[precision] = masks, [clip_model.process([view])[0] for view in views]
    return by_precision


def test_bf16_finds_the_masks_of_fp32(results):
    (exact, _), (rounded, _) = results["fp32"], results["bf16"]
    ious = [iou(one, other) for one, other in zip(exact, rounded, strict=True) if one.any()]
    assert len(ious) > 0.95 * len(exact)
    assert np.mean(ious) >= 0.995
    assert np.min(ious) >= 0.98


def test_bf16_is_not_fp32_under_another_name(results):
    (exact, _), (rounded, _) = results["fp32"], results["bf16"]
    assert any((one != other).any() for one, other in zip(exact, rounded, strict=True))


def test_bf16_gives_the_labels_of_fp32(results):
    (_, exact), (_, rounded) = results["fp32"], results["bf16"]
    pairs = list(zip(exact, rounded, strict=True))
    assert np.mean([one.item == other.item for one, other in pairs]) >= 0.995
    assert max(abs(one.probability - other.probability) for one, other in pairs) <= 0.02
    assert (
        max(abs(one.item_probability - other.item_probability) for one, other in pairs if one.item == other.item)
        <= 0.02
    )
