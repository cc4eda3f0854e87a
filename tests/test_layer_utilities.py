import pytest
import torch
from torch.nn import functional

import layer_utilities
from layer_utilities import LayerNorm, Linear, attention, has_fused_linear

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PRECISIONS = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "bf16"])


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@PRECISIONS
@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_linear_layer_is_torchs_own(dtype, activation, bias):
    weight, x = draw(48, 32) / 6, draw(2, 5, 32)
    offset = draw(48) if bias else None
    expected = functional.linear(x, weight, offset)
    expected = getattr(functional, activation)(expected) if activation else expected
    layer = Linear(weight.to(dtype), offset if offset is None else offset.to(dtype), activation)
    assert layer(x.to(dtype)).float() == pytest.approx(expected, abs=3 * TOLERANCE[dtype])


@PRECISIONS
def test_a_residual_is_added(dtype):
    weight, bias, x, residual = draw(48, 32) / 6, draw(48), draw(2, 5, 32), draw(2, 5, 48)
    layer = Linear(weight.to(dtype), bias.to(dtype))
    result = layer.added_to(residual.to(dtype), x.to(dtype)).float()
    assert result == pytest.approx(residual + functional.linear(x, weight, bias), abs=3 * TOLERANCE[dtype])


@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
def test_in_fp32_a_layer_is_torchs_own_to_the_last_bit_and_leaves_what_it_reads(activation):
    weight, bias, x, residual = draw(48, 32) / 6, draw(48), draw(2, 5, 32), draw(2, 5, 48)
    before = [each.clone() for each in (weight, bias, x, residual)]
    layer, product = Linear(weight, bias, activation), functional.linear(x, weight, bias)
    expected = getattr(functional, activation)(product) if activation else product
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.added_to(residual, x), residual + expected)
    assert all(map(torch.equal, (weight, bias, x, residual), before))


@pytest.mark.skipif(not has_fused_linear(), reason="no bf16 in oneDNN here")
@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
def test_the_fused_layer_and_its_stand_in_agree(monkeypatch, activation):
    weight, bias, x = draw(48, 32).bfloat16() / 6, draw(48).bfloat16(), draw(7, 32).bfloat16()
    fused = Linear(weight, bias, activation)
    monkeypatch.setattr(layer_utilities, "has_fused_linear", lambda: False)
    plain = Linear(weight, bias, activation)
    assert (fused._packed is not None, plain._packed is not None) == (True, False)
    assert fused(x).float() == pytest.approx(plain(x).float(), abs=2e-2)
    if activation is None:
        residual = draw(7, 48).bfloat16()
        assert fused.added_to(residual, x).float() == pytest.approx(plain.added_to(residual, x).float(), abs=4e-2)


def test_a_torch_without_the_private_layer_is_noticed(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", type("Nothing", (), {})())
    has_fused_linear.cache_clear()
    assert not has_fused_linear()
    monkeypatch.undo()
    has_fused_linear.cache_clear()


@PRECISIONS
def test_layer_normalisation_is_torchs_own(dtype):
    norm = torch.nn.LayerNorm(32, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = draw(4, 32)
    assert LayerNorm(norm, dtype)(x.to(dtype)).float() == pytest.approx(norm(x).detach(), abs=2 * TOLERANCE[dtype])


@PRECISIONS
@pytest.mark.parametrize("scores_at_once", [1 << 26, 300], ids=["whole", "in parts"])
@pytest.mark.parametrize("queries", [16, 7, 1])
@pytest.mark.parametrize("written_out", [True, False], ids=["written out", "torch's"])
def test_attention_is_torchs_own(monkeypatch, dtype, scores_at_once, queries, written_out):
    monkeypatch.setattr(layer_utilities, "_SCORES_AT_ONCE", scores_at_once)
    monkeypatch.setattr(layer_utilities, "_writes_attention_out", lambda: written_out)
    q, k, v = draw(2, 4, queries, 8), draw(2, 4, 16, 8), draw(2, 4, 16, 8) + 1
    expected = functional.scaled_dot_product_attention(q, k, v)
    result = attention(*(each.to(dtype) for each in (q, k, v)))
    assert result.shape == expected.shape
    assert result.float() == pytest.approx(expected, abs=2 * TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "written_out"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_attention_is_written_out_where_torchs_kernel_is_slower(monkeypatch, avx512_bf16, amx, written_out):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    called = []
    monkeypatch.setattr(layer_utilities, "written_out_attention", lambda *each: called.append(1) or each[0])
    for dtype in TOLERANCE:
        attention(*(draw(1, 1, 2, 8, dtype=dtype) for _ in "qkv"))
    assert len(called) == written_out  # never in fp32


@pytest.mark.parametrize(("windows", "queries", "keys"), [(8, 16, 16), (12, 4, 16), (7, 16, 16)])
def test_small_windows_that_attend_together_see_only_their_own(windows, queries, keys):
    q = draw(windows, queries, 3, 8).transpose(1, 2)
    k, v = (draw(windows, keys, 3, 8 + offset)[..., :8].transpose(1, 2) for offset in (0, 1))
    expected = functional.scaled_dot_product_attention(q, k, v)
    assert layer_utilities._attention_together(q, k, v) == pytest.approx(expected, abs=1e-6)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@CUDA
@PRECISIONS
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_on_cuda_layers_are_torchs_own_to_rounding(dtype, compiled):
    norm = torch.nn.LayerNorm(48, eps=1e-6)
    norm.weight.data, norm.bias.data = draw(48), draw(48) / 2
    weights, biases = [draw(48, 48) / 6, draw(192, 48) / 6], [draw(48) / 3, draw(192) / 3]
    x, residual = draw(40, 48), draw(40, 48) + 1
    total = residual + functional.linear(x, weights[0], biases[0])
    expected = functional.gelu(functional.linear(norm(total), weights[1], biases[1]))

    norm = norm.to("cuda")
    project, mlp_in = (
        Linear(weight.to("cuda", dtype), bias.to("cuda", dtype), activation)
        for weight, bias, activation in zip(weights, biases, (None, "gelu"), strict=True)
    )
    own_norm = LayerNorm(norm, dtype)

    def run(residual, x):
        total, normalised = own_norm.of_sum(residual, project, x)
        return total, mlp_in(normalised), own_norm(total)

    run = torch.compile(run) if compiled else run
    found = run(residual.to("cuda", dtype), x.to("cuda", dtype))
    for mine, torchs in zip(found, (total, expected, norm.cpu()(total)), strict=True):
        assert mine.float().cpu() == pytest.approx(torchs.detach(), abs=5 * TOLERANCE[dtype])


@CUDA
@PRECISIONS
@pytest.mark.parametrize(("windows", "queries", "keys"), [(70_000, 16, 16), (8, 4, 16), (6, 64, 64)])
def test_on_cuda_attention_is_torchs_own(dtype, windows, queries, keys):
    q, k, v = (draw(windows, count, 2, 72).transpose(1, 2) for count in (queries, keys, keys))
    expected = functional.scaled_dot_product_attention(q, k, v)
    found = attention(*(each.to("cuda", dtype) for each in (q, k, v)))
    # Of 161 million elements; pytest.approx compares each in Python, and takes minutes.
    torch.testing.assert_close(found.float().cpu(), expected, atol=TOLERANCE[dtype], rtol=0)
