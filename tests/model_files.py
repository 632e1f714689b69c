"""Random models in every layout that the tool reads: folder, shards, hub cache, upstream .pth, a hub over HTTP."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mast3r_sfm.model.config import ModelConfig
from mast3r_sfm.model.network import TwoViewNetwork

COMMIT = "0123456789abcdef0123456789abcdef01234567"

TINY: dict[str, Any] = {
    "pos_embed": "RoPE100",
    "patch_embed_cls": "PatchEmbedDust3R",
    "img_size": [64, 64],
    "head_type": "catmlp+dpt",
    "output_mode": "pts3d+desc8",
    "depth_mode": ["exp", -float("inf"), float("inf")],
    "conf_mode": ["exp", 1, float("inf")],
    "enc_embed_dim": 32,
    "enc_depth": 2,
    "enc_num_heads": 2,
    "dec_embed_dim": 24,
    "dec_depth": 10,
    "dec_num_heads": 2,
    "two_confs": True,
    "desc_conf_mode": ["exp", 0, float("inf")],
    "landscape_only": False,
}


def random_state(raw: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the configuration, without the alias names, as safetensors files of the hub have them."""
    torch.manual_seed(seed)
    network = TwoViewNetwork(ModelConfig.from_dict(raw))
    return {name: value.detach() for name, value in network.named_parameters()}


def write_folder(folder: Path, raw: dict[str, Any], state: dict[str, torch.Tensor], shards: int = 1) -> Path:
    """`config.json` with `model.safetensors`, or shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name] for name in names[k::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_hub_cache(hub: Path, name: str, raw: dict[str, Any], state: dict[str, torch.Tensor], shards: int = 1) -> Path:
    """The hub client's cache layout: models--OWNER--NAME with refs and a snapshot."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return write_folder(repository / "snapshots" / COMMIT, raw, state, shards)


def write_pth(path: Path, raw: dict[str, Any], state: dict[str, torch.Tensor]) -> Path:
    """An upstream training checkpoint: the state dict, and the constructor call as text."""

    def literal(value: object) -> str:
        if isinstance(value, list):
            return f"({', '.join(map(literal, value))})"
        return repr(value)  # infinities print as the bare name inf

    arguments = ", ".join(f"{key}={literal(value)}" for key, value in raw.items())
    namespace = argparse.Namespace(model=f"AsymmetricMASt3R({arguments})", epochs=10)
    torch.save({"model": state, "args": namespace, "epoch": 3, "best_so_far": 0.5}, path)
    return path


@contextmanager
def hub_over_http(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """A stand-in of the hub's file downloads on a loopback port: the endpoint's URL and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            parts = self.path.lstrip("/").split("/")
            folder = repositories.get("/".join(parts[:2]))
            if folder is None:
                self._refuse("RepoNotFound")
                return
            file = folder / "/".join(parts[4:])
            if not file.is_file():
                self._refuse("EntryNotFound")
                return
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{len(data)}-{file.name}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def _refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
