"""What the benchmarks run instead of published weights and photos: random networks, ideal predictions of a scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from mast3r_sfm.device import compute_dtype
from mast3r_sfm.model.checkpoint import Model, _assign
from mast3r_sfm.model.config import ModelConfig
from mast3r_sfm.model.network import TwoViewNetwork
from mast3r_sfm.model.network.blocks import LayerNorm
from mast3r_sfm.types import PairPrediction, ViewPrediction
from synthetic import RenderedScene, ideal_pair_predictions
from synthetic.ideal import pointmaps

DESCRIPTOR_NOISE = 0.05


def random_weights(config: ModelConfig, device: torch.device) -> dict[str, Callable[[], torch.Tensor]]:
    """Key -> a function that makes the tensor on `device`: float32, of a scale that keeps activations near 1."""
    with torch.device("meta"):
        network = TwoViewNetwork(config)
    generator = torch.Generator(device).manual_seed(0)

    def norm(weight: nn.Parameter, name: str) -> torch.Tensor:
        return torch.full(weight.shape, float(name.endswith("weight")), device=device)

    def random(weight: nn.Parameter, name: str) -> torch.Tensor:
        scale = weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.02
        return scale * torch.randn(weight.shape, device=device, generator=generator)

    make: dict[str, Callable[[], torch.Tensor]] = {}
    for name, weight in network.named_parameters():
        is_norm = isinstance(network.get_submodule(name.rpartition(".")[0]), LayerNorm)
        make[name] = partial(norm if is_norm else random, weight, name)
    return make


def random_model(config: ModelConfig, device: torch.device, precision: str) -> Model:
    """A network of the configuration with random weights, made on the device, put in place as loaded ones are."""
    with torch.device("meta"):
        network = TwoViewNetwork(config)
    _assign(network, random_weights(config, device), compute_dtype(precision), device, "random")
    return Model(network.eval(), config, "random", None, "none", device, precision)


class IdealPredictor:
    """Ideal predictions with descriptors: random Fourier features of the place in the world, plus noise.

    Nothing stays on `device`: the scene may lie on the CPU, and only what the pairs of one call need is copied.
    """

    def __init__(self, scene: RenderedScene, desc_dim: int, device: torch.device) -> None:
        self.scene = scene
        self.device = device
        depth = scene.depth[0]
        scales = torch.logspace(-0.5, 1.3, desc_dim // 2)[:, None]  # from the whole scene to a few pixels
        directions = torch.randn(desc_dim // 2, 3, generator=torch.Generator().manual_seed(1))
        self.frequencies = (directions * scales / float(depth[depth > 0].median())).to(device)
        self.noise = torch.Generator(device).manual_seed(2)

    @torch.inference_mode()
    def __call__(self, pairs: Sequence[tuple[int, int]]) -> list[PairPrediction]:
        """Predictions of pairs in a few dozen kernels."""
        seeds = [i * 10_007 + j for i, j in pairs]
        used = sorted({view for pair in pairs for view in pair})
        pairs_here = [(used.index(i), used.index(j)) for i, j in pairs]
        here = replace(
            self.scene,
            rgb=self.scene.rgb[:0],
            depth=self.scene.depth[used].to(self.device),
            K=self.scene.K[used],
            world_from_cam=self.scene.world_from_cam[used],
        )
        exact = ideal_pair_predictions(here, pairs_here, seeds=seeds)
        features = self._features(here)
        clean = [features[[pair[side] for pair in pairs_here]] for side in (0, 1)]
        desc = [self._noisy(clean[side]) for side in (0, 1, 1, 0)]
        described = []
        for k, ((i, j), pair) in enumerate(zip(pairs, exact, strict=True)):
            maps = (pair.i_in_i, pair.j_in_i, pair.j_in_j, pair.i_in_j)
            described.append(
                PairPrediction(i, j, *(
                    ViewPrediction(one.points, one.conf, desc[m][k], one.conf / 2) for m, one in enumerate(maps)
                ))
            )  # fmt: skip
        return described

    def _features(self, scene: RenderedScene) -> torch.Tensor:
        """(n, H, W, D) descriptors of the places that the pixels of a scene's n views show."""
        pose = scene.world_from_cam.float().to(self.device)
        own = pointmaps(scene, list(range(len(pose))), self.device)
        world = own.flatten(1, 2) @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
        phase = (world @ self.frequencies.T).view(*own.shape[:3], -1)
        return torch.cat([phase.cos(), phase.sin()], -1)

    def _noisy(self, desc: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(desc.shape, generator=self.noise, device=self.device)
        return torch.nn.functional.normalize(desc + DESCRIPTOR_NOISE * noise, dim=-1)
