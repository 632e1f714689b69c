"""The network against hand-worked answers, then against the goldens of the published implementation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TypeVar

import golden_rule
import numpy as np
import pytest
import torch
from triton_interpreter import interpreted, outside, run_interpreted

from mast3r_sfm.cpu import has_onednn, linear
from mast3r_sfm.device import has_triton
from mast3r_sfm.model.config import PRESETS, Activation, ModelConfig
from mast3r_sfm.model.network import TwoViewNetwork, dpt, operations, operations_plain, two_view
from mast3r_sfm.model.network.blocks import LayerNorm
from mast3r_sfm.model.network.heads import Head
from mast3r_sfm.model.network.maps import activate_confidence, activate_points, unpatchify
from mast3r_sfm.model.network.operations import choose_operations
from mast3r_sfm.model.network.operations_plain import OneDnnOperations, PlainOperations, _interpolation
from mast3r_sfm.model.network.rope import rope_table, rotate

DATA = Path(__file__).parent / "data"
SHAPES = {
    "land": ((1, 64, 96), (1, 64, 96)),
    "port": ((1, 96, 64), (1, 96, 64)),
    "mixed": ((1, 64, 96), (1, 96, 64)),
    "odd": ((1, 48, 80), (1, 48, 80)),
    "batch2": ((2, 64, 96), (2, 64, 96)),
}
NETWORKS = ["net_catmlpdpt", "net_catconv", "net_dust3r_dpt", "net_dust3r_linear"]
TOKENS, MAPS = 5e-6, 2e-5  # tolerances, relative to the array's maximum
PLAIN = PlainOperations()


def test_golden_rule_check_values() -> None:
    np.testing.assert_allclose(
        golden_rule.normal("mask_token", (3,)), [-0.207474997, -1.276239394, -1.316954760], atol=1e-9
    )


def test_rope_rotates_by_position_times_frequency() -> None:
    # head_dim 4: one frequency (1) per axis. Token (y=1, x=2): (u_y, v_y) turns by 1 rad, (u_x, v_x) by 2 rad
    table = rope_table((2, 3), 4, 100.0, torch.device("cpu"))
    out = rotate(torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 6, 1, 4), table)[0, 5, 0]
    expected = [np.cos(1), np.sin(1), -np.sin(2), np.cos(2)]
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


def test_rope_scores_depend_on_relative_position_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 16)
    table = rope_table((5, 7), 16, 100.0, torch.device("cpu"))
    Q, K = (rotate(vector.expand(1, 35, 1, 16), table)[0, :, 0] for vector in (q, k))
    score = (Q @ K.T).reshape(5, 7, 5, 7)
    torch.testing.assert_close(score[0, 1, 2, 4], score[2, 3, 4, 6], atol=1e-5, rtol=0)
    assert abs(score[0, 1, 2, 4] - score[0, 1, 2, 5]) > 1e-3


def test_unpatchify_places_channels() -> None:
    # 1 x 2 tokens, side 2, 1 channel: token t carries (10 t + dy * 2 + dx)
    tokens = torch.tensor([[[0.0, 1, 2, 3], [10, 11, 12, 13]]])
    expected = [[0, 1, 10, 11], [2, 3, 12, 13]]
    assert unpatchify(tokens, (1, 2), 2)[0, :, :, 0].tolist() == expected


def test_interpolation_as_a_matrix() -> None:
    x = torch.randn(3, 5)
    matrix = _interpolation(10, 5, torch.float32, torch.device("cpu"))
    expected = torch.nn.functional.interpolate(x[None], size=10, mode="linear", align_corners=True)[0]
    torch.testing.assert_close(x @ matrix.T, expected)


def test_image_not_a_multiple_of_the_patch_is_refused() -> None:
    network = TwoViewNetwork(_tiny("linear", patch_size=8))
    with pytest.raises(ValueError, match="20x16"):
        network.encode(torch.zeros(1, 3, 16, 20))


def _tiny(head: str, **extra: object) -> ModelConfig:
    raw = {
        "head_type": head,
        "output_mode": "pts3d+desc6" if head.startswith("cat") else "pts3d",
        "depth_mode": ["exp", -np.inf, np.inf],
        "conf_mode": ["exp", 1, np.inf],
        "pos_embed": "RoPE100",
        "enc_embed_dim": 32,
        "enc_depth": 1,
        "enc_num_heads": 2,
        "dec_embed_dim": 24,
        "dec_depth": 10 if "dpt" in head else 2,
        "dec_num_heads": 2,
        "two_confs": head.startswith("cat"),
    }
    return ModelConfig.from_dict(raw | extra)


@pytest.mark.parametrize("head", ["catmlp+dpt", "catconv", "dpt", "linear"])
@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_every_patch_size_gives_maps_of_the_image_size(head: str, patch_size: int) -> None:
    torch.manual_seed(0)
    network = TwoViewNetwork(_tiny(head, patch_size=patch_size)).eval()
    H, W = 3 * patch_size, 4 * patch_size
    with torch.inference_mode():
        out1, out2 = network(torch.randn(1, 3, H, W), torch.randn(1, 3, W, H))
    assert out1.points.shape == (1, H, W, 3) and out2.points.shape == (1, W, H, 3)
    assert out1.conf.shape == (1, H, W) and bool((out1.conf >= 1).all())
    if head.startswith("cat"):
        assert out2.desc is not None and out2.desc_conf is not None
        torch.testing.assert_close(out2.desc.norm(dim=-1), torch.ones(1, W, H))
    else:
        assert out1.desc is None and out1.desc_conf is None


@pytest.mark.parametrize("head", ["catmlp+dpt", "catconv", "dpt", "linear"])
@torch.inference_mode()
def test_heads_read_the_layers_that_they_name(head: str) -> None:
    torch.manual_seed(0)
    network = TwoViewNetwork(_tiny(head)).eval()
    tokens = network.encode(torch.randn(2, 3, 32, 48))
    every, _ = network.decode_tokens(tokens[:1], tokens[1:], (2, 3), (2, 3), PLAIN)
    named = {layer: every[layer] for layer in network.downstream_head1.layers}
    for all_layers, only_named in zip(
        network.downstream_head1(every, (2, 3), PLAIN), network.downstream_head1(named, (2, 3), PLAIN), strict=True
    ):
        assert (all_layers is None and only_named is None) or torch.equal(all_layers, only_named)
    for unread in set(range(len(every))) - named.keys():
        every[unread] = torch.full_like(every[unread], torch.nan)
    assert bool(network.downstream_head1(every, (2, 3), PLAIN).points.isfinite().all())


@torch.inference_mode()
def test_full_size_maps_of_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = TwoViewNetwork(_tiny("dpt")).eval()
    images = torch.randn(2, 3, 3, 32, 48)
    whole = network(*images)
    monkeypatch.setattr(operations_plain, "_PIXEL_BYTES", 2 * 2 * dpt.LAST * 32 * 48 * 4)  # two of three images
    for a, b in zip(whole, network(*images), strict=True):
        torch.testing.assert_close(b.points, a.points, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(b.conf, a.conf, rtol=1e-4, atol=1e-5)


def _golden_network(name: str) -> tuple[TwoViewNetwork, dict[str, np.ndarray]]:
    with np.load(DATA / f"{name}.npz") as file:
        golden = dict(file)
    network = TwoViewNetwork(ModelConfig.from_dict(json.loads(str(golden["config"])))).eval()
    state = {key: golden_rule.weight(key, tuple(value.shape)) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network, golden


def _check(actual: torch.Tensor, expected: np.ndarray, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    error = np.abs(actual.numpy() - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{what}: relative error {error:.2e}"


def _raw_points(head: Head, layers: dict[int, torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    patch = head.config.patch_size
    return PLAIN.raw_points(head.dpt(layers, grid, PLAIN), (grid[0] * patch, grid[1] * patch), *head.dpt.last_convs)


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_golden_networks(name: str) -> None:
    network, golden = _golden_network(name)
    checked = set()

    def check(key: str, actual: torch.Tensor, tolerance: float) -> None:
        _check(actual, golden[key], tolerance, f"{name} {key}")
        checked.add(key)

    for case, (shape1, shape2) in SHAPES.items():
        images = [golden_rule.image(case, v + 1, (b, 3, h, w)) for v, (b, h, w) in enumerate((shape1, shape2))]
        tokens = [network.encode(image) for image in images]
        for v in range(2):
            check(f"{case}.enc{v + 1}", tokens[v], TOKENS)
        for direction, (a, b) in {"ab": (0, 1), "ba": (1, 0)}.items():
            if f"{case}.{direction}.pts3d1" not in golden:
                continue
            key = f"{case}.{direction}"
            grids = [network.grid((images[v].shape[-2], images[v].shape[-1])) for v in (a, b)]
            lists = network.decode_tokens(tokens[a], tokens[b], grids[0], grids[1], PLAIN)
            heads = network.downstream_head1, network.downstream_head2
            for side in range(2):
                layers = lists[side]
                check(f"{key}.dec{side + 1}_last", layers[network.config.dec_depth], TOKENS)
                for layer in range(1, len(layers) - 1):
                    if f"{key}.dec{side + 1}_layer{layer}" in golden:
                        check(f"{key}.dec{side + 1}_layer{layer}", layers[layer], TOKENS)
                head = heads[side]
                if f"{key}.dpt_raw{side + 1}" in golden:
                    raw = _raw_points(head, layers, grids[side]).permute(0, 3, 1, 2)
                    check(f"{key}.dpt_raw{side + 1}", raw[:, :, ::2, ::2], MAPS)
                out = head(layers, grids[side], PLAIN)
                for field, full in (("pts3d", out.points), ("conf", out.conf), ("desc", out.desc),
                                    ("desc_conf", out.desc_conf)):  # fmt: skip
                    golden_key = f"{key}.{field}{side + 1}"
                    if golden_key not in golden:
                        assert full is None
                        continue
                    assert full is not None
                    sampled = full if full.shape == golden[golden_key].shape else full[:, 1::5, 2::5]
                    check(golden_key, sampled, MAPS)
    missed = {key for key in golden if key != "config" and not key.endswith(".mean")} - checked
    assert not missed


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_forward_equals_its_parts(name: str) -> None:
    """The plain call on two images, as the goldens' producers used it."""
    network, golden = _golden_network(name)
    for case in ("land", "mixed"):
        (b1, h1, w1), (b2, h2, w2) = SHAPES[case]
        out1, out2 = network(golden_rule.image(case, 1, (b1, 3, h1, w1)), golden_rule.image(case, 2, (b2, 3, h2, w2)))
        for side, out in enumerate((out1, out2), 1):
            expected = golden[f"{case}.ab.conf{side}"]
            conf = out.conf if out.conf.shape == expected.shape else out.conf[:, 1::5, 2::5]
            _check(conf, expected, MAPS, f"{name} {case} conf{side}")


GOLDEN_KEYS = {
    "mast3r_512_catmlpdpt": "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric",
    "dust3r_512_dpt": "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "dust3r_512_linear": "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "dust3r_224_linear": "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear",
}


@pytest.mark.parametrize("key", GOLDEN_KEYS)
def test_published_state_dicts(key: str) -> None:
    golden = json.loads((DATA / "state_dict_keys.json").read_text())[key]
    with torch.device("meta"):
        network = TwoViewNetwork(PRESETS[GOLDEN_KEYS[key]])
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == golden["shapes"]
    assert sum(p.numel() for p in network.parameters()) == golden["parameters"]
    by_id: dict[int, str] = {}
    aliases = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if id(parameter) in by_id:
            aliases[name] = by_id[id(parameter)]
        else:
            by_id[id(parameter)] = name
    assert aliases == golden["aliases"]


# ------------------------------------------------------------------ choice of the operations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_operations_are_plain_where_fused_kernels_cannot_be(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(operations, "has_triton", lambda: True)
    assert type(choose_operations(gpu, dtype)) is PlainOperations  # gradients are enabled
    with torch.inference_mode():
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            assert type(choose_operations(gpu, dtype)) is PlainOperations
        monkeypatch.setattr(operations, "has_triton", lambda: False)
        assert type(choose_operations(gpu, dtype)) is PlainOperations


@pytest.mark.parametrize("onednn", [True, False])
def test_operations_on_a_cpu(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "has_onednn", lambda: onednn)
    cpu = torch.device("cpu")
    assert type(choose_operations(cpu, torch.float32)) is PlainOperations  # gradients are enabled
    with torch.inference_mode():
        assert type(choose_operations(cpu, torch.float32)) is (OneDnnOperations if onednn else PlainOperations)
        assert type(choose_operations(cpu, torch.bfloat16)) is PlainOperations


@pytest.mark.skipif(not has_onednn(), reason="torch is built without oneDNN")
@torch.inference_mode()
def test_products_of_onednn_are_as_exact_as_those_of_torch() -> None:
    layer = torch.nn.Linear(448, 100)
    x = torch.randn(2, 30, 448, generator=torch.Generator().manual_seed(0))
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    for gelu in (False, True):
        true = torch.nn.functional.gelu(exact) if gelu else exact
        errors = [
            float((ops.linear(layer, x, gelu) - true).norm() / true.norm())
            for ops in (OneDnnOperations(), PlainOperations())
        ]
        assert errors[0] < max(1e-6, 2 * errors[1])
    assert linear(x[0, :5], layer.weight).shape == (5, 100)
    assert linear(x[0, :0], layer.weight).shape == (0, 100)


@pytest.mark.skipif(not has_onednn(), reason="torch is built without oneDNN")
@torch.inference_mode()
def test_attention_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts as well, with more keys than queries, and heads that lie apart in memory."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 200, 9, 32, generator=generator)
    q, k, v = qkv[:, :150, :3], qkv[:, :, 3:6], qkv[:, :, 6:]
    expected = PlainOperations().attend(q, k, v)
    for scores in (1 << 20, 1):
        monkeypatch.setattr(operations_plain, "_SCORES", scores)
        torch.testing.assert_close(OneDnnOperations().attend(q, k, v), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_operations_of_inference_on_a_gpu(context: type) -> None:
    from mast3r_sfm.model.network.operations_triton import FusedOperations, FusedRotation

    with context():
        chosen = {dtype: type(choose_operations(torch.device("cuda", 0), dtype)) for dtype in
                  (torch.float32, torch.float16, torch.bfloat16)}  # fmt: skip
    assert chosen == {
        torch.float32: FusedRotation, torch.float16: FusedOperations, torch.bfloat16: FusedOperations,
    }  # fmt: skip


@pytest.mark.parametrize("head", ["catmlp+dpt", "catconv"])
@torch.inference_mode()
def test_operations_are_chosen_once_a_call_and_handed_down(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    class Recorded(PlainOperations):
        def __getattribute__(self, name: str) -> object:
            used.append(name)
            return super().__getattribute__(name)

    chosen = []

    def choose(device: torch.device, dtype: torch.dtype) -> Recorded:
        chosen.append((device.type, dtype))
        return Recorded()

    monkeypatch.setattr(two_view, "choose_operations", choose)
    network = TwoViewNetwork(_tiny(head)).eval()
    tokens = network.encode(torch.randn(2, 3, 32, 48))
    assert chosen == [("cpu", torch.float32)]
    network.decode(tokens[:1], tokens[1:], (32, 48), (32, 48))
    assert chosen == [("cpu", torch.float32)] * 2
    blocks, decoders = 1, 2 * network.config.dec_depth
    assert used.count("rotate") == blocks + 3 * decoders
    assert used.count("add_and_normalise") == blocks + 2 * decoders
    assert used.count("normalise") == blocks + 2 * decoders + 2
    assert used.count("descriptors") == 2
    assert used.count("points_and_conf") == (2 if "dpt" in head else 0)


# ------------------------------------------------------------------ fused kernels, in Triton's interpreter
@outside
@pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
def test_in_the_interpreter() -> None:
    run_interpreted(__file__, "-k", "fused")


@interpreted
@pytest.mark.parametrize("width", [192, 768])
@torch.inference_mode()
def test_fused_addition_and_norm(width: int) -> None:
    from mast3r_sfm.model.network import fused_triton

    torch.manual_seed(0)
    x, delta = torch.randn(2, 3, width) * 3, torch.randn(2, 3, width).half()
    before = x.clone()
    norm = LayerNorm(width)
    norm.weight.normal_()
    norm.bias.normal_()
    total, out = fused_triton.add_and_normalise(x, delta, norm, torch.float16)
    assert torch.equal(total, before + delta) and torch.equal(x, before)
    torch.testing.assert_close(out, norm(before + delta).half(), rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(
        fused_triton.normalise(x, norm, torch.float16), norm(before).half(), rtol=2e-3, atol=1e-5
    )


@interpreted
@torch.inference_mode()
def test_fused_bias_residuals_and_relu() -> None:
    from mast3r_sfm.model.network import fused_triton

    torch.manual_seed(0)
    x, first, second = (torch.randn(2, 24, 5, 3).half() for _ in range(3))  # not channels-last
    bias = torch.randn(24).half()
    for residuals in ((), (first,), (first, second)):
        expected = x.float() + bias.float()[:, None, None]
        for residual in residuals:
            expected = expected + residual.float()
        for relu in (False, True):
            out = fused_triton.add_bias(x.clone(), bias, residuals, relu)
            torch.testing.assert_close(out, (expected.relu() if relu else expected).half(), rtol=2e-3, atol=1e-3)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.inference_mode()
def test_fused_rotation(dtype: torch.dtype) -> None:
    from mast3r_sfm.model.network.operations_triton import FusedRotation

    torch.manual_seed(0)
    table = rope_table((2, 3), 16, 100.0, torch.device("cpu"))
    heads = torch.randn(2, 6, 9, 16).to(dtype)[:, :, :6]  # a token's other heads lie between, as the values do
    expected = rotate(heads, table)
    found = FusedRotation().rotate(heads, table)
    assert found.dtype == dtype
    rtol, atol = (2e-3, 1e-3) if dtype == torch.float16 else (1e-5, 1e-6)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@interpreted
@pytest.mark.parametrize(
    "conv",
    [
        torch.nn.Conv2d(24, 16, 1),
        torch.nn.Conv2d(24, 24, 3, padding=1),
        torch.nn.Conv2d(24, 16, 3, stride=2, padding=1),
        torch.nn.Conv2d(24, 16, 3, padding=1, bias=False),
        torch.nn.ConvTranspose2d(24, 16, 4, stride=4),
        torch.nn.ConvTranspose2d(24, 16, (2, 3), stride=(2, 3)),
    ],
    ids=str,
)
@torch.inference_mode()
def test_fused_convolutions(conv: torch.nn.Conv2d | torch.nn.ConvTranspose2d) -> None:
    from mast3r_sfm.model.network.operations_triton import FusedOperations

    torch.manual_seed(0)
    conv = copy.deepcopy(conv).half()
    x = torch.randn(2, 24, 5, 3).half().to(memory_format=torch.channels_last)
    exact = copy.deepcopy(conv).float()(x.float())
    found = FusedOperations().convolve(conv, x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.float(), exact, rtol=5e-3, atol=5e-3)
    if isinstance(conv, torch.nn.Conv2d):
        residual = torch.randn_like(found)
        found = FusedOperations().convolve(conv, x, residual, relu=True)
        torch.testing.assert_close(found.float(), (exact + residual.float()).relu(), rtol=5e-3, atol=5e-3)


@interpreted
@pytest.mark.parametrize("size", [(10, 6), (1, 7), (13, 13)])
@torch.inference_mode()
def test_fused_upsampling(size: tuple[int, int]) -> None:
    from mast3r_sfm.model.network import fused_triton

    torch.manual_seed(0)
    x = torch.randn(2, 12, 5, 3).half()
    expected = torch.nn.functional.interpolate(x.float(), size=size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(fused_triton.upsample(x, size), expected.half(), rtol=2e-3, atol=1e-3)


@interpreted
@pytest.mark.parametrize("side", [8, 14])
@pytest.mark.parametrize("mode", [("exp", 1.0, np.inf), ("sigmoid", 1.0, 5.0), ("exp", 0.0, 0.5), None])
@torch.inference_mode()
def test_fused_descriptors(side: int, mode: tuple[str, float, float] | None) -> None:
    from mast3r_sfm.model.network import fused_triton

    torch.manual_seed(0)
    conf_mode = None if mode is None else Activation(*mode)
    local = torch.randn(2, 6, (6 + (mode is not None)) * side**2).half()
    desc, conf = fused_triton.descriptors(local, (2, 3), side, 6, conf_mode)
    maps = unpatchify(local, (2, 3), side).float()
    torch.testing.assert_close(desc, torch.nn.functional.normalize(maps[..., :6], dim=-1), rtol=1e-5, atol=1e-6)
    if conf_mode is None:
        assert conf is None
    else:
        assert conf is not None
        torch.testing.assert_close(conf, activate_confidence(maps[..., 6], conf_mode), rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("depth", ["exp", "square", "linear"])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
@torch.inference_mode()
def test_fused_points(depth: str, scale: float) -> None:
    from mast3r_sfm.model.network import fused_triton

    torch.manual_seed(0)
    hidden, hidden_bias = torch.randn(2, 24, 5, 7).half() * scale, torch.randn(24).half() * scale
    last = torch.nn.Conv2d(24, 4, 1)
    assert last.bias is not None
    last.weight.data, last.bias.data = last.weight.half(), last.bias.half() * scale
    depth_mode, conf_mode = Activation(depth, -np.inf, np.inf), Activation("exp", 1.0, np.inf)
    points, conf = torch.full((2, 5, 7, 3), torch.nan), torch.full((2, 5, 7), torch.nan)
    fused_triton.write_points(hidden, hidden_bias, last, depth_mode, conf_mode, points, conf)
    relu = (hidden.float() + hidden_bias.float()[:, None, None]).relu().permute(0, 2, 3, 1)
    raw = torch.nn.functional.linear(relu, last.weight.float().flatten(1), last.bias.float())
    torch.testing.assert_close(points, activate_points(raw[..., :3], depth_mode), rtol=2e-5, atol=1e-6 * scale**2)
    torch.testing.assert_close(conf, activate_confidence(raw[..., 3], conf_mode), rtol=1e-5, atol=0)


@interpreted
@torch.inference_mode()
def test_fused_activations_keep_what_is_not_finite() -> None:
    from mast3r_sfm.model.network import fused_triton

    hidden = torch.zeros(1, 8, 1, 2).half()
    hidden[0, 3, 0, 1] = torch.nan
    last = torch.nn.Conv2d(8, 4, 1).half()
    points, conf = torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2)
    modes = Activation("exp", -np.inf, np.inf), Activation("exp", 1.0, 3.0)
    fused_triton.write_points(hidden, torch.zeros(8).half(), last, *modes, points, conf)
    assert points.isfinite().all(-1).flatten().tolist() == [True, False] == conf.isfinite().flatten().tolist()
    out = fused_triton.add_bias(hidden, torch.zeros(8).half(), (), relu=True)
    assert int(out.isnan().sum()) == 1


Layer = TypeVar("Layer", bound=torch.nn.Module)


def _half(module: Layer) -> Layer:
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if not isinstance(part, LayerNorm):
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.half()
    return copied


def _as_accurate(found: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> bool:
    """float16 both ways on a CPU against float32."""
    bound = max(2 * (plain - exact).abs().max(), 2e-3 * exact.abs().max())
    return found.shape == exact.shape and bool((found - exact).abs().max() <= bound)


@interpreted
@torch.inference_mode()
def test_fused_blocks_are_as_accurate_as_plain_ones() -> None:
    from mast3r_sfm.model.network.operations_triton import FusedOperations

    torch.manual_seed(0)
    network = TwoViewNetwork(_tiny("linear")).eval()
    x, y, tokens = torch.randn(2, 6, 24), torch.randn(2, 6, 24), torch.randn(2, 6, 32)
    rope, wide = (rope_table((2, 3), width // 2, 100.0, x.device) for width in (24, 32))
    decoder, encoder = network.dec_blocks[0], network.enc_blocks[0]
    exact = decoder(x, y, rope, rope, PLAIN), encoder(tokens, wide, PLAIN)
    decoder, encoder, ops = _half(decoder), _half(encoder), FusedOperations()
    plain = decoder(x, y, rope, rope, PLAIN), encoder(tokens, wide, PLAIN)
    fused = decoder(x, y, rope, rope, ops), encoder(tokens, wide, ops)
    for found, *references in zip(fused, plain, exact, strict=True):
        assert found.dtype == torch.float32 and _as_accurate(found, *references)


@interpreted
@torch.inference_mode()
def test_fused_head_is_as_accurate_as_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd grid, and full-size maps one image at a time."""
    from mast3r_sfm.model.network.operations_triton import FusedOperations

    torch.manual_seed(0)
    head = TwoViewNetwork(_tiny("catmlp+dpt")).eval().downstream_head1
    tokens = {layer: torch.randn(2, 3, 24 if layer else 32) for layer in head.layers}
    exact = head(tokens, (3, 1), PLAIN)
    head = _half(head)
    tokens = {layer: value.half() for layer, value in tokens.items()}
    plain = head(tokens, (3, 1), PLAIN)
    monkeypatch.setattr(operations_plain, "_PIXEL_BYTES", 1)
    for found, *references in zip(head(tokens, (3, 1), FusedOperations()), plain, exact, strict=True):
        assert found.dtype == torch.float32 and found.is_contiguous() and _as_accurate(found, *references)
