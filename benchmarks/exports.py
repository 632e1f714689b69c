"""What readers of other programs make of exported cameras, against the result's own, in pixels.

    python -m benchmarks.exports RESULT [RESULT ...]

Exports each result to a temporary folder in four ways (photos as they are, reduced to the network's size, straightened,
both), reads the cameras back and prints the largest distance between where a reader sees a point of the scene and where
the result sees it, over all photos and all points in them. Readers:

    pycolmap            the COLMAP model
    transforms.json     by nerfstudio's description of it: OpenGL axes, OPENCV distortion, pixels from the corner
    cameras.csv         by the columns of RealityScan's table (`mast3r_sfm.export.realityscan`)
    nerfstudio          its own parser of transforms.json, where nerfstudio is installed
    nerfstudio (colmap) its own parser of COLMAP models
    gsplat              the parser of its examples, where their folder is in PYTHONPATH; of straightened photos only,
                        because it straightens others itself

nerfstudio and gsplat calculate in 32 bits.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from PIL import Image

from mast3r_sfm.export.formats import exporter_of
from mast3r_sfm.export.optics import PictureCamera, reduced, without_distortion
from mast3r_sfm.export.result import STORE, read_scene_options
from mast3r_sfm.export.store import load_reconstruction
from mast3r_sfm.geometry import distort
from mast3r_sfm.options import PhotoOptions, SceneOptions
from mast3r_sfm.text import unique_stems
from mast3r_sfm.types import ReconstructedScene

FORMATS = ("colmap", "nerfstudio", "realityscan")
_CORNER = 0.5  # pixels of all these programs minus ours
_MAX_POINTS = 3000


@dataclass(frozen=True)
class Seen:
    """The points that a photo shows.

    stem    of the exported picture's name
    points  (N, 3) float64 in the frame of the cameras
    xy      (N, 2) float64 pixels of the exported picture by the result itself, centres at integers
    camera  of that picture
    """

    stem: str
    points: np.ndarray
    xy: np.ndarray
    camera: PictureCamera


Reader = Callable[[Path, Sequence[Seen]], list[np.ndarray]]
"""From the folder of the exports and what each photo shows, in their order, to distances (N,) in pixels for each."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    for folder in parser.parse_args().results:
        scene, options = load_reconstruction(folder / STORE), read_scene_options(folder)
        print(f"{folder}: {len(scene.registered)} photos", flush=True)
        for name, photos in ways_to_export(scene).items():
            errors = largest_errors(scene, options, photos)
            print(f"  {name:<32}" + "  ".join(f"{reader} {error:.5f}" for reader, error in errors.items()), flush=True)


def ways_to_export(scene: ReconstructedScene) -> dict[str, PhotoOptions]:
    size = max(max(view.transform.network_size) for view in scene.views)
    return {
        "as they are": PhotoOptions(),
        f"at the network's size ({size})": PhotoOptions(max_image_size=size),
        "straightened": PhotoOptions(undistort=True),
        f"straightened, {size}": PhotoOptions(undistort=True, max_image_size=size),
    }


def largest_errors(scene: ReconstructedScene, options: SceneOptions, photos: PhotoOptions) -> dict[str, float]:
    """Pixels by reader, of the result exported with these options."""
    seen = seen_points(scene, photos)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in FORMATS:
            exporter_of(kind)(scene, Path(scratch) / kind, options, photos, {})
        found = {name: read(Path(scratch), seen) for name, read in available_readers(photos).items()}
    return {name: float(np.concatenate(errors).max()) for name, errors in found.items()}


def available_readers(photos: PhotoOptions) -> dict[str, Reader]:
    readers: dict[str, Reader] = {
        "pycolmap": read_pycolmap,
        "transforms.json": read_transforms,
        "cameras.csv": read_table,
    }
    if importlib.util.find_spec("nerfstudio"):
        readers |= {"nerfstudio": read_nerfstudio, "nerfstudio (colmap)": read_nerfstudio_colmap}
    if photos.undistort and importlib.util.find_spec("datasets"):
        readers["gsplat"] = read_gsplat
    return readers


def seen_points(scene: ReconstructedScene, photos: PhotoOptions) -> list[Seen]:
    """What each registered photo shows of the scene's tracks, by the result itself."""
    assert scene.tracks is not None, "a result whose cameras were not refined has no points to compare"
    points = np.random.default_rng(0).permutation(scene.tracks.points)[:_MAX_POINTS]
    found = []
    for view, stem in zip(scene.views, unique_stems([view.file for view in scene.views]), strict=True):
        if not view.registered:
            continue
        photo = PictureCamera.of_photo(view)
        camera = reduced(without_distortion(photo) if photos.undistort else photo, photos.max_image_size)
        local = (points - view.world_from_cam[:3, 3]) @ view.world_from_cam[:3, :3]
        front = local[:, 2] > 0
        rays = local[front, :2] / local[front, 2:]
        xy = distort(rays, camera.distortion) * camera.focal_xy + camera.centre
        # rays far outside may come back into the picture by the distortion, which no photo shows
        straight = rays * camera.focal_xy + camera.centre
        shown = np.ones(len(rays), bool)
        for place in (xy, straight):
            shown &= ((place > -_CORNER) & (place < np.array(camera.size) - _CORNER)).all(1)
        found.append(Seen(stem, points[front][shown], xy[shown], camera))
    return found


# ------------------------------------------------------------------ by descriptions of the formats
def read_pycolmap(folder: Path, seen: Sequence[Seen]) -> list[np.ndarray]:
    model = pycolmap.Reconstruction(folder / "colmap" / "sparse" / "0")
    image_of = {Path(image.name).stem: image for image in model.images.values()}
    errors = []
    for one in seen:
        image = image_of[one.stem]
        camera = model.cameras[image.camera_id]
        _check_size(folder / "colmap" / "images" / image.name, (camera.width, camera.height))
        errors.append(_apart(np.array([image.project_point(point) for point in one.points]).reshape(-1, 2), one))
    return errors


def read_transforms(folder: Path, seen: Sequence[Seen]) -> list[np.ndarray]:
    document = _transforms(folder)
    frame_of = {Path(frame["file_path"]).stem: frame for frame in document["frames"]}
    errors = []
    for one in seen:
        frame = frame_of[one.stem]
        _check_size(folder / "nerfstudio" / frame["file_path"], (frame["w"], frame["h"]))
        errors.append(_apart(pixels_by_opengl(frame, _in_saved_frame(document, one.points)), one))
    return errors


def read_table(folder: Path, seen: Sequence[Seen]) -> list[np.ndarray]:
    document = _transforms(folder)  # which says how the world of both lies
    with (folder / "realityscan" / "cameras.csv").open(encoding="utf-8") as file:
        row_of = {Path(row["#name"]).stem: row for row in csv.DictReader(file)}
    errors = []
    for one in seen:
        row = row_of[one.stem]
        with Image.open(folder / "realityscan" / "images" / row.pop("#name")) as picture:
            frame = frame_of_row({key: float(value) for key, value in row.items()}, picture.size)
        errors.append(_apart(pixels_by_opengl(frame, _in_saved_frame(document, one.points)), one))
    return errors


def pixels_by_opengl(frame: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    """Pixels (N, 2), corner of the picture at 0, of points (N, 3) by a frame of transforms.json."""
    inside = np.linalg.inv(np.array(frame["transform_matrix"]))
    local = points @ inside[:3, :3].T + inside[:3, 3]
    x = np.stack([local[:, 0] / -local[:, 2], -local[:, 1] / -local[:, 2]], axis=1)
    x = x * (1 + frame["k1"] * (x**2).sum(1, keepdims=True))
    return x * [frame["fl_x"], frame["fl_y"]] + [frame["cx"], frame["cy"]]


def frame_of_row(row: Mapping[str, float], size: tuple[int, int]) -> dict[str, Any]:
    """The frame of transforms.json that says what a row of RealityScan's table says of a picture of `size`."""
    long_edge = max(size)
    heading, pitch, roll = np.radians([-row["heading"], row["pitch"], row["roll"]])
    about_z, about_x, about_y = np.eye(3), np.eye(3), np.eye(3)
    about_z[:2, :2] = [[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]]
    about_x[1:, 1:] = [[np.cos(pitch), -np.sin(pitch)], [np.sin(pitch), np.cos(pitch)]]
    about_y[::2, ::2] = [[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]]
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_x @ about_y
    pose[:3, 3] = row["x"], row["y"], row["alt"]
    focal = row["f"] / 36 * long_edge
    centre = np.array([row["px"], row["py"]]) * long_edge + np.array(size) / 2
    names = ("transform_matrix", "fl_x", "fl_y", "cx", "cy", "k1")
    return dict(zip(names, (pose, focal, focal, *centre, row["k1"]), strict=True))


# ------------------------------------------------------------------ by the programs' own code
def read_nerfstudio(folder: Path, seen: Sequence[Seen]) -> list[np.ndarray]:
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    config = NerfstudioDataParserConfig(data=folder / "nerfstudio", eval_mode="all", downscale_factor=1)
    return _by_nerfstudio(config.setup().get_dataparser_outputs("train"), seen)


def read_nerfstudio_colmap(folder: Path, seen: Sequence[Seen]) -> list[np.ndarray]:
    from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig

    config = ColmapDataParserConfig(
        data=folder / "colmap", colmap_path=Path("sparse/0"), eval_mode="all", downscale_factor=1
    )
    return _by_nerfstudio(config.setup().get_dataparser_outputs("train"), seen)


def _by_nerfstudio(outputs: Any, seen: Sequence[Seen]) -> list[np.ndarray]:
    """How far the rays of nerfstudio's cameras, through the pixels by the result, pass beside the points."""
    import torch

    from_ours = outputs.dataparser_transform.double().numpy()
    index_of = {path.stem: k for k, path in enumerate(outputs.image_filenames)}
    errors = []
    for one in seen:
        k = index_of[one.stem]
        camera = outputs.cameras[k]
        _check_size(outputs.image_filenames[k], (int(camera.width), int(camera.height)))
        coordinates = torch.from_numpy((one.xy + _CORNER)[:, ::-1].astype(np.float32).copy())
        rays = outputs.cameras.generate_rays(camera_indices=k, coords=coordinates)
        rotation = camera.camera_to_worlds[:, :3].double().numpy()
        points = (one.points @ from_ours[:, :3].T + from_ours[:, 3]) * outputs.dataparser_scale
        true = (points - rays.origins.double().numpy()) @ rotation
        through = rays.directions.double().numpy() @ rotation
        apart = true[:, :2] / true[:, 2:] - through[:, :2] / through[:, 2:]
        errors.append(np.linalg.norm(apart * one.camera.focal_xy, axis=1))
    return errors


def read_gsplat(folder: Path, seen: Sequence[Seen]) -> list[np.ndarray]:
    from datasets.colmap import Parser

    parser = Parser(str(folder / "colmap"), factor=1, normalize=True)
    index_of = {Path(name).stem: k for k, name in enumerate(parser.image_names)}
    errors = []
    for one in seen:
        k = index_of[one.stem]
        camera = parser.camera_ids[k]
        _check_size(Path(parser.image_paths[k]), parser.imsize_dict[camera])
        points = one.points @ parser.transform[:3, :3].T + parser.transform[:3, 3]
        cam_from_world = np.linalg.inv(parser.camtoworlds[k])
        local = points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        projected = local @ parser.Ks_dict[camera].T
        errors.append(_apart(projected[:, :2] / projected[:, 2:], one))
    return errors


# ------------------------------------------------------------------ what they share
def _transforms(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "nerfstudio" / "transforms.json").read_text(encoding="utf-8"))
    return document


def _in_saved_frame(document: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    applied = np.array(document["applied_transform"])
    return points @ applied[:, :3].T + applied[:, 3]


def _apart(xy: np.ndarray, seen: Seen) -> np.ndarray:
    """(N,) distances of pixels with their origin at the corner from those of the result."""
    return np.linalg.norm(xy - _CORNER - seen.xy, axis=1)


def _check_size(photo: Path, size: tuple[int, int]) -> None:
    with Image.open(photo) as picture:
        assert picture.size == tuple(size), f"{photo} is {picture.size}, its camera says {tuple(size)}"
        assert picture.getexif().get(0x0112, 1) == 1, f"{photo} is to be turned"


if __name__ == "__main__":
    main()
