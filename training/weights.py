"""Weights in and out: the hub layout, fp16, in shards that are small enough to carry."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.model.config import ModelConfig
from mast3r_sfm.model.network import TwoViewNetwork

NUM_SHARDS = 3
POINT_BIAS = (0.0, 0.0, 1.2, -1.0)
"""First bias of the last point layer: about two metres ahead, a low confidence."""


def load_trainable(folder: Path, device: torch.device) -> TwoViewNetwork:
    """The network of a hub-layout folder in float32, ready for gradients."""
    network = load_model(folder, str(device), "fp32").network
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name != "mask_token")
    return network.train()


def new_network(config_file: Path, device: torch.device, seed: int = 0) -> TwoViewNetwork:
    """A network with random weights for a `config.json`."""
    torch.manual_seed(seed)
    network = TwoViewNetwork(ModelConfig.from_dict(json.loads(config_file.read_text()), str(config_file)))
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d) and name.endswith("head_pts3d.head.3"):
            assert module.bias is not None
            module.bias.data = torch.tensor(POINT_BIAS)
    return network.to(device).train()


def read_raw_config(folder_or_file: Path) -> dict[str, object]:
    """The `config.json` as it is written."""
    path = folder_or_file / "config.json" if folder_or_file.is_dir() else folder_or_file
    return dict(json.loads(path.read_text()))


def save_weights(network: nn.Module, config: dict[str, object], folder: Path) -> None:
    """Writes `config.json`, `NUM_SHARDS` fp16 shards of about equal size and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in network.state_dict().items()}
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(NUM_SHARDS)]
    filled = [0] * NUM_SHARDS
    for key in sorted(state, key=lambda key: (-state[key].numel(), key)):
        least = filled.index(min(filled))
        shards[least][key] = state[key]
        filled[least] += state[key].numel()
    names = [f"model-{k + 1:05d}-of-{NUM_SHARDS:05d}.safetensors" for k in range(NUM_SHARDS)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.numel() * 2 for tensor in state.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in sorted(shard)},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
