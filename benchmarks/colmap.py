"""COLMAP itself (SIFT, exhaustive matching, incremental mapping) on photos, in the form of our results."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from mast3r_sfm.evaluation import TrueCamera, read_truth
from mast3r_sfm.types import ImageTransform, ReconstructedView

MAX_IMAGE_SIZE = 1600
SEED = 0


def run_colmap(
    photos: Sequence[Path], one_camera: bool, threads: int = -1
) -> tuple[list[ReconstructedView], dict[str, float]]:
    """The cameras of COLMAP's largest model, in the order of the photos (of one folder), and the seconds of each stage.

    one_camera  one SIMPLE_RADIAL camera for all photos, else one for each
    threads     that COLMAP may use, -1: all; the mapping uses one, so that it comes out the same each time
    """
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value  # a set that it cannot do is a figure, not an error
    pycolmap.set_random_seed(SEED)
    extraction = pycolmap.FeatureExtractionOptions(max_image_size=MAX_IMAGE_SIZE, num_threads=threads, use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    mapping = pycolmap.IncrementalPipelineOptions(random_seed=SEED, num_threads=1, min_model_size=2)
    mode = pycolmap.CameraMode.SINGLE if one_camera else pycolmap.CameraMode.PER_IMAGE
    seconds, cameras = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        database, models = Path(scratch) / "database.db", Path(scratch) / "models"
        start = time.perf_counter()
        pycolmap.extract_features(
            database,
            photos[0].parent,
            [photo.name for photo in photos],
            camera_mode=mode,
            reader_options=pycolmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL"),
            extraction_options=extraction,
            device=pycolmap.Device.cpu,
        )
        seconds["Extract features"] = time.perf_counter() - start
        start = time.perf_counter()
        pycolmap.match_exhaustive(
            database,
            pycolmap.FeatureMatchingOptions(num_threads=threads, use_gpu=False),
            verification_options=verification,
            device=pycolmap.Device.cpu,
        )
        seconds["Match features"] = time.perf_counter() - start
        start = time.perf_counter()
        models.mkdir()
        found = pycolmap.incremental_mapping(database, photos[0].parent, models, mapping)
        seconds["Map"] = time.perf_counter() - start
        if found:
            largest = max(found, key=lambda k: found[k].num_reg_images())
            cameras = read_truth(models / str(largest))
    return [_view(k, photo, cameras) for k, photo in enumerate(photos)], seconds


def _view(index: int, photo: Path, cameras: Mapping[str, TrueCamera]) -> ReconstructedView:
    """A view of which only the camera is known; not registered if there is none."""
    with Image.open(photo) as image:
        size = image.size
    camera = cameras.get(photo.name)
    K = np.eye(3) if camera is None or camera.K is None else camera.K
    nothing = np.zeros((0, 0), np.float32)
    return ReconstructedView(
        index,
        str(photo),
        ImageTransform(size, size, (0, 0), size),
        np.zeros((0, 0, 3), np.uint8),
        registered=camera is not None,
        K=K,
        world_from_cam=np.eye(4) if camera is None else camera.world_from_cam,
        depth=nothing,
        conf=nothing,
        conf_clean=nothing,
        median_reprojection_error_px=float("nan"),
        num_matches=0,
    )
