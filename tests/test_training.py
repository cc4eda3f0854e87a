"""The training of the bundled models: its losses against plain arithmetic, and that it learns and goes on."""

import itertools
from pathlib import Path

import clip
import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import make_image
from sam_utilities import load_sam2, predict_sam2
from scenes import make_scene
from training.photos import MaskedPhotos, aim, item_of_folder, training_pictures
from training.train_clip import (
    TrainingPictures,
    degrade_mask,
    draw_prompts,
    learning_rate,
    prompt_loss,
    read_photos,
    save_checkpoint,
)
from training.train_sam2 import build, make_optimizers, mask_losses, plain_attention, two_pass_loss


@pytest.fixture
def masked_photos(tmp_path):
    """Eight photos of a set and two of another, each with the mask of a disc at its centre."""
    for name, count in (("large", 8), ("small", 2)):
        folder = tmp_path / "masks" / name
        folder.mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((60, 80), np.uint8)
            cv2.circle(mask, (40, 30), 15, 255, -1)
            cv2.imwrite(str(folder / f"{index}.jpg"), make_image(80, 60, index))
            cv2.imwrite(str(folder / f"{index}.png"), mask)
    return tmp_path


def test_photos_are_split_once_and_no_set_drowns_the_others(masked_photos):
    kept, held_out = (MaskedPhotos(masked_photos, held_out=each) for each in (False, True))
    assert len(kept) + len(held_out) == 10
    rng = np.random.default_rng(0)
    assert all(mask.shape == image.shape[:2] for image, mask in (kept.draw(rng) for _ in range(5)))


def test_a_folder_without_masks_says_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no masks/<set>/\*.jpg in it"):
        MaskedPhotos(tmp_path, held_out=False)


@pytest.mark.parametrize(
    ("name", "items", "item"),
    [
        ("grey", ["gray"], "gray"),
        ("tan", ["beige", "tan"], "tan"),
        ("tan", ["beige"], "beige"),
        ("grey", ["red"], "grey"),
        ("red", ["red"], "red"),
    ],
)
def test_a_folder_named_by_a_synonym_is_its_item_unless_it_is_one_itself(name, items, item):
    assert item_of_folder(name, items) == item


@pytest.mark.parametrize("with_photos", [False, True])
def test_training_pictures_have_their_object_at_the_centre(masked_photos, with_photos):
    photos = MaskedPhotos(masked_photos, held_out=False) if with_photos else None
    for picture, mask in itertools.islice(training_pictures(0, 64, photos, real_share=0.8), 30):
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        assert mask.shape == (64, 64)
        assert mask[32, 32]


def test_a_perfect_mask_costs_nothing_and_a_reversed_one_the_most():
    target = torch.zeros(1, 64, 64)
    target[:, 16:48, 16:48] = 1
    small = torch.nn.functional.adaptive_avg_pool2d(target[:, None], 16)
    logits = torch.cat([(small - 0.5) * 40, (0.5 - small) * 40], dim=1)
    losses, ious = mask_losses(logits, target)
    assert losses[0, 0] < 0.1
    assert losses[0, 1] > 1
    assert ious[0, 0] > 0.9
    assert ious[0, 1] < 0.2


def test_a_few_steps_on_one_batch_lower_the_loss():
    torch.manual_seed(0)
    model = build(128)
    scenes = [make_scene(seed, (128, 128)) for seed in range(4)]
    images = torch.stack(
        [torch.from_numpy(scene.image.astype(np.float32)).permute(2, 0, 1) / 60 - 2 for scene in scenes]
    )
    masks = torch.stack([torch.from_numpy(scene.mask.astype(np.float32)) for scene in scenes])
    points = torch.full((4, 2), 64.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = two_pass_loss(model, images, masks, points)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_every_weight_that_a_photo_needs_has_one_optimizer():
    model = build(128)
    images, masks, points = torch.zeros(1, 3, 128, 128), torch.ones(1, 128, 128), torch.full((1, 2), 64.0)
    two_pass_loss(model, images, masks, points).backward()
    optimized = [
        id(weights)
        for optimizer in make_optimizers(model, 1e-3)
        for group in optimizer.param_groups
        for weights in group["params"]
    ]
    assert len(set(optimized)) == len(optimized)
    assert {id(weights) for weights in model.parameters() if weights.grad is not None} <= set(optimized)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_written_out_is_torchs_own(dtype):
    query, key, value = torch.randn(3, 2, 4, 16, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    own = functional.scaled_dot_product_attention
    expected = own(query, key, value)
    with plain_attention():
        assert functional.scaled_dot_product_attention is not own
        written_out = functional.scaled_dot_product_attention(query, key, value, dropout_p=0.0)
    assert functional.scaled_dot_product_attention is own
    assert torch.allclose(written_out, expected, atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_weights_trained_at_one_size_fit_another(tmp_path):
    torch.save({"model": {key: value.half() for key, value in build(128).state_dict().items()}}, tmp_path / "w.pt")
    model = load_sam2(str(Path(tmp_path, "w.pt")), "sam2.1_hiera_micro")
    assert model.image_size == 256
    assert predict_sam2([make_image()], model)[0].mask_logits.shape == (64, 64)


def test_the_prompts_of_a_step_name_every_item_in_every_template():
    prompts = draw_prompts(["a"], ["red", "blue"], ["car"], np.random.default_rng(0))
    assert len(prompts) % 2 == 0
    for red, blue in zip(prompts[::2], prompts[1::2], strict=True):
        assert red.replace("red", "blue") == blue


def test_a_degraded_mask_still_covers_most_of_the_subject():
    rng = np.random.default_rng(0)
    mask = make_scene(3, subject="vehicle").mask
    overlaps = [(degraded & mask).sum() / mask.sum() for degraded in (degrade_mask(mask, rng) for _ in range(30))]
    assert min(overlaps) > 0.3
    assert np.mean(overlaps) > 0.7
    assert not all(overlap == 1 for overlap in overlaps)


def test_the_colours_are_learned_from_cut_outs_by_the_segmenter(tmp_path):
    for colour in ("red", "grey"):
        (tmp_path / "colours" / colour).mkdir(parents=True)
        for index in range(5):
            cv2.imwrite(str(tmp_path / "colours" / colour / f"{index}.jpg"), make_image(300, 200, index))

    def segment_middle(image):
        mask = np.zeros(image.shape[:2], bool)
        mask[image.shape[0] // 4 : -image.shape[0] // 4, image.shape[1] // 4 : -image.shape[1] // 4] = True
        return mask

    items = ["red", "gray", "blue"]
    kept, held_out = (read_photos(tmp_path, items, segment_middle, held_out=each) for each in (False, True))
    assert [len(kept), len(held_out)] == [8, 2]
    assert {photo.item for photo in kept} == {"red", "gray"}
    assert all(0.2 < photo.masks[0].mean() < 0.3 for photo in kept)
    pictures = list(itertools.islice(TrainingPictures(items, kept, segment_middle, seed=0).pictures(), 40))
    assert sum((picture == 255).all(axis=2).mean() > 0.3 for picture, _ in pictures) > 15


def test_the_learning_rate_rises_and_falls_to_nothing():
    assert learning_rate(0, 0.0) < learning_rate(200, 0.1) > learning_rate(500, 0.9)
    assert learning_rate(1000, 1.0) == 0


def test_a_trained_clip_is_a_checkpoint_that_clip_itself_loads(clip_checkpoint, tmp_path):
    model, _ = clip.load(str(clip_checkpoint), device="cpu")
    save_checkpoint(model, tmp_path / "trained.pt")
    again, _ = clip.load(str(tmp_path / "trained.pt"), device="cpu")
    assert torch.allclose(again.visual.proj, model.visual.proj, atol=1e-3)
    tokens = clip.tokenize(["a red car", "a blue car"])
    loss = prompt_loss(again, torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 0, 1]), tokens, item_count=2)
    assert loss.isfinite()


def test_prompts_of_training_lie_on_their_object_wherever_it_was_moved():
    rng, size = np.random.default_rng(0), 96
    picture, mask = make_image(size, size), np.zeros((size, size), bool)
    mask[30:70, 36:62] = True
    centres = []
    for _ in range(200):
        shown, object_mask, (x, y), (x0, y0, x1, y1) = aim(picture, mask, rng)
        assert shown.shape == picture.shape
        assert object_mask[int(y), int(x)]
        assert object_mask.sum() >= 64
        rows, columns = np.nonzero(object_mask)
        assert abs((x0 + x1) / 2 - (columns.min() + columns.max()) / 2) < 0.2 * size
        assert abs((y0 + y1) / 2 - (rows.min() + rows.max()) / 2) < 0.2 * size
        centres.append((columns.mean(), rows.mean()))
    assert np.std(centres, axis=0).min() > 5  # they are moved
    assert (np.abs(np.subtract(centres, (48.5, 49.5))).max(axis=1) < 1).sum() > 60  # but half are not


def test_a_box_is_trained_as_the_program_gives_it():
    torch.manual_seed(0)
    model = build(128)
    images, masks = torch.randn(2, 3, 128, 128), torch.zeros(2, 128, 128)
    masks[:, 40:90, 30:100] = 1
    points, boxes = torch.full((2, 2), 64.0), torch.tensor([[30.0, 40.0, 100.0, 90.0]] * 2)
    losses = [two_pass_loss(model, images, masks, points, some).item() for some in (None, boxes)]
    assert losses[0] != losses[1]
    two_pass_loss(model, images, masks, points, boxes).backward()
    corners = model.sam_prompt_encoder.point_embeddings[2].weight.grad
    assert corners is not None
    assert corners.abs().sum() > 0
