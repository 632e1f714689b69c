"""How good Gaussian splats become with given cameras: PSNR of photos that took no part in the training.

    python -m benchmarks.splats FOLDER [FOLDER ...] [--points scene.ply] [--held-out 0003.jpg 0007.jpg] [--seeds 0 1 2]

FOLDER holds `images/` and `sparse/` with pinhole cameras, as COLMAP's image_undistorter and `--export colmap
--undistort` write them. Needs a CUDA device and gsplat (`pip install gsplat`, which compiles itself when it is first
used). The training is the usual one of 3D Gaussian splatting (Kerbl and others, SIGGRAPH 2023) with gsplat's default
strategy: L1 and structural similarity at 0.8 to 0.2, densification up to two thirds of the steps. The cameras stay as
they are: what they have wrong shows in the photos held out.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import torch
from PIL import Image
from torch.nn import functional as F

SH_DEGREE = 3
SH_BAND_0 = 0.28209479177387814  # the constant spherical harmonic
RATES = {"means": 1.6e-4, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 2.5e-3 / 20}
SSIM_WEIGHT = 0.2


@dataclass(frozen=True)
class Photo:
    """One view: `rgb` (H, W, 3) in [0, 1], `K` (3, 3), `cam_from_world` (4, 4), all on the device."""

    name: str
    rgb: torch.Tensor
    K: torch.Tensor
    cam_from_world: torch.Tensor


@dataclass(frozen=True)
class SplatScene:
    """Photos, and the points (n, 3) and colours (n, 3) in [0, 1] that the splats start from."""

    photos: tuple[Photo, ...]
    points: torch.Tensor
    colours: torch.Tensor

    @property
    def radius(self) -> float:
        """Largest distance of a camera from the mean of all, as in the published training."""
        centres = torch.stack([-p.cam_from_world[:3, :3].T @ p.cam_from_world[:3, 3] for p in self.photos])
        return 1.1 * float((centres - centres.mean(0)).norm(dim=1).max())


def read_scene(folder: Path, points: Path | None, most: int, device: torch.device) -> SplatScene:
    """A COLMAP folder; with `points` (PLY) these, at most `most`, instead of COLMAP's own."""
    model = pycolmap.Reconstruction(str(folder / "sparse"))
    photos = []
    for image in sorted(model.images.values(), key=lambda one: one.name):
        with Image.open(folder / "images" / image.name) as picture:
            rgb = np.asarray(picture.convert("RGB"), np.float32) / 255
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        K = model.cameras[image.camera_id].calibration_matrix()
        tensors = [torch.tensor(x, dtype=torch.float32, device=device) for x in (rgb, K, pose)]
        photos.append(Photo(image.name, *tensors))
    if points is None:
        xyz = np.array([p.xyz for p in model.points3D.values()])
        colours = np.array([p.color for p in model.points3D.values()]) / 255
    else:
        from plyfile import PlyData

        vertex = PlyData.read(str(points))["vertex"]
        chosen = np.random.default_rng(0).permutation(len(vertex))[:most]
        xyz = np.stack([vertex[k][chosen] for k in ("x", "y", "z")], 1)
        colours = np.stack([vertex[k][chosen] for k in ("red", "green", "blue")], 1) / 255
    to_device = [torch.tensor(x, dtype=torch.float32, device=device) for x in (xyz, colours)]
    return SplatScene(tuple(photos), *to_device)


def first_splats(scene: SplatScene) -> dict[str, torch.nn.Parameter]:
    """A round, faint splat at every point, as large as the distance to its three nearest neighbours."""
    from scipy.spatial import KDTree

    xyz = scene.points.cpu().numpy()
    distance = KDTree(xyz).query(xyz, k=4)[0][:, 1:]
    size = torch.tensor(np.sqrt((distance**2).mean(1)), dtype=torch.float32, device=scene.points.device)
    count = len(xyz)
    values = {
        "means": scene.points,
        "scales": size.clamp_min(1e-7).log()[:, None].repeat(1, 3),
        "quats": torch.rand(count, 4, device=size.device),
        "opacities": torch.full((count,), math.log(0.1 / 0.9), device=size.device),
        "sh0": ((scene.colours - 0.5) / SH_BAND_0)[:, None],
        "shN": torch.zeros(count, (SH_DEGREE + 1) ** 2 - 1, 3, device=size.device),
    }
    return {name: torch.nn.Parameter(value) for name, value in values.items()}


def render(splats: dict[str, torch.nn.Parameter], photo: Photo, degree: int) -> tuple[torch.Tensor, dict]:
    """(1, H, W, 3) of a photo's camera, and what gsplat's strategy wants to know."""
    from gsplat import rasterization

    height, width = photo.rgb.shape[:2]
    picture, _, info = rasterization(
        splats["means"],
        splats["quats"],
        splats["scales"].exp(),
        splats["opacities"].sigmoid(),
        torch.cat([splats["sh0"], splats["shN"]], 1),
        photo.cam_from_world[None],
        photo.K[None],
        width,
        height,
        sh_degree=degree,
        packed=False,
    )
    return picture, info


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity (Wang and others, 2004) of pictures (1, H, W, 3), Gaussian window of 11, sigma 1.5."""
    x = torch.arange(11, device=a.device) - 5.0
    window = (-(x**2) / 4.5).exp()
    window = (window / window.sum()).outer(window / window.sum()).expand(3, 1, 11, 11)
    a, b = a.movedim(-1, 1), b.movedim(-1, 1)

    def mean(picture: torch.Tensor) -> torch.Tensor:
        return F.conv2d(picture, window, padding=5, groups=3)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    return (
        ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    ).mean()


def train(scene: SplatScene, held_out: set[str], steps: int, seed: int) -> dict[str, float]:
    """PSNR in dB of every photo held out, after training on the others."""
    from gsplat import DefaultStrategy

    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    splats = first_splats(scene)
    radius = scene.radius
    optimisers = {
        name: torch.optim.Adam([value], lr=RATES[name] * (radius if name == "means" else 1), eps=1e-15)
        for name, value in splats.items()
    }
    decay = torch.optim.lr_scheduler.ExponentialLR(optimisers["means"], 0.01 ** (1 / steps))
    strategy = DefaultStrategy(refine_stop_iter=steps * 2 // 3)
    strategy.check_sanity(splats, optimisers)
    state = strategy.initialize_state(scene_scale=radius)
    used = [photo for photo in scene.photos if photo.name not in held_out]
    for step in range(steps):
        photo = used[int(draw.integers(len(used)))]
        picture, info = render(splats, photo, min(step * 5 * SH_DEGREE // steps, SH_DEGREE))
        strategy.step_pre_backward(splats, optimisers, state, step, info)
        target = photo.rgb[None]
        loss = (1 - SSIM_WEIGHT) * F.l1_loss(picture, target) + SSIM_WEIGHT * (1 - similarity(picture, target))
        loss.backward()
        for optimiser in optimisers.values():
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay.step()
        strategy.step_post_backward(splats, optimisers, state, step, info, packed=False)
    found = {}
    with torch.no_grad():
        for photo in scene.photos:
            if photo.name in held_out:
                picture = render(splats, photo, SH_DEGREE)[0].clamp(0, 1)
                found[photo.name] = -10 * math.log10(float(F.mse_loss(picture, photo.rgb[None])))
    return found | {"splats": float(len(splats["means"]))}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.splats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--points", type=Path, help="PLY whose points the splats of the first folder start from")
    parser.add_argument("--most", type=int, default=100_000, help="points used of that PLY")
    parser.add_argument("--held-out", nargs="+", default=["0003.jpg", "0007.jpg"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=7000)
    arguments = parser.parse_args()
    device = torch.device("cuda")
    for k, folder in enumerate(arguments.folders):
        scene = read_scene(folder, arguments.points if k == 0 else None, arguments.most, device)
        runs = []
        for seed in arguments.seeds:
            started = time.perf_counter()
            found = train(scene, set(arguments.held_out), arguments.steps, seed)
            runs.append(statistics.mean(found[name] for name in arguments.held_out))
            each = ", ".join(f"{name} {found[name]:.2f} dB" for name in arguments.held_out)
            seconds = time.perf_counter() - started
            print(f"{folder} seed {seed}: {each}; {found['splats']:.0f} splats, {seconds:.0f} s", flush=True)
        spread = max(runs) - min(runs)
        print(f"{folder}: {statistics.mean(runs):.2f} dB on average, seeds {spread:.2f} dB apart", flush=True)


if __name__ == "__main__":
    main()
