"""Small pictures of every photo, its depth and its confidence, as small as their number asks for."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mast3r_sfm.export.depth import ColourScale, confidence_picture, confidence_scale, depth_picture, depth_scale
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

PHOTO, DEPTH, CONFIDENCE = KINDS = ("photo", "depth", "confidence")

_EDGES = (384, 320, 256, 192, 144, 112, 80, 56, 40)
"""Long edges that are tried, pixels."""

_QUALITY = 75
_SAMPLES = 12
"""Views whose pictures are made to see how large those of all would be."""


class PictureMaker:
    """Pictures of the views of a scene, in colours that mean the same in all of them (those of the result's PNGs)."""

    def __init__(self, scene: ReconstructedScene) -> None:
        reference = scene.registered or scene.views
        self._scales: Mapping[str, ColourScale] = {
            DEPTH: depth_scale([view.depth for view in reference]),
            CONFIDENCE: confidence_scale([view.conf for view in reference]),
        }

    def picture(self, view: ReconstructedView, kind: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB at the size of the network's image."""
        if kind == PHOTO:
            return view.rgb
        if kind == DEPTH:
            return depth_picture(view.depth, self._scales[DEPTH])
        return confidence_picture(view.conf, self._scales[CONFIDENCE])

    def small(self, view: ReconstructedView, edge: int, kinds: Sequence[str] = KINDS) -> dict[str, bytes]:
        """WebP files by kind, no larger than `edge` and no larger than the network's image."""
        import cv2

        step = max(1, max(view.depth.shape) // (2 * edge))  # a coarser map first: colours are the costly part
        coarse = {PHOTO: view.rgb, DEPTH: view.depth[::step, ::step], CONFIDENCE: view.conf[::step, ::step]}
        height, width = view.depth.shape
        factor = min(1.0, edge / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        files = {}
        for kind in kinds:
            if kind == PHOTO:
                picture = coarse[kind]
            elif kind == DEPTH:
                picture = depth_picture(coarse[kind], self._scales[kind])
            else:
                picture = confidence_picture(coarse[kind], self._scales[kind])
            resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            bgr = cv2.cvtColor(resized, cv2.COLOR_RGB2BGR)
            files[kind] = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])[1].tobytes()
        return files


def small_pictures(scene: ReconstructedScene, max_bytes: int) -> dict[int, dict[str, str]]:
    """Data addresses of pictures by `ReconstructedView.index` and kind, all together at most `max_bytes` long.

    The more photos, the smaller. If even the smallest pictures are too many, only the photos are there, and if that is
    too much as well, nothing.
    """
    views, maker = scene.views, PictureMaker(scene)
    samples = views[:: max(1, len(views) // _SAMPLES)]
    for kinds in (KINDS, (PHOTO,)):
        for edge in _EDGES:
            expected = _length(_made(maker, samples, edge, kinds)) * len(views) / max(1, len(samples))
            if expected > max_bytes:
                continue
            made = _made(maker, views, edge, kinds)
            if _length(made) <= max_bytes:
                return made
    return {}


def _made(
    maker: PictureMaker, views: Sequence[ReconstructedView], edge: int, kinds: Sequence[str]
) -> dict[int, dict[str, str]]:
    def addresses(view: ReconstructedView) -> dict[str, str]:
        return {kind: data_address(data) for kind, data in maker.small(view, edge, kinds).items()}

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return {view.index: made for view, made in zip(views, pool.map(addresses, views), strict=True)}


def data_address(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode('ascii')}"


def _length(pictures: Mapping[int, Mapping[str, str]]) -> int:
    return sum(len(address) + 24 for files in pictures.values() for address in files.values())
