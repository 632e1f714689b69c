"""Canonical views by the kernels for CUDA devices, run by Triton's interpreter on the CPU, against the plain ones."""

from __future__ import annotations

import pytest
import torch
from triton_interpreter import interpreted, outside, run_interpreted

from mast3r_sfm import canonical
from mast3r_sfm.canonical import CanonicalAccumulator, estimate_focal

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")

SHAPE = (30, 44)  # partial blocks at both borders


@outside
def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


def _prediction(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A pointmap of a surface with relief, some of it behind the camera, and its confidence from 1."""
    generator = torch.Generator().manual_seed(seed)
    H, W = SHAPE
    y, x = torch.meshgrid(torch.arange(H) - H / 2, torch.arange(W) - W / 2, indexing="ij")
    z = 2 + 0.5 * torch.randn(SHAPE, generator=generator)
    z[3, 5:9] = -1.0
    return torch.stack([x / 40 * z, y / 40 * z, z], -1), 1 + 5 * torch.rand(SHAPE, generator=generator)


@interpreted
def test_fused_sums_equal_the_plain_ones() -> None:
    """Of two images, to one of which two maps go at once; and they go on from what was there."""
    from mast3r_sfm.canonical_triton import add_pointmaps

    plain = [CanonicalAccumulator(*SHAPE) for _ in range(2)]
    sums = [torch.zeros(7, *SHAPE) for _ in plain]
    for seeds in (((0, 1), (2,)), ((3,), ())):
        maps = [[_prediction(seed) for seed in of_image] for of_image in seeds]
        for image, own in zip(plain, maps, strict=True):
            for points, conf in own:
                image.add(points, conf)
        flags = add_pointmaps(sums, maps, 8, canonical._CONF_OFFSET, canonical._MIN_RADIUS, canonical._EPS32)
        assert flags.tolist() == [0.0] * sum(map(len, seeds))
    for fused, image in zip(sums, plain, strict=True):
        torch.testing.assert_close(fused, image.sums, rtol=1e-5, atol=1e-5)


@interpreted
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_flagged(value: float) -> None:
    from mast3r_sfm.canonical_triton import add_pointmaps

    maps = [_prediction(seed) for seed in range(3)]
    maps[1][0][17, 20, 1] = value
    flags = add_pointmaps([torch.zeros(7, *SHAPE)], [maps], 8, 0.999, 1e-8, 1e-7)
    assert flags.isfinite().tolist() == [True, False, True]


@interpreted
@pytest.mark.parametrize("stretch", [0.1, 1.0, 1.7, 50.0])  # both limits are met
def test_fused_focal_length_equals_the_plain_one(stretch: float) -> None:
    from mast3r_sfm.canonical_triton import focals_of_planes

    points = _prediction(1)[0] * torch.tensor([stretch, stretch, 1.0])
    points[8, 8] = 0.0  # no ray
    limit = max(SHAPE) / 1.1547005
    planes = torch.stack([_prediction(2)[0], points]).movedim(-1, 1).contiguous()
    found = focals_of_planes(planes, 0.5 * limit, 3.5 * limit, 10)
    expected = torch.stack([estimate_focal(one.movedim(0, -1)) for one in planes])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
