import numpy as np
import pytest
import torch
from clip.model import CLIP
from hypothesis import given
from hypothesis import strategies as st

import clip_tower_utilities
from clip_tower_utilities import ImageTower, TextTower, beginnings, image_tower
from clip_utilities import tokenize


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = CLIP(64, 64, 3, 128, 16, 77, 49408, 128, 2, 3).eval().requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at first, which would hide a mistake
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def cosine(one, other):
    return torch.cosine_similarity(one.float(), other.float()).min().item()


def test_the_image_tower_computes_clips_features(model):
    pixels = torch.randn(3, 3, 64, 64)
    expected = model.encode_image(pixels)
    assert ImageTower(model.visual, torch.float32)(pixels) == pytest.approx(expected, abs=1e-4)
    assert cosine(ImageTower(model.visual, torch.bfloat16)(pixels), expected) > 0.999


def test_the_text_tower_computes_clips_features(model, prompts):
    tokens = tokenize(prompts)
    expected = model.encode_text(tokens)
    assert TextTower(model, torch.float32)(tokens.numpy()) == pytest.approx(expected, abs=1e-4)
    assert cosine(TextTower(model, torch.bfloat16)(tokens.numpy()), expected) > 0.999


def test_prompts_need_not_fit_into_one_tree(model, prompts, monkeypatch):
    tokens = tokenize(prompts[:60]).numpy()
    expected = TextTower(model, torch.float32)(tokens)
    monkeypatch.setattr(clip_tower_utilities, "_PROMPTS_AT_ONCE", 7)
    assert TextTower(model, torch.float32)(tokens) == pytest.approx(expected, abs=1e-5)


def test_the_default_prompts_share_two_thirds_of_their_tokens(prompts):
    tokens = tokenize(prompts).numpy()
    assert len(beginnings(tokens).tokens) < 0.34 * (tokens.argmax(axis=1) + 1).sum()


_END = 99
_PROMPT = st.lists(st.integers(0, 3), max_size=5)


@given(st.lists(_PROMPT, min_size=1, max_size=12))
def test_every_prompt_is_the_path_to_its_end(prompts):
    tokens = np.zeros((len(prompts), 7), np.int64)  # 0 is a token like any other, and fills up
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt) + 2] = [98, *prompt, _END]
    tree = beginnings(tokens)
    for prompt, end in zip(prompts, tree.ends, strict=True):
        path = tree.ancestors[end][: tree.depths[end] + 1]
        assert tree.tokens[path].tolist() == [98, *prompt, _END]
        assert path[-1] == end
    distinct = {
        tuple(row[:length]) for row, prompt in zip(tokens, prompts, strict=True) for length in range(1, len(prompt) + 3)
    }
    assert len(tree.tokens) == len(distinct)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resnet_runs_as_clip_has_it_in_fp32_whatever_the_precision(dtype):
    torch.manual_seed(0)
    resnet = CLIP(64, 64, (1, 1, 1, 1), 64, None, 77, 49408, 64, 1, 1).visual.eval()
    pixels = torch.randn(2, 3, 64, 64)
    expected = resnet(pixels)
    assert torch.equal(image_tower(resnet, dtype)(pixels), expected)
