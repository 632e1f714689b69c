"""The rendered clip of a benchmark: what it holds, and that its truth is that of its frames."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.clip import FPS, PICTURES_EACH, focal_px, main, walk
from mast3r_sfm.evaluation import read_truth
from mast3r_sfm.images.clips import open_clip
from mast3r_sfm.images.frames import extract_frames, plan_footage
from mast3r_sfm.options import FootageOptions

pytest.importorskip("av")


def test_a_clip_and_the_truth_of_its_frames(tmp_path: Path) -> None:
    main(["--output", str(tmp_path), "--rendered", "5", "--size", "96", "64"])
    clip = tmp_path / "orbit.mp4"
    assert open_clip(clip).num_pictures == 5 * PICTURES_EACH
    assert open_clip(clip).duration_s == pytest.approx(5 * PICTURES_EACH / FPS)
    # fifths of a second: of every one a frame is taken, which shows the picture that its number says
    frames = extract_frames(plan_footage([clip], FootageOptions(fps=5)), tmp_path / "frames")
    assert len(frames) == 5
    truth, cameras = read_truth(tmp_path / "truth.json"), walk(5)
    for k, frame in enumerate(frames):
        picture = np.asarray(Image.open(tmp_path / "pictures" / f"{k:04d}.jpg")).astype(int)
        assert np.abs(np.asarray(Image.open(frame)) - picture).mean() < 6
        camera = truth[frame.name]
        np.testing.assert_allclose(camera.world_from_cam[:3, 3], cameras.eye[0, k].numpy())
        np.testing.assert_allclose(camera.world_from_cam[:3, :3], cameras.rotation[0, k].numpy())
        assert camera.K is not None and camera.K[0, 0] == focal_px((96, 64))


def test_the_walk_is_steady_and_closed() -> None:
    """Of 300 cameras two neighbours are a hundredth of the way apart at most, the last and the first as well."""
    eye = walk(300).eye[0].numpy()
    steps = np.linalg.norm(np.roll(eye, -1, axis=0) - eye, axis=1)
    assert steps.max() < 0.01 * steps.sum() and steps.min() > 0
