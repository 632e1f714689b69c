"""Depth of flat surfaces without waves."""

import numpy as np

from mast3r_sfm.export.flatness import flattened

H, W = 84, 112
Y, X = np.mgrid[:H, :W]
FLOOR = (1 / (0.05 + 0.002 * Y)).astype(np.float32)  # inverse depth of a plane is affine in the pixel
JUMP = 0.03
ALL = np.ones((H, W), dtype=bool)


def waves(share: float) -> np.ndarray:
    """(H, W) factors around 1, like those of a network: smooth over some pixels."""
    return 1 + share * np.sin(X / 1.7) * np.cos(Y / 1.3)


def test_waves_on_a_plane_go() -> None:
    error = np.abs(flattened(FLOOR * waves(0.004), ALL, JUMP) / FLOOR - 1)
    assert error.max() < 0.002 and error[8:-8, 8:-8].max() < 3e-4


def test_planes_stay() -> None:
    np.testing.assert_allclose(flattened(FLOOR, ALL, JUMP), FLOOR, rtol=1e-5)


def test_an_edge_stays_where_it_is() -> None:
    """A board in front of the floor: windows across its edge are not flat, those on either side are."""
    true = np.where((X > 40) & (X < 80) & (Y > 20) & (Y < 60), 4.0, FLOOR)
    found = flattened(true * waves(0.004), ALL, JUMP)
    assert np.abs(found / true - 1).max() < 0.006
    assert np.abs(found / true - 1).mean() < 5e-4


def test_what_stands_in_front_of_a_plane_by_more_than_noise_stays() -> None:
    true = np.full((H, W), 5.0)
    true[:, 50] = 4.5  # a wire: most of a large window is flat all the same
    found = flattened(true, ALL, JUMP)
    np.testing.assert_allclose(found[:, 50], 4.5)


def test_a_round_thing_stays_round() -> None:
    """A ball of 60 pixels, which changes by less than what is taken for flat but for its outline."""
    true = 5 - np.sqrt(np.maximum(0, 1 - ((X - 56) ** 2 + (Y - 42) ** 2) / 30**2))
    inside = (X - 56) ** 2 + (Y - 42) ** 2 < 20**2
    assert np.abs(flattened(true, ALL, JUMP) / true - 1)[inside].max() < 0.006


def test_a_step_that_counts_as_a_jump_stays() -> None:
    step = np.where(X > 55, 2.05, 2.0)
    np.testing.assert_array_equal(flattened(step, ALL, 0.01), step)


def test_no_depth_stays_none_and_pixels_in_doubt_are_not_asked() -> None:
    depth = FLOOR * waves(0.002)
    depth[30:34, 30:40] = np.nan
    kept = np.isfinite(depth)
    kept[50:54, 30:40] = False
    depth[50:54, 30:40] *= 1.015  # in doubt, and near the plane of those around: moved there, without a say
    found = flattened(depth, kept, JUMP)
    assert np.isnan(found[30:34, 30:40]).all() and np.isfinite(found).sum() == np.isfinite(depth).sum()
    np.testing.assert_allclose(found[50:54, 30:40], FLOOR[50:54, 30:40], rtol=1e-3)
    assert np.isnan(flattened(np.full((H, W), np.nan), ~ALL, JUMP)).all()
