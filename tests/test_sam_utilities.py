import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.utils.transforms import SAM2Transforms

import focus_utilities
import random_models
import sam_utilities
from conftest import make_image
from detector_utilities import Detection, detection_focus
from errors import CheckpointError
from focus_utilities import Focus, centre_focus, grid_points
from mask_utilities import subject_mask
from sam_utilities import (
    available_configs,
    config_name,
    doubtful_choices,
    find_config,
    focus_points,
    load_sam2,
    predict_sam2,
    read_image_size,
    to_pixels,
)

SIZES_WH = [(64, 64), (333, 500), (1800, 1200), (700, 1)]


@pytest.fixture(scope="session")
def micro(sam2_checkpoint):
    return load_sam2(str(sam2_checkpoint))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    return random_models.save_random_sam2(
        tmp_path_factory.mktemp("checkpoints") / "sam2.1_hiera_tiny.pt", "sam2.1_hiera_t"
    )


def predict_photo_by_photo(images, checkpoint, margin=0.05):
    """The two passes as the documents describe them, with Meta's own model and predictor, one photo at a time."""
    model = sam_utilities.build_sam2(find_config(config_name(checkpoint.name))).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    predictor = SAM2ImagePredictor(model)
    side = model.image_size
    predictor._bb_feat_sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]  # it assumes 1024 px
    results = []
    for image in images:
        height, width = image.shape[:2]
        x, y, m = width // 2, height // 2, int(min(width, height) * margin)
        predictor.set_image(image)
        _, scores, logits = predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=True)
        masks, scores, _ = predictor.predict(
            np.array([[x, y], [x + m, y + m], [x - m, y + m]]),
            np.array([1, 1, 1]),
            mask_input=logits[scores.argmax()][None],
            multimask_output=False,
        )
        results.append((masks[0].astype(bool), scores[0]))
    return results


def assert_same(image, mask_logits, mask):
    """Compares the mask of some logits with Meta's predictor's, in every pixel that rounding does not decide.

    A CPU with AVX2 alone multiplies a batch's rows in another order than a single row: among two million pixels one had
    a logit of 2e-8, where their spread was 0.05.
    """
    logits = torch.from_numpy(mask_logits)[None, None]
    size_hw = image.shape[:2]
    logits = torch.nn.functional.interpolate(logits, size_hw, mode="bilinear", align_corners=False)[0, 0].numpy()
    differing = subject_mask(image, mask_logits) != mask
    assert (np.abs(logits[differing]) < 1e-6).all()


@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_batched_masks_are_those_of_metas_predictor(micro, sam2_checkpoint, margin):
    images = [make_image(width, height, seed) for seed, (width, height) in enumerate(SIZES_WH)]
    expected = predict_photo_by_photo(images, sam2_checkpoint, margin)
    assert any(0.05 < mask.mean() < 0.95 for mask, _ in expected)  # not a comparison of nothing with nothing
    for batch in (images, images[:1], images[1:3]):
        results = predict_sam2(batch, micro, margin)
        for image, result in zip(batch, results, strict=True):
            index = next(i for i, each in enumerate(images) if each is image)
            mask, score = expected[index]
            assert_same(image, result.mask_logits, mask)
            assert result.score == pytest.approx(score, abs=1e-5)


def test_the_real_architecture_at_1024_px_agrees_as_well(tiny_checkpoint):
    images = [make_image(333, 500, 1), make_image(640, 426, 2)]
    expected = predict_photo_by_photo(images, tiny_checkpoint)
    tiny = load_sam2("sam2.1_hiera_tiny", checkpoints_dir=tiny_checkpoint.parent)
    for image, result, (mask, score) in zip(images, predict_sam2(images, tiny), expected, strict=True):
        assert_same(image, result.mask_logits, mask)
        assert result.score == pytest.approx(score, abs=1e-5)


def test_a_photo_is_told_apart_from_its_neighbours_in_the_batch(micro):
    images = [make_image(seed=seed) for seed in range(3)]
    forward, backward = predict_sam2(images, micro), predict_sam2(images[::-1], micro)[::-1]
    for one, other in zip(forward, backward, strict=True):
        assert one.mask_logits == pytest.approx(other.mask_logits, abs=1e-4)
    assert np.abs(forward[0].mask_logits - forward[1].mask_logits).max() > 0.1


def test_the_result_names_its_points(micro):
    [result] = predict_sam2([make_image(200, 100)], micro)
    assert result.points.tolist() == [[100, 50], [105, 55], [95, 55]]


def predict_with_metas_predictor(image, checkpoint, point, box, margin=0.05):
    """Both passes by Meta's predictor with a point and, where there is one, a box; the mask and its logits."""
    model = sam_utilities.build_sam2(find_config(config_name(checkpoint.name))).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
    predictor.set_image(image)
    box = None if box is None else np.array(box)
    _, scores, logits = predictor.predict(np.array([point]), np.array([1]), box=box, multimask_output=True)
    (x, y), m = point, int(min(image.shape[:2]) * margin)
    masks, _, _ = predictor.predict(
        np.array([point, [x + m, y + m], [x - m, y + m]]),
        np.array([1, 1, 1]),
        box=box,
        mask_input=logits[scores.argmax()][None],
        multimask_output=False,
    )
    return masks[0].astype(bool)


def test_a_box_and_its_centre_give_the_mask_of_metas_predictor_whatever_its_neighbours_have(micro, sam2_checkpoint):
    images = [make_image(200, 100, 1), make_image(120, 160, 2), make_image(90, 90, 3)]
    detection = Detection((20.0, 10.5, 141.0, 90.0), "car", 0.9)
    focuses = [
        detection_focus(detection, 200, 100),
        centre_focus(120, 160),
        Focus("point", (20, 70)),
    ]
    expected = [
        predict_with_metas_predictor(image, sam2_checkpoint, focus.point, focus.box)
        for image, focus in zip(images, focuses, strict=True)
    ]
    without = predict_with_metas_predictor(images[0], sam2_checkpoint, focuses[0].point, None)
    assert (without != expected[0]).any()  # the box says something
    alone = [predict_sam2([image], micro, focuses=[focus])[0] for image, focus in zip(images, focuses, strict=True)]
    for image, result, mask, focus in zip(images, alone, expected, focuses, strict=True):
        assert_same(image, result.mask_logits, mask)
        assert result.focus == focus
    for rows in ([0, 1, 2], [1, 2], [2, 0]):
        some = predict_sam2([images[row] for row in rows], micro, focuses=[focuses[row] for row in rows])
        for row, result in zip(rows, some, strict=True):
            assert result.mask_logits == pytest.approx(alone[row].mask_logits, abs=1e-4)


def test_the_best_point_of_the_grid_replaces_the_centre(micro, monkeypatch):
    images = [make_image(200, 100, 1), make_image(120, 160, 2)]
    wanted = iter([7, 2])

    def like(mask_logits, iou_predictions):
        assert len(mask_logits) == len(iou_predictions) == 9
        scores = torch.linspace(0, 0.5, 9)
        scores[next(wanted)] = 0.75
        return scores

    monkeypatch.setattr(focus_utilities, "mask_scores", like)
    results = predict_sam2(images, micro, grid=True)
    for image, result, number in zip(images, results, [7, 2], strict=True):
        point = tuple(grid_points(image.shape[1], image.shape[0])[number].tolist())
        assert result.focus == Focus("grid", point, confidence=0.75)
        [pointed] = predict_sam2([image], micro, focuses=[Focus("point", point)])
        assert pointed.points.tolist() == result.points.tolist()
        assert result.mask_logits == pytest.approx(pointed.mask_logits, abs=1e-4)


def test_each_photo_of_a_batch_chooses_its_own_grid_point(micro):
    images = [make_image(200, 100, seed) for seed in range(4)]
    together = predict_sam2(images, micro, grid=True)
    for image, result in zip(images, together, strict=True):
        [alone] = predict_sam2([image], micro, grid=True)
        assert alone.focus.point == result.focus.point
        assert alone.mask_logits == pytest.approx(result.mask_logits, abs=1e-4)


def test_pixels_that_a_thread_has_made_give_the_same(micro):
    images = [make_image(200, 100, seed) for seed in range(2)]
    pixels = [to_pixels(image, micro.image_size) for image in images]
    for one, other in zip(predict_sam2(images, micro), predict_sam2(images, micro, pixels=pixels), strict=True):
        assert (one.mask_logits == other.mask_logits).all()


@pytest.mark.parametrize("size_wh", [(1024, 1024), (333, 500), (4000, 30), (1, 700)])
def test_a_photo_comes_into_the_frame_as_metas_transform_brings_it(size_wh):
    image = make_image(*size_wh)
    expected = SAM2Transforms(resolution=256, mask_threshold=0)(image)
    assert torch.equal(to_pixels(image, 256), expected)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 700), (700, 1), (64, 64), (1800, 1200), (3, 2)])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.49])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_the_points_stay_inside_the_photo(width, height, margin, place):
    focus = (min(int(place * width), width - 1), min(int(place * height), height - 1))
    points = focus_points(focus, (width, height), margin)
    assert points[0].tolist() == list(focus)
    assert ((points >= 0) & (points < [width, height])).all()


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("sam2.1_hiera_tiny", "sam2.1_hiera_t"),
        ("sam2.1_hiera_small", "sam2.1_hiera_s"),
        ("sam2.1_hiera_base_plus", "sam2.1_hiera_b+"),
        ("sam2.1_hiera_large", "sam2.1_hiera_l"),
        ("sam2_hiera_large", "sam2_hiera_l"),
        ("weights/my_sam2.1_hiera_small_v7.pt", "sam2.1_hiera_s"),
        ("sam2.1_hiera_micro", "sam2.1_hiera_micro"),
    ],
)
def test_the_name_of_a_model_tells_its_config(model, config):
    assert config_name(model) == config
    assert find_config(config).name == f"{config}.yaml"


def test_a_name_that_tells_nothing_asks_for_the_config():
    with pytest.raises(CheckpointError, match=r"--sam-model weights.pt: .* add --sam-config with one of: .*hiera_l"):
        config_name("weights.pt")


@pytest.mark.parametrize("config", ["sam2.1_hiera_l", "configs/sam2.1/sam2.1_hiera_l.yaml", "sam2.1_hiera_l.yaml"])
def test_a_config_is_found_by_any_of_its_names(config):
    assert find_config(config) == available_configs()["sam2.1_hiera_l"]


def test_an_unknown_config_lists_the_known_ones():
    with pytest.raises(CheckpointError, match=r"--sam-config hiera: no such config; .*sam2.1_hiera_micro"):
        find_config("hiera")


@pytest.mark.parametrize(("config", "size"), [("sam2.1_hiera_l", 1024), ("sam2.1_hiera_micro", 256)])
def test_a_config_tells_the_frame(config, size):
    assert read_image_size(find_config(config)) == size


@pytest.mark.parametrize("text", ["model: [", "model: {image_size: 0}", "model: {image_size: large}"])
def test_a_config_that_tells_no_frame_leaves_the_complaint_to_building(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert read_image_size(path) == 1024


def test_this_projects_configs_come_first():
    assert available_configs()["sam2.1_hiera_micro"].is_relative_to(sam_utilities.CONFIGS_DIR)


@pytest.mark.parametrize("config", ["sam2_hiera_t", "sam2.1_hiera_t"])
def test_sam_2_and_sam_2_1_checkpoints_load_by_path(tmp_path, config):
    path = random_models.save_random_sam2(tmp_path / f"{config}iny.pt", config)
    assert load_sam2(str(path)).image_size == 1024


def test_a_checkpoint_of_another_architecture_names_both(sam2_checkpoint):
    with pytest.raises(CheckpointError) as error:
        load_sam2(str(sam2_checkpoint), "sam2.1_hiera_t")
    message = str(error.value)
    assert str(sam2_checkpoint) in message
    assert "does not fit the architecture sam2.1_hiera_t" in message
    assert "\n" not in message


def test_a_clip_checkpoint_is_no_sam_2(clip_checkpoint):
    with pytest.raises(CheckpointError, match="not a SAM 2 checkpoint"):
        load_sam2(str(clip_checkpoint), "sam2.1_hiera_micro")


def test_another_feature_pyramid_is_named_with_its_config(tmp_path, sam2_checkpoint):
    path = tmp_path / "mine.yaml"
    text = find_config("sam2.1_hiera_micro").read_text(encoding="utf-8")
    path.write_text(text.replace("scalp: 1", "scalp: 0"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"--sam-config .*mine.yaml: its image encoder's neck is none of SAM 2's"):
        load_sam2(str(sam2_checkpoint), str(path))


def test_a_yaml_that_describes_no_model_says_so(tmp_path, sam2_checkpoint):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {_target_: sam2.no_such_module.Nothing}")
    with pytest.raises(CheckpointError, match=r"mine.yaml: describes no SAM 2 model"):
        load_sam2(str(sam2_checkpoint), str(path))


def candidates(*rows_and_bands, side=40):
    """Returns (1, 4, side, side) logits, each with 5 in its first rows, then a band of so many pixels around 0."""
    logits = torch.full((1, 4, side, side), -5.0)
    for index, (rows, band, width) in enumerate(rows_and_bands):
        logits[0, index, :rows] = 5.0
        logits[0, index].view(-1)[rows * side : rows * side + band] = torch.linspace(-width, width, band)
    return logits


SURE, DISTANT, BLURRED, NEAR = (20, 0, 0), (10, 0, 0), (20, 200, 0.003), (20, 100, 0.3)
EMPTY = (0, 0, 0)


@pytest.mark.parametrize(
    ("masks", "ious", "doubtful"),
    [
        pytest.param([SURE, DISTANT, DISTANT, DISTANT], [0.9, 0.8, 0.5, 0.4], False, id="stable"),
        pytest.param([BLURRED, DISTANT, DISTANT, DISTANT], [0.9, 0.8, 0.5, 0.4], False, id="unstable"),
        pytest.param([NEAR, DISTANT, DISTANT, DISTANT], [0.9, 0.8, 0.5, 0.4], True, id="nearly stable"),
        pytest.param([NEAR, NEAR, DISTANT, DISTANT], [0.9, 0.8, 0.5, 0.4], False, id="nearly stable, to no effect"),
        pytest.param([BLURRED, DISTANT, SURE, SURE], [0.9, 0.8, 0.799, 0.4], True, id="unstable, rivals differ"),
        pytest.param([BLURRED, SURE, SURE, DISTANT], [0.9, 0.8, 0.799, 0.4], False, id="unstable, rivals alike"),
        pytest.param([SURE, DISTANT, SURE, DISTANT], [0.9, 0.8, 0.799, 0.4], False, id="stable, rivals do not matter"),
        pytest.param([EMPTY, DISTANT, SURE, DISTANT], [0.9, 0.8, 0.799, 0.4], False, id="empty, which is stable"),
    ],
)
def test_a_choice_is_doubtful_where_rounding_can_turn_it_over(micro, masks, ious, doubtful):
    result = doubtful_choices(candidates(*masks), torch.tensor([ious]), micro.sam_mask_decoder)
    assert result.tolist() == [doubtful]


def test_doubtful_photos_are_done_again_in_fp32(sam2_checkpoint, monkeypatch):
    images = [make_image(seed=seed) for seed in range(4)]
    exact = predict_sam2(images, load_sam2(str(sam2_checkpoint)))
    rounded = load_sam2(str(sam2_checkpoint), precision="bf16")
    doubted = torch.tensor([False, True, True, False])
    monkeypatch.setattr(sam_utilities, "doubtful_choices", lambda candidates, *_: doubted[: len(candidates)])
    for one, other, again in zip(predict_sam2(images, rounded), exact, doubted, strict=True):
        assert (np.abs(one.mask_logits - other.mask_logits).max() < 1e-4) == again


def test_a_focus_that_rounding_may_have_chosen_is_chosen_again_in_fp32(sam2_checkpoint, monkeypatch):
    image = make_image(200, 100, 1)
    liked = iter([{7: 0.75, 2: 0.745}, {7: 0.5, 2: 0.75}])  # in bf16, then in fp32

    def like(mask_logits, _):
        scores = torch.zeros(len(mask_logits))
        for number, score in next(liked).items():
            scores[number] = score
        return scores

    monkeypatch.setattr(focus_utilities, "mask_scores", like)
    monkeypatch.setattr(sam_utilities, "_SAME_MASK", 1)  # the masks of random weights are much alike
    monkeypatch.setattr(sam_utilities, "doubtful_choices", lambda candidates, *_: torch.zeros(len(candidates)) > 0)
    [result] = predict_sam2([image], load_sam2(str(sam2_checkpoint), precision="bf16"), grid=True)
    point = tuple(grid_points(200, 100)[2].tolist())
    assert result.focus == Focus("grid", point, confidence=0.75)
    [exact] = predict_sam2([image], load_sam2(str(sam2_checkpoint)), focuses=[Focus("point", point)])
    assert result.points.tolist() == exact.points.tolist()
    assert result.mask_logits == pytest.approx(exact.mask_logits, abs=1e-4)


def test_logits_of_any_size_are_handed_on_as_metas_predictor_does(sam2_checkpoint, tmp_path):
    content = torch.load(sam2_checkpoint, weights_only=True)
    for name in content["model"]:
        if "output_hypernetworks_mlps" in name and ".layers.2." in name:
            content["model"][name] *= 300
    path = tmp_path / sam2_checkpoint.name
    torch.save(content, path)
    images = [make_image(200, 100, seed) for seed in range(3)]
    results = predict_sam2(images, load_sam2(str(path)))
    assert all(np.abs(result.mask_logits).max() > 64 for result in results)
    for image, result, (mask, score) in zip(images, results, predict_photo_by_photo(images, path), strict=True):
        assert_same(image, result.mask_logits, mask)
        assert result.score == pytest.approx(score, abs=1e-5)


def test_the_single_mask_falls_back_to_the_best_of_three_as_in_build_sam2(micro):
    assert micro.sam_mask_decoder.dynamic_multimask_via_stability
    assert micro.sam_mask_decoder.dynamic_multimask_stability_delta == 0.05
    assert micro.sam_mask_decoder.dynamic_multimask_stability_thresh == 0.98


def test_bf16_is_for_the_image_encoder_alone(sam2_checkpoint):
    model = load_sam2(str(sam2_checkpoint), precision="bf16")
    assert (model.encoder.dtype, model.exact_encoder.dtype) == (torch.bfloat16, torch.float32)
    assert load_sam2(str(sam2_checkpoint)).exact_encoder is None
    assert {parameter.dtype for parameter in model.sam_mask_decoder.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.sam_prompt_encoder.parameters()} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_agrees_with_the_cpu(sam2_checkpoint, micro, precision):
    images = [make_image(640, 480, seed) for seed in range(4)]
    on_gpu = predict_sam2(images, load_sam2(str(sam2_checkpoint), device="cuda:0", precision=precision))
    for one, other in zip(predict_sam2(images, micro), on_gpu, strict=True):
        same = (one.mask_logits > 0) == (other.mask_logits > 0)
        assert same.mean() > (0.99 if precision == "fp32" else 0.95)
