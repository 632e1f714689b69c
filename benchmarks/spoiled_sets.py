"""Small rendered sets of photos with true cameras, sound ones and ones spoiled on purpose: what verdicts are tuned on.

A set is a list of pictures and cameras. Every photo has a true camera; the photos of another scene, or of a place that
only looks alike, stand `FAR` away, so that a reconstruction that puts them together has large errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch

from mast3r_sfm.evaluation import TrueCamera
from synthetic import render_aerial
from synthetic.cameras import look_at
from synthetic.compose import clear_view, compose
from synthetic.draws import Draws
from synthetic.layout import FACE_X0, NUM_SOLIDS, Scenes
from synthetic.materials import faded
from synthetic.orbit import RenderedScene, orbit_cameras, render_views
from synthetic.photo import draw_effects

SIZE = (160, 120)
OVERSAMPLING = 2
FOV_DEG = 62.0
EFFECTS = 0.3
FAR = 1000.0
"""Units of the true frame between places that have nothing to do with each other."""


@dataclass(frozen=True)
class PhotoSet:
    """pictures (H, W, 3) uint8 and their true cameras; `place` is 0, or 1 where it stands `FAR` away."""

    pictures: tuple[np.ndarray, ...]
    cameras: tuple[TrueCamera, ...]
    place: tuple[int, ...]


# ------------------------------------------------------------------ scenes and the ways cameras go around them
def _scene(seed: int, contrast: float = 1.0) -> tuple[Draws, Scenes]:
    draws = Draws(seed, 1)
    scenes = compose(draws, draws.chance(0.3))
    return draws, scenes if contrast == 1 else scenes._replace(materials=faded(scenes.materials, contrast))


def _around(draws: Draws, scenes: Scenes, degrees: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cameras that look at the scene from azimuths, from an angle that the seed decides."""
    azimuth = draws.uniform(0, 2 * math.pi, 1) + torch.deg2rad(torch.tensor([degrees]))
    return orbit_cameras(draws, scenes, scenes.outdoor > 0.5, azimuth)


def _seen(
    draws: Draws, scenes: Scenes, eye: torch.Tensor, rotation: torch.Tensor, device: str, zoom: float = 1.0
) -> RenderedScene:
    W, H = (OVERSAMPLING * side for side in SIZE)
    focal = zoom * 0.5 * W / math.tan(math.radians(FOV_DEG) / 2)
    effects = draw_effects(draws, eye.shape[1], EFFECTS)
    return render_views(clear_view(scenes, eye), eye, rotation, focal, effects, (W, H), device)


def _photos(rendered: RenderedScene, place: int = 0) -> PhotoSet:
    """Smaller pictures of rendered views; a pixel of them is the mean of `OVERSAMPLING`^2 rays."""
    pictures = [cv2.resize(rgb, SIZE, interpolation=cv2.INTER_AREA) for rgb in rendered.rgb.cpu().numpy()]
    cameras = []
    for K, pose in zip(rendered.K.cpu().numpy(), rendered.world_from_cam.cpu().numpy(), strict=True):
        smaller = K / OVERSAMPLING
        smaller[:2, 2], smaller[2, 2] = (np.array(SIZE) - 1) / 2, 1
        pose = pose.copy()
        pose[0, 3] += FAR * place
        cameras.append(TrueCamera(pose, smaller))
    return PhotoSet(tuple(pictures), tuple(cameras), (place,) * len(pictures))


def _together(*parts: PhotoSet) -> PhotoSet:
    return PhotoSet(
        sum((part.pictures for part in parts), ()),
        sum((part.cameras for part in parts), ()),
        sum((part.place for part in parts), ()),
    )


def _orbit(seed: int, device: str, num_views: int = 7, degrees: float = 210.0, contrast: float = 1.0) -> PhotoSet:
    draws, scenes = _scene(seed, contrast)
    steps = np.linspace(0, degrees, num_views, endpoint=degrees < 360)
    return _photos(_seen(draws, scenes, *_around(draws, scenes, steps.tolist()), device))


def _aerial(seed: int, device: str, overlap: float = 0.75) -> PhotoSet:
    size = (OVERSAMPLING * SIZE[0], OVERSAMPLING * SIZE[1])
    return _photos(render_aerial(seed, size, device, rows=3, columns=3, overlap=overlap, effects=EFFECTS))


# ------------------------------------------------------------------ what spoils a set
def _blurred(seed: int, device: str) -> PhotoSet:
    """Three of seven photos out of focus or smeared."""
    photos, rng = _orbit(seed, device), np.random.default_rng(seed)
    pictures = list(photos.pictures)
    for k in rng.choice(len(pictures), 3, replace=False):
        sigma = rng.uniform(2.0, 5.0)
        smear = (1.0, 4.0) if rng.random() < 0.5 else (1.0, 1.0)
        pictures[k] = cv2.GaussianBlur(pictures[k], (0, 0), sigma * smear[0], sigmaY=sigma * smear[1])
    return replace(photos, pictures=tuple(pictures))


def _zoomed(seed: int, device: str) -> PhotoSet:
    """Two of seven photos with another zoom, up to four times."""
    draws, scenes = _scene(seed)
    eye, rotation = _around(draws, scenes, np.linspace(0, 180, 7).tolist())
    zooms = [1.0, 1.0, 1.0, 1.0, 1.0, *(2.0 ** np.random.default_rng(seed).uniform(1, 2, 2))]
    order = np.random.default_rng(seed + 1).permutation(7)
    parts = [
        _photos(_seen(draws, scenes, eye[:, [k]], rotation[:, [k]], device, float(zooms[order[k]]))) for k in range(7)
    ]
    return _together(*parts)


def _turned_only(seed: int, device: str) -> PhotoSet:
    """All photos from one place, up to a hand's breadth: cameras that turn but do not move."""
    draws, scenes = _scene(seed)
    eye, _ = _around(draws, scenes, [0.0] * 7)
    hand = 0.005 * (eye[:, :1] - torch.tensor([0.0, 1.0, 0.0])).norm()
    eye = eye[:, :1] + hand * draws.normal(7, 3)
    heading = torch.deg2rad(torch.linspace(-50, 50, 7))[None]
    ahead = torch.atan2(-eye[..., 0], -eye[..., 2]) + heading
    target = eye + torch.stack([ahead.sin(), torch.full_like(ahead, 0.25), ahead.cos()], -1)
    return _photos(_seen(draws, scenes, eye, look_at(eye, target, 0.03 * draws.normal(7)), device))


def _mirrored(seed: int, device: str) -> PhotoSet:
    """Two of seven photos are mirror images, as a phone's front camera stores them."""
    photos = _orbit(seed, device)
    pictures = list(photos.pictures)
    for k in np.random.default_rng(seed).choice(7, 2, replace=False):
        pictures[k] = np.ascontiguousarray(pictures[k][:, ::-1])
    return replace(photos, pictures=tuple(pictures))


def _look_alike(seed: int, device: str) -> PhotoSet:
    """Four photos of one place, four of another with the same furniture between other walls."""
    draws, scenes = _scene(seed)
    other_draws, other = _scene(seed + 500_000)
    materials = torch.cat([scenes.materials[:, :NUM_SOLIDS], other.materials[:, NUM_SOLIDS:]], 1)
    assert FACE_X0 >= NUM_SOLIDS
    twin = scenes._replace(materials=materials, lights=other.lights)
    azimuths = [0.0, 30.0, 60.0, 90.0]
    here = _photos(_seen(draws, scenes, *_around(draws, scenes, azimuths), device))
    return _together(here, _photos(_seen(other_draws, twin, *_around(other_draws, twin, azimuths), device), 1))


def _mixed(seed: int, device: str) -> PhotoSet:
    """Four photos of one scene among three or four of another."""
    first = _orbit(seed, device, 4, 100.0)
    second = _orbit(seed + 500_000, device, 3 + seed % 2, 70.0)
    return _together(first, replace(second, cameras=_moved(second.cameras), place=(1,) * len(second.cameras)))


def _moved(cameras: Sequence[TrueCamera]) -> tuple[TrueCamera, ...]:
    shift = np.zeros((4, 4))
    shift[0, 3] = FAR
    return tuple(replace(camera, world_from_cam=camera.world_from_cam + shift) for camera in cameras)


Maker = Callable[[int, str], PhotoSet]

SOUND: dict[str, Maker] = {
    "orbit": _orbit,
    "arc": partial(_orbit, num_views=6, degrees=110.0),
    "circle": partial(_orbit, num_views=10, degrees=360.0),
    "low-contrast": partial(_orbit, contrast=0.5),
    "aerial": _aerial,
}
"""Sets that one would take; neighbours are 22 to 36 degrees apart."""

SPOILED: dict[str, Maker] = {
    "low-overlap": partial(_orbit, num_views=5, degrees=360.0),
    "blurred": _blurred,
    "zoomed": _zoomed,
    "turned-only": _turned_only,
    "mirrored": _mirrored,
    "look-alike": _look_alike,
    "mixed": _mixed,
}
