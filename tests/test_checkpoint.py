"""Loading models from every layout, and the errors of those that do not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import COMMIT, TINY, hub_over_http, random_state, write_folder, write_hub_cache, write_pth
from safetensors.torch import save_file

from mast3r_sfm.errors import InputError, ModelError
from mast3r_sfm.model.checkpoint import Model, load_model, parse_constructor
from mast3r_sfm.model.config import PRESETS, ModelConfig
from mast3r_sfm.model.hub import HubUnreachableError, NotOnHubError
from mast3r_sfm.options import DEFAULT_MODEL


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state(TINY)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def _same(model: Model, state: dict[str, torch.Tensor]) -> bool:
    loaded = dict(model.network.named_parameters())
    return loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("shards", [1, 3])
def test_folder(tmp_path: Path, state: dict[str, torch.Tensor], shards: int) -> None:
    model = load_model(write_folder(tmp_path / "m", TINY, state, shards), "cpu")
    assert _same(model, state) and model.precision == "fp32" and model.revision is None


def test_safetensors_beside_its_config(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    assert _same(load_model(write_folder(tmp_path, TINY, state) / "model.safetensors", "cpu"), state)


@pytest.mark.parametrize("shards", [1, 2])
def test_hub_cache_offline(hub: Path, state: dict[str, torch.Tensor], shards: int) -> None:
    write_hub_cache(hub, DEFAULT_MODEL, TINY, state, shards)
    model = load_model(DEFAULT_MODEL, "cpu")
    assert _same(model, state)
    assert model.revision == COMMIT and model.licence == "CC BY-NC-SA 4.0" and model.name == DEFAULT_MODEL


def test_upstream_pth(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    aliased = dict(state)
    for name in list(state):  # the published files carry both names of the shared convolutions
        if "layer1_rn" in name:
            aliased[name.replace("layer1_rn", "layer_rn.0")] = state[name]
    aliased["prediction_head.weight"] = torch.zeros(3)
    raw = TINY | {"landscape_only": True, "patch_embed_cls": "ManyAR_PatchEmbed"}
    assert _same(load_model(write_pth(tmp_path / "m.pth", raw, aliased), "cpu"), state)


@pytest.mark.parametrize("kept", ["layer_rn.{k}", "layer{n}_rn"])
def test_either_name_of_the_shared_convolutions(tmp_path: Path, state: dict[str, torch.Tensor], kept: str) -> None:
    renamed = dict(state)
    for head in (1, 2):
        for k in range(4):
            scratch = f"downstream_head{head}.dpt.scratch"
            tensor = renamed.pop(f"{scratch}.layer{k + 1}_rn.weight")
            renamed[f"{scratch}.{kept.format(k=k, n=k + 1)}.weight"] = tensor
    assert _same(load_model(write_folder(tmp_path, TINY, renamed), "cpu"), state)


def test_one_decoder_is_copied_to_both(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    single = {name: value for name, value in state.items() if not name.startswith("dec_blocks2.")}
    network = load_model(write_folder(tmp_path, TINY, single), "cpu").network
    assert torch.equal(network.get_parameter("dec_blocks2.1.attn.qkv.weight"), state["dec_blocks.1.attn.qkv.weight"])


def test_half_precision_keeps_norms_in_float32(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    model = load_model(write_folder(tmp_path, TINY, state), "cpu", "bf16")
    assert model.network.get_parameter("enc_blocks.0.attn.qkv.weight").dtype == torch.bfloat16
    assert model.network.get_parameter("enc_blocks.0.norm1.weight").dtype == torch.float32


def test_download(hub: Path, tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sharded model from a hub over HTTP, once: the second time it comes from the cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    folder = write_folder(tmp_path / "repo", TINY, state, shards=2)
    with hub_over_http({"owner/model": folder}) as (endpoint, asked):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        model = load_model("owner/model", "cpu")
        assert _same(model, state) and model.revision == COMMIT
        assert any(line.startswith("GET /owner/model/resolve/main/model-00001-of-00002") for line in asked)
        with pytest.raises(NotOnHubError, match="no such model"):
            load_model("owner/other", "cpu")
        with pytest.raises(NotOnHubError, match="`image_size=224`"):
            load_model("naver/MASt3R_ViTLarge_BaseDecoder_224_catmlpdpt_metric", "cpu")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert _same(load_model("owner/model", "cpu"), state)


def _without(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != name}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (DEFAULT_MODEL, HubUnreachableError, "HF_HUB_OFFLINE"),
        ("no-such-model", ModelError, "neither an existing file or folder"),
        ("owner/not valid!", ModelError, "nor a valid model name"),
        ("./nowhere/model.pth", ModelError, "no such model file"),
    ],
)
def test_names_that_lead_nowhere(hub: Path, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_model(name, "cpu")
    assert "\n" not in str(caught.value)


def test_hub_cannot_be_reached(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for variable in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachableError, match="cannot be reached"):
        load_model(DEFAULT_MODEL, "cpu")


def test_weights_that_do_not_fit_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    broken = _without(state, "enc_norm.bias") | {"enc_extra.weight": torch.zeros(1)}
    with pytest.raises(ModelError, match=r"missing enc_norm\.bias; unexpected enc_extra\.weight"):
        load_model(write_folder(tmp_path / "a", TINY, broken), "cpu")
    misshaped = state | {"enc_norm.bias": torch.zeros(5)}
    with pytest.raises(ModelError, match=r"enc_norm\.bias has shape \(5,\).*needs \(32,\)"):
        load_model(write_folder(tmp_path / "b", TINY, misshaped), "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_type": None}, "'head_type' is missing"),
        ({"head_type": "mystery"}, "unknown head_type 'mystery'"),
        ({"pos_embed": "cosine"}, "pos_embed 'cosine'"),
        ({"output_mode": "pts3d+desc"}, "output_mode"),
        ({"depth_mode": ["exp", 0, 1]}, "unbounded"),
        ({"dec_depth": 4}, "dec_depth > 9"),
        ({"enc_num_heads": 5}, "enc_embed_dim 32"),
        ({"enc_depth": "many"}, "config.json"),
    ],
)
def test_unusable_configurations(
    tmp_path: Path, state: dict[str, torch.Tensor], change: dict[str, Any], message: str
) -> None:
    raw = {key: value for key, value in (TINY | change).items() if value is not None}
    with pytest.raises(ModelError, match=message):
        load_model(write_folder(tmp_path, raw, state), "cpu")


def test_damaged_files(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    folder = write_folder(tmp_path / "m", TINY, state)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_model(folder, "cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds neither"):
        load_model(folder, "cpu")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable as JSON"):
        load_model(folder, "cpu")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="must lie beside its weights"):
        load_model(folder, "cpu")


def test_pth_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"model": Harmful(), "args": None}, tmp_path / "m.pth")
    with pytest.raises(ModelError, match="not a checkpoint that can be read safely"):
        load_model(tmp_path / "m.pth", "cpu")
    assert not (tmp_path / "harm").exists()


def test_constructor_text_is_parsed_and_never_run() -> None:
    text = "Net(img_size=(512, 384), depth_mode=('exp', -inf, inf), two_confs=True, none=None)"
    assert parse_constructor(text, "x") == {
        "img_size": [512, 384],
        "depth_mode": ["exp", -float("inf"), float("inf")],
        "two_confs": True,
        "none": None,
    }
    for bad in ("Net(size=open('x'))", "print(1)", "[Net()]", "Net(", "a.b(x=1)"):
        with pytest.raises(ModelError, match="x: the model's description"):
            parse_constructor(bad, "x")


def test_unknown_fields_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    ModelConfig.from_dict(TINY | {"surprise": 1}, "config.json")
    assert "config.json: ignored unknown fields surprise" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_asked_for_and_absent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`device='cuda'`"):
        load_model("small", "cuda")


def test_bundled_model_loads() -> None:
    model = load_model("small", "cpu")
    assert model.licence == "Apache-2.0" and model.config.accept_squares
    assert all(bool(p.isfinite().all()) for p in model.network.parameters())


_MEASURE = """
import sys
import huggingface_hub, safetensors, torch
from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.app.memory import peak_memory
cpu = torch.device("cpu")
before = peak_memory(cpu)["ram"]
model = load_model(sys.argv[1], "cpu")
size = sum(p.numel() * p.element_size() for p in model.network.parameters())
touched = sum(float(p.sum()) for p in model.network.parameters())  # mapped files are read on first use
print(sum(p.numel() for p in model.network.parameters()), size, int(peak_memory(cpu)["ram"]), int(before))
"""


@pytest.mark.slow
def test_published_checkpoint_of_full_size(tmp_path: Path) -> None:
    """Random weights of exactly the published keys and shapes, in the hub's layout, offline, with little RAM."""
    config = PRESETS[DEFAULT_MODEL]
    raw = TINY | {"img_size": [512, 512], "output_mode": "pts3d+desc24", "enc_embed_dim": 1024, "enc_depth": 24,
                  "enc_num_heads": 16, "dec_embed_dim": 768, "dec_depth": 12, "dec_num_heads": 12}  # fmt: skip
    assert ModelConfig.from_dict(raw) == ModelConfig(**{**config.__dict__, "licence": None})
    golden = json.loads((Path(__file__).parent / "data" / "state_dict_keys.json").read_text())["mast3r_512_catmlpdpt"]
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator) * 0.02
        for name, shape in golden["shapes"].items()
        if name not in golden["aliases"]
    }
    snapshot = write_hub_cache(tmp_path / "hub", DEFAULT_MODEL, raw, {})
    save_file(state, snapshot / "model.safetensors")
    del state
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, DEFAULT_MODEL], env=environment, capture_output=True, text=True, check=True
    )
    count, size, peak, before = map(int, done.stdout.split())
    print(f"weights {size / 1e9:.3f} GB, peak {peak / 1e9:.3f} GB, of that before loading {before / 1e9:.3f} GB")
    assert count == 688_638_856 == golden["parameters"]
    assert peak <= 1.3 * size


def test_small_looks_closer_where_that_costs_little() -> None:
    """By device and number of photos alone."""
    config = load_model("small", "cpu").config
    sizes = [config.usual_image_size(count, on_gpu) for on_gpu in (False, True) for count in (1, 9, 10, 200)]
    assert sizes == [320, 320, 224, 224, 320, 320, 320, 320]
    published = PRESETS[DEFAULT_MODEL]
    assert {published.usual_image_size(count, on_gpu) for on_gpu in (False, True) for count in (2, 200)} == {512}
