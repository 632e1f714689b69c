"""Small pictures of every photo, its depth and its confidence, as small as their number asks for."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mast3r_sfm.export.depth import confidence_picture, confidence_scale, depth_picture, depth_scale
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

PHOTO, DEPTH, CONFIDENCE = KINDS = ("photo", "depth", "confidence")

_EDGES = (384, 320, 256, 192, 144, 112, 80, 56, 40)
"""Long edges that are tried, pixels."""

_QUALITY = 75
_SAMPLES = 12
"""Views whose pictures are made to see how large those of all would be."""

Pictures = Mapping[int, Mapping[str, str]]
"""Data addresses by `ReconstructedView.index` and kind."""


class PictureMaker:
    """Pictures of the views of a scene, in colours that mean the same in all of them (those of the result's PNGs)."""

    def __init__(self, scene: ReconstructedScene) -> None:
        reference = scene.registered or scene.views
        self._depth_colours = depth_scale([view.depth for view in reference])
        self._confidence_colours = confidence_scale([view.conf for view in reference])

    def picture(self, view: ReconstructedView, kind: str, step: int = 1) -> np.ndarray:
        """(H, W, 3) uint8 RGB of every `step`-th row and column of the network's image."""
        if kind == PHOTO:
            return view.rgb[::step, ::step]
        if kind == DEPTH:
            return depth_picture(view.depth[::step, ::step], self._depth_colours)
        return confidence_picture(view.conf[::step, ::step], self._confidence_colours)

    def small(self, view: ReconstructedView, kind: str, edge: int) -> bytes:
        """A WebP file, no larger than `edge` and no larger than the network's image."""
        import cv2

        height, width = view.depth.shape
        factor = min(1.0, edge / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        # colouring is the costly part, so maps are thinned before it
        step = 1 if kind == PHOTO else max(1, max(height, width) // (2 * edge))
        resized = cv2.resize(self.picture(view, kind, step), size, interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(resized, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])[1].tobytes()


def small_pictures(scene: ReconstructedScene, max_bytes: int) -> Pictures:
    """Pictures of all views, their addresses together at most `max_bytes` long.

    The more photos, the smaller. If even the smallest pictures are too many, only the photos are there, and if that is
    too much as well, nothing.
    """
    views, maker = scene.views, PictureMaker(scene)
    samples = views[:: max(1, len(views) // _SAMPLES)]
    for kinds in (KINDS, (PHOTO,)):
        for edge in _EDGES:
            made = _made(maker, samples, edge, kinds)
            if _length(made) * len(views) > max_bytes * len(samples):
                continue
            if len(samples) < len(views):
                made = _made(maker, views, edge, kinds)
            if _length(made) <= max_bytes:
                return made
    return {}


def _made(maker: PictureMaker, views: Sequence[ReconstructedView], edge: int, kinds: Sequence[str]) -> Pictures:
    def addresses(view: ReconstructedView) -> dict[str, str]:
        return {kind: _data_address(maker.small(view, kind, edge)) for kind in kinds}

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return {view.index: made for view, made in zip(views, pool.map(addresses, views), strict=True)}


def _data_address(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode('ascii')}"


def _length(pictures: Pictures) -> int:
    # with the quotes, names and commas around each
    return sum(len(address) + 32 for files in pictures.values() for address in files.values())
