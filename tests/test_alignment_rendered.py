"""The figures that the alignment must reach on a rendered scene with ideal matches and 2 % smooth depth noise."""

import pytest
import torch

from benchmarks.alignment import depth_error, pose_errors, predict
from mast3r_sfm.alignment import AlignmentConfig, align, build_problem, reprojection_errors
from synthetic import render_orbit


@pytest.mark.parametrize(
    ("size", "limits"),
    [
        ((192, 144), (0.6, 0.3, 0.006)),
        pytest.param((512, 384), (0.6, 0.2, 0.005), marks=pytest.mark.slow),
    ],
)
def test_poses_and_depth_of_a_rendered_orbit(size: tuple[int, int], limits: tuple[float, float, float]) -> None:
    scene = render_orbit(33, 7, size, 150, effects=0)
    canonical, matches = predict(scene, noise=0.02, match_step=8)
    problem = build_problem(canonical, matches, {}, AlignmentConfig())
    result = align(problem, AlignmentConfig())
    rotation_deg, direction_deg = pose_errors(result.world_from_cam, scene.world_from_cam)
    assert rotation_deg <= limits[0]
    assert direction_deg <= limits[1]
    assert depth_error(scene, canonical, result) <= limits[2]
    focal_ratio = result.K[:, 0, 0] / scene.K[:, 0, 0]
    torch.testing.assert_close(focal_ratio, torch.ones(7).double(), rtol=0.01, atol=0)
    assert (reprojection_errors(problem, result) < 0.6).all()  # matches are rounded to whole pixels
    # and what hundreds of first-order iterations find is no better
    config = AlignmentConfig(second_order=False, niter_fine=300, matches_per_pair=None)
    first_order = align(build_problem(canonical, matches, {}, config), config)
    others = pose_errors(first_order.world_from_cam, scene.world_from_cam)
    assert rotation_deg <= others[0] + 0.01 and direction_deg <= others[1] + 0.01
    assert depth_error(scene, canonical, result) <= depth_error(scene, canonical, first_order) + 1e-4
