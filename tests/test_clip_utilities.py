import os
import time

import clip
import numpy as np
import pytest
import torch
from PIL import Image

import clip_utilities
import random_models
from clip_utilities import ClipModel, tokenize
from conftest import make_image
from errors import CheckpointError, PromptError

ITEMS = ("red", "dark red", "blue")
PROMPTS = [f"{prefix} {item} car" for item in ITEMS for prefix in ("a", "the")]


@pytest.fixture
def small(clip_checkpoint, tmp_path):
    return ClipModel(str(clip_checkpoint), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)


@pytest.fixture(scope="session")
def clips_own(clip_checkpoint):
    """The same weights through CLIP's own loader: (model, preprocess)."""
    return clip.load(str(clip_checkpoint), device="cpu")


def clips_own_probabilities(clips_own, image, prompts):
    model, preprocess = clips_own
    with torch.no_grad():
        logits, _ = model(preprocess(Image.fromarray(image))[None], clip.tokenize(prompts))
    return logits.softmax(dim=-1)[0].numpy()


def test_probabilities_equal_clips_own_over_all_972_prompts(clips_own, clip_checkpoint, prompts, cars, tmp_path):
    images = [make_image(*size, seed) for seed, size in enumerate([(640, 426), (90, 200), (64, 64), (1000, 190)])]
    ours = ClipModel(str(clip_checkpoint), items=cars["items"], prompts=prompts, checkpoints_dir=tmp_path)
    for image, label in zip(images, ours.process(images), strict=True):
        expected = clips_own_probabilities(clips_own, image, prompts)
        per_item = expected.reshape(len(cars["items"]), -1)
        assert label.prompt == prompts[expected.argmax()]
        assert label.probability == pytest.approx(expected.max(), abs=1e-4)
        for item, probability in label.top_items:
            assert probability == pytest.approx(per_item[cars["items"].index(item)].sum(), abs=1e-4)


def test_every_single_probability_equals_clips_own(clips_own, clip_checkpoint, prompts, cars, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(clip_utilities.prompt_utilities, "decide", lambda by_prompt, *_, **__: seen.append(by_prompt))
    ours = ClipModel(str(clip_checkpoint), items=cars["items"], prompts=prompts, checkpoints_dir=tmp_path)
    ours.process([make_image(320, 240)])
    expected = clips_own_probabilities(clips_own, make_image(320, 240), prompts)
    assert np.abs(seen[0] - expected).max() < 1e-4
    assert expected.max() - expected.min() > 1e-3  # the prompts do differ


def test_the_ensemble_uses_the_mean_text_feature_of_each_item(clips_own, clip_checkpoint, tmp_path):
    image = make_image(100, 100)
    ours = ClipModel(str(clip_checkpoint), items=ITEMS, prompts=PROMPTS, decision="ensemble", checkpoints_dir=tmp_path)
    model, preprocess = clips_own
    with torch.no_grad():
        text = model.encode_text(clip.tokenize(PROMPTS))
        means = (text / text.norm(dim=-1, keepdim=True)).view(3, 2, -1).mean(dim=1)
        means /= means.norm(dim=-1, keepdim=True)
        feature = model.encode_image(preprocess(Image.fromarray(image))[None])
        feature /= feature.norm(dim=-1, keepdim=True)
        expected = (model.logit_scale.exp() * feature @ means.T).softmax(dim=-1)[0]
    [label] = ours.process([image])
    assert label.item == ITEMS[int(expected.argmax())]
    assert label.item_probability == pytest.approx(expected.max().item(), abs=1e-4)


def test_a_resnet_labels_as_clip_does_and_in_bf16_has_the_features_of_fp32(tmp_path):
    path = random_models.save_random_clip(tmp_path / "resnet.pt", resnet=True)
    exact, rounded = (
        ClipModel(str(path), items=ITEMS, prompts=PROMPTS, precision=precision, checkpoints_dir=tmp_path)
        for precision in ("fp32", "bf16")
    )
    images = [make_image(100, 80, seed) for seed in range(3)]
    for image, label in zip(images, exact.process(images), strict=True):
        expected = clips_own_probabilities(clip.load(str(path), device="cpu"), image, PROMPTS)
        assert label.prompt == PROMPTS[expected.argmax()]
        assert label.probability == pytest.approx(expected.max(), abs=1e-4)
    assert torch.equal(rounded.encode(images), exact.encode(images))


def test_a_batch_gives_each_photo_the_label_that_it_gets_alone(small):
    images = [make_image(seed=seed) for seed in range(4)]
    alone = [small.process([image])[0] for image in images]
    for together, one in zip(small.process(images), alone, strict=True):
        assert (together.item, together.prompt) == (one.item, one.prompt)
        assert together.probability == pytest.approx(one.probability, abs=1e-5)


def test_the_shortest_context_gives_the_features_of_the_full_one(clips_own, prompts):
    model, _ = clips_own
    short, full = tokenize(prompts[:50]), clip.tokenize(prompts[:50])
    assert short.shape[1] < 20 < full.shape[1] == 77
    with torch.no_grad():
        difference = (model.encode_text(short) - model.encode_text(full)).abs().max()
    assert difference < 1e-4


def test_an_exclamation_mark_is_a_token_and_no_padding():
    [short], [full] = tokenize(["red!!!"]), clip.tokenize(["red!!!"])
    assert (short == full[: len(short)]).all()
    assert short[-1] == full.max()


def test_text_features_are_computed_once_and_then_read_from_the_cache(clip_checkpoint, tmp_path, monkeypatch):
    first = ClipModel(str(clip_checkpoint), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)
    monkeypatch.setattr("clip_tower_utilities.TextTower.forward", lambda *_: pytest.fail("encoded again"))
    second = ClipModel(str(clip_checkpoint), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)
    assert second.process([make_image()]) == first.process([make_image()])


@pytest.mark.parametrize("change", ["prompts", "words in other prompts", "weights", "precision"])
def test_other_prompts_weights_or_precision_do_not_meet_in_the_cache(tmp_path, change):
    paths = [random_models.save_random_clip(tmp_path / f"{seed}.pt", seed=seed) for seed in (0, 1)]
    ClipModel(str(paths[0]), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)
    other = paths[1] if change == "weights" else paths[0]
    prompts = {
        "prompts": [prompt.replace("car", "van") for prompt in PROMPTS],
        "words in other prompts": [f"{PROMPTS[0]} {PROMPTS[1].split()[0]}", "red car", *PROMPTS[2:]],
    }.get(change, PROMPTS)
    precision = "bf16" if change == "precision" else "fp32"
    ClipModel(str(other), items=ITEMS, prompts=prompts, precision=precision, checkpoints_dir=tmp_path)
    assert len(list((tmp_path / "text_features").iterdir())) == 2


def test_kept_features_give_the_label_whatever_their_length(small):
    features = small.encode([make_image(seed=seed) for seed in range(3)]).cpu().numpy()
    expected = small.decide_stored(features)
    for one, other in zip(small.decide_stored(features * 0.5), expected, strict=True):
        assert one.prompt == other.prompt
        assert one.probability == pytest.approx(other.probability, abs=1e-6)


def save_archive(path, features):
    with path.open("wb") as file:
        np.savez(file, features=features)


def save_header(path, shape):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, _: path.write_bytes(path.read_bytes()[:100]),
        lambda path, _: path.write_bytes(path.read_bytes()[:-1]),
        lambda path, _: path.write_bytes(b""),
        lambda path, _: path.write_bytes(b"?" * 9),
        lambda path, features: np.save(path, np.where(features == features[0, 0], np.nan, features)),
        lambda path, features: np.save(path, features * 2),
        lambda path, features: np.save(path, features.astype(np.float64)),
        lambda path, features: np.save(path, features[1:]),
        lambda path, features: np.save(path, features.astype(object)),
        save_archive,
        lambda path, _: save_header(path, (10**12, 64)),
        lambda path, _: save_header(path, (10**30, 64)),
        lambda path, _: save_header(path, (-1, 64)),
        lambda path, _: path.write_bytes(b"\x93NUMPY\1\0\xff\xff" + b"(" * 65_535),
    ],
    ids=[
        *("half a header", "a byte is missing", "empty", "something else", "NaN", "another length", "float64"),
        *("other prompts", "pickled objects", "an archive", "terabytes", "a huge number", "a negative one", "nested"),
    ],
)
def test_a_damaged_cache_is_computed_again(clip_checkpoint, tmp_path, small, damage):
    [cache] = (tmp_path / "text_features").iterdir()
    before = cache.read_bytes()
    damage(cache, np.load(cache))
    again = ClipModel(str(clip_checkpoint), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)
    assert again.process([make_image()]) == small.process([make_image()])
    assert cache.read_bytes() == before


def test_what_killed_runs_left_in_the_cache_is_cleared_away_after_an_hour(clip_checkpoint, tmp_path):
    folder = tmp_path / "text_features"
    folder.mkdir()
    for name, age in (("old", 4000), ("new", 3000)):
        (folder / f".tmp-1-{name}.npy").write_bytes(b"half")
        os.utime(folder / f".tmp-1-{name}.npy", times=(time.time() - age,) * 2)
    ClipModel(str(clip_checkpoint), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)
    assert [path.name for path in folder.glob(".tmp-*")] == [".tmp-1-new.npy"]
    assert len(list(folder.iterdir())) == 2


def test_a_cache_that_can_not_be_written_is_done_without(clip_checkpoint, tmp_path, small, caplog):
    (tmp_path / "file").write_bytes(b"")
    caplog.set_level("INFO", "sam2vit")
    model = ClipModel(str(clip_checkpoint), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path / "file")
    assert model.process([make_image()]) == small.process([make_image()])
    assert "text features are not kept for the next run" in caplog.text


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_torchscript_archive_like_openais_gives_the_same_labels(clips_own, small, tmp_path):
    model, _ = clips_own
    path = tmp_path / "ViT-micro.pt"
    example = (torch.zeros(1, 3, 64, 64), clip.tokenize(["a car"]))
    torch.jit.save(torch.jit.trace(model, example, check_trace=False), path)
    archived = ClipModel(str(path), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)
    assert archived.process([make_image()]) == small.process([make_image()])


@pytest.mark.parametrize(("width", "height"), [(1, 700), (700, 1), (1, 1), (2000, 30)])
def test_strips_are_labelled_without_being_enlarged_whole(small, width, height):
    assert small.process([make_image(width, height)])[0].item in ITEMS


def test_a_prompt_of_more_than_77_tokens_is_quoted_with_its_length():
    long = "a " * 80 + "car"
    with pytest.raises(PromptError, match=r"make the prompt 'a a a .*' of 83 tokens; CLIP reads at most 77"):
        tokenize(["a car", long])


def test_a_prompt_that_is_too_long_is_told_before_those_after_it_are_encoded():
    def prompts():
        yield "a " * 80
        pytest.fail("encoded the next one")

    with pytest.raises(PromptError, match="of 82 tokens"):
        tokenize(prompts())


def test_a_long_word_is_quoted_too():
    with pytest.raises(PromptError, match=r"make the prompt 'ababab.*\.\.\.' of"):
        tokenize(["ab" * 499])


@pytest.mark.parametrize(
    ("items", "prompts", "shown"),
    [
        (
            ["red", "dark red"],
            ["a red", "a dark red", "a dark red", "a dark dark red"],
            "'red' and 'dark red': both .*",
        ),
        (["a&amp;b", "a&b"], ["a a&amp;b car", "a a&b car"], "'a&amp;b' and 'a&b': both have the prompt 'a a&b car'"),
    ],
)
def test_two_items_share_no_prompt(items, prompts, shown):
    with pytest.raises(PromptError, match=shown):
        tokenize(prompts, items)


def test_the_prompts_of_one_item_may_be_alike():
    assert len(tokenize(["a car", "a  car", "a bus", "the bus"], ["car", "bus"])) == 4


def test_no_photo_is_a_batch_too(small):
    assert small.process([]) == []


def test_a_prompt_of_exactly_77_tokens_is_read():
    assert tokenize(["a " * 75]).shape == (1, 77)


def test_an_unknown_model_lists_the_known_ones(tmp_path):
    with pytest.raises(CheckpointError, match=r"--clip-model ViT-X: no such model: .*ViT-L/14@336px"):
        ClipModel("ViT-X", items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)


def test_a_sam_2_checkpoint_is_no_clip(sam2_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="not a CLIP model"):
        ClipModel(str(sam2_checkpoint), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)


def test_a_clip_that_lacks_weights_is_one_line(clip_checkpoint, tmp_path):
    weights = torch.load(clip_checkpoint, weights_only=True)
    del weights["visual.ln_post.weight"]
    torch.save(weights, tmp_path / "lacking.pt")
    with pytest.raises(CheckpointError, match=r"lacking.pt: not a CLIP model: .*ln_post") as error:
        ClipModel(str(tmp_path / "lacking.pt"), items=ITEMS, prompts=PROMPTS, checkpoints_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_agrees_with_the_cpu(clip_checkpoint, small, tmp_path, precision):
    images = [make_image(seed=seed) for seed in range(4)]
    on_gpu = ClipModel(
        str(clip_checkpoint), "cuda:0", items=ITEMS, prompts=PROMPTS, precision=precision, checkpoints_dir=tmp_path
    )
    for one, other in zip(small.process(images), on_gpu.process(images), strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-3 if precision == "fp32" else 0.05)
