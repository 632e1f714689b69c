"""The network against hand-worked answers, then against the goldens of the published implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import golden_rule
from mast3r_sfm.config import PRESETS, ModelConfig
from mast3r_sfm.network import TwoViewNetwork
from mast3r_sfm.network.dpt import _interpolation
from mast3r_sfm.network.heads import unpatchify
from mast3r_sfm.network.rope import rope_table, rotate

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
            grids = [network.grid(tuple(images[v].shape[-2:])) for v in (a, b)]
            lists = network.decode_tokens(tokens[a], tokens[b], *grids)
            heads = network.downstream_head1, network.downstream_head2
            for side in range(2):
                layers = lists[side]
                check(f"{key}.dec{side + 1}_last", layers[-1], TOKENS)
                for layer in range(1, len(layers) - 1):
                    if f"{key}.dec{side + 1}_layer{layer}" in golden:
                        check(f"{key}.dec{side + 1}_layer{layer}", layers[layer], TOKENS)
                head = heads[side]
                if f"{key}.dpt_raw{side + 1}" in golden:
                    raw = head.raw_points(layers, grids[side]).permute(0, 3, 1, 2)
                    check(f"{key}.dpt_raw{side + 1}", raw[:, :, ::2, ::2], MAPS)
                out = head(layers, grids[side])
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
