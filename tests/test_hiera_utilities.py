import pytest
import torch
from omegaconf import OmegaConf

import sam_utilities
from device_utilities import has_bf16
from hiera_utilities import HieraEncoder
from sam_utilities import find_config


def build(config, **changes):
    loaded = OmegaConf.load(find_config(config))
    for key, value in {"image_size": 256, **changes}.items():
        OmegaConf.update(loaded, f"model.{key}", value)
    torch.manual_seed(0)
    model = sam_utilities.instantiate_sam2(loaded).eval().requires_grad_(requires_grad=False)
    torch.nn.init.normal_(model.image_encoder.trunk.pos_embed, std=0.5)  # zero at first, which would hide a mistake
    torch.nn.init.normal_(model.image_encoder.trunk.pos_embed_window, std=0.5)
    return model


def metas_features(model, pixels):
    """As SAM2ImagePredictor computes them."""
    fine, middle, coarse = model.image_encoder(pixels)["backbone_fpn"]
    decoder = model.sam_mask_decoder
    coarse = coarse + model.no_mem_embed.view(1, -1, 1, 1) if model.directly_add_no_mem_embed else coarse
    return coarse, decoder.conv_s0(fine), decoder.conv_s1(middle)


def relative_error(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


# Windows of 14 and 7 do not divide the maps of tiny, small and base_plus; those of large and micro do.
@pytest.mark.parametrize(
    "config",
    ["sam2.1_hiera_t", "sam2.1_hiera_s", "sam2.1_hiera_b+", "sam2.1_hiera_l", "sam2_hiera_t", "sam2.1_hiera_micro"],
)
def test_the_encoder_computes_metas_features(config):
    model = build(config)
    pixels = torch.randn(2, 3, 256, 256)
    expected = metas_features(model, pixels)
    for mine, metas in zip(HieraEncoder(model)(pixels), expected, strict=True):
        assert mine.shape == metas.shape
        assert relative_error(mine, metas) < 1e-5
    if has_bf16("cpu"):  # else it is emulated, hundreds of times slower
        for mine, metas in zip(HieraEncoder(model, torch.bfloat16)(pixels), expected, strict=True):
            assert mine.dtype == torch.float32
            assert relative_error(mine, metas) < 0.03


def test_the_default_model_keeps_its_windows_from_one_block_to_the_next(monkeypatch):
    import hiera_utilities

    moved = []
    in_windows = hiera_utilities._in_windows

    def watch(x, window):
        result = in_windows(x, window)
        if result is not x:
            moved.append((x.shape[3], window))
        return result

    monkeypatch.setattr(hiera_utilities, "_in_windows", watch)
    HieraEncoder(build("sam2.1_hiera_l", image_size=512))(torch.randn(1, 3, 512, 512))
    assert moved == [(128, 8), (2, 16)]


def test_torch_compiles_the_kinds_of_blocks_once_each():
    model = build("sam2.1_hiera_micro")
    encoder, pixels, kinds = HieraEncoder(model), torch.randn(2, 3, 256, 256), []

    def backend(graph, _):
        kinds.append(graph)
        return graph.forward

    with torch.inference_mode():
        eager = encoder(pixels)
        encoder.compile(dynamic=False, fullgraph=True, backend=backend)
        for mine, other in zip(encoder(pixels), eager, strict=True):
            assert relative_error(mine, other) < 1e-5
        assert 0 < len(kinds) <= len(model.image_encoder.trunk.blocks)
        found = len(kinds)
        encoder(pixels)
    assert len(kinds) == found


def test_the_model_is_left_as_it_was():
    model = build("sam2.1_hiera_micro")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    HieraEncoder(model, torch.bfloat16)(torch.randn(1, 3, 256, 256))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("change", [{"image_encoder.scalp": 0}, {"image_encoder.neck.fpn_top_down_levels": [3]}])
def test_another_feature_pyramid_is_refused(change):
    with pytest.raises(ValueError, match="neck is none of SAM 2's"):
        HieraEncoder(build("sam2.1_hiera_micro", **change))
