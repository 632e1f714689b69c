"""Which photos share a camera, by hand."""

import numpy as np
import pytest

from mast3r_sfm import AlignmentConfig, InputError, IntrinsicsGroups, ReconstructionOptions
from mast3r_sfm.camera_groups import group_cameras, stated_focals
from mast3r_sfm.types import CameraIdentity, ImageTransform, View

AUTO = IntrinsicsGroups.AUTO
PHONE = CameraIdentity("Apple", "iPhone 12", "back camera", 4.2, 26.0)
TELE = CameraIdentity("Apple", "iPhone 12", "back camera", 6.0, 52.0)
DIGITAL_ZOOM = CameraIdentity("Apple", "iPhone 12", "back camera", 4.2, 52.0)


def photo(
    size: tuple[int, int] = (4032, 3024), camera: CameraIdentity | None = None, focal: float | None = None
) -> View:
    """Only sizes and tags count."""
    transform = ImageTransform(size, (512, 384), (0, 0), (512, 384))
    return View(0, __file__, np.zeros((1, 1, 3), np.uint8), transform, focal_exif_px=focal, camera=camera)  # type: ignore[arg-type]


def grouped(images: list[View], focals: list[float | None] | None = None) -> tuple[int, ...]:
    return group_cameras(images, AUTO, focals or [3000.0] * len(images))


def test_exif_tells_cameras_and_zooms_apart() -> None:
    cameras = [PHONE, TELE, PHONE, DIGITAL_ZOOM, None, TELE]
    assert grouped([photo(camera=camera) for camera in cameras]) == (0, 1, 0, 2, 3, 1)


def test_crops_of_one_camera_belong_together_but_resized_copies_do_not() -> None:
    # 4:3 upright and not, 1:1 and 16:9 crops, which have a side in common with the whole; half the size
    sizes = [(3024, 3024), (4032, 2268), (4032, 3024), (3024, 4032), (2016, 1512)]
    assert grouped([photo(size, PHONE) for size in sizes]) == (0, 0, 0, 0, 1)
    # without the whole photo nothing says that the two crops are at one scale
    assert grouped([photo(size, PHONE) for size in sizes[:2]]) == (0, 1)


def test_without_exif_the_size_decides() -> None:
    sizes = [(1000, 1334), (1334, 1000), (1000, 1000), (1000, 1334), (1001, 1334)]
    assert grouped([photo(size) for size in sizes]) == (0, 0, 1, 0, 2)


def test_a_clear_zoom_among_photos_without_exif_is_a_group_of_its_own() -> None:
    # the lower median is 1000; 1300 is within a factor of 1.4, 1500 is not, nor is 600, nor are these like each other
    focals = [1000.0, 1500.0, 950.0, 1300.0, 600.0, 1600.0, None]
    assert grouped([photo()] * 7, focals) == (0, 1, 0, 0, 2, 1, 0)
    # a camera that EXIF names without its focal length may have zoomed as well; one with it has not
    unknown = CameraIdentity("NIKON", "D80")
    assert grouped([photo(camera=unknown)] * 2, [1000.0, 1500.0]) == (0, 1)
    assert grouped([photo(camera=PHONE)] * 2, [1000.0, 1500.0]) == (0, 0)
    assert grouped([photo()] * 2, [None, None]) == (0, 0)


def test_the_other_choices() -> None:
    images = [photo(camera=PHONE), photo((100, 100)), photo(camera=PHONE)]
    assert group_cameras(images, IntrinsicsGroups.SHARED, [1.0] * 3) == (0, 0, 0)
    assert group_cameras(images, IntrinsicsGroups.PER_IMAGE, [1.0] * 3) == (0, 1, 2)


def test_stated_focals_are_those_of_the_whole_photo() -> None:
    # the tag states 26 mm of the crop too, as if its smaller diagonal had the same angle of view
    images = [photo((3024, 3024), PHONE, 2570.0), photo((4032, 3024), PHONE, 3029.0), photo()]
    assert stated_focals(images, [0, 0, 1], [3000.0, None, 900.0]) == (3029.0, None)
    # a prediction 1.7 times longer: a cropped photo; much shorter: a long lens, which networks do not recognise
    assert stated_focals(images[:2], [0, 0], [5100.0, 5200.0]) == (None,)
    assert stated_focals(images[:2], [0, 0], [1000.0, 1100.0]) == (3029.0,)


def test_options_of_the_library() -> None:
    assert ReconstructionOptions().intrinsics_groups is AUTO
    shared = ReconstructionOptions(alignment=AlignmentConfig(shared_intrinsics=True))
    assert shared.intrinsics_groups is IntrinsicsGroups.SHARED
    with pytest.raises(InputError, match="contradicts"):
        ReconstructionOptions(alignment=shared.alignment, intrinsics_groups=IntrinsicsGroups.PER_IMAGE)
    with pytest.raises(InputError, match="auto, shared, per-image"):
        IntrinsicsGroups.parse("some")
