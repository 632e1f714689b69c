"""The table of cameras: photos and truth of the rendered sets agree, variants are read, rows are put together."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cameras import Row, Scene, differences, median_row, parse_variant, with_overrides, write_json
from benchmarks.colmap import run_colmap
from benchmarks.photo_sets import SETS, PhotoSet, Shot, take_photo, write_sets
from mast3r_sfm.errors import InputError
from mast3r_sfm.images.decoding import decode_image
from mast3r_sfm.options import ReconstructionOptions, RefinementOptions
from synthetic import render_orbit, render_rings
from synthetic.draws import Draws
from synthetic.layout import MaterialColumns
from synthetic.materials import draw_materials, faded

SEED = 900_000
PLAIN = Shot(size=(128, 96), focal_px=106.0)


def three_views(*shots: Shot) -> PhotoSet:
    return PhotoSet(partial(render_orbit, SEED, 3, degrees=70.0), shots)


@pytest.fixture(scope="module")
def plain() -> tuple[np.ndarray, np.ndarray]:
    """rgb and K of a photo of 128 x 96."""
    return take_photo(three_views(PLAIN), 0)[:2]


@pytest.mark.parametrize(
    "shot",
    [
        replace(PLAIN, focal_px=1.5 * PLAIN.focal_px),
        replace(PLAIN, saved=(96, 96)),
        replace(PLAIN, size=(160, 104), focal_px=PLAIN.focal_px * 160 / 104),
        replace(PLAIN, k1=0.08),
    ],
    ids=["zoomed", "cut to a square", "of another size", "distorted"],
)
def test_photos_agree_with_their_intrinsics(plain: tuple[np.ndarray, np.ndarray], shot: Shot) -> None:
    """Photos from one place differ by their intrinsics alone: each pixel is seen where the other camera puts it."""
    rgb, K = take_photo(three_views(shot), 0)[:2]
    h, w = rgb.shape[:2]
    assert (w, h) == (shot.saved or shot.size)
    x, y = np.meshgrid(np.arange(w), np.arange(h))
    seen = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]], -1)
    ideal = seen
    for _ in range(20):
        ideal = seen / (1 + shot.k1 * (ideal**2).sum(-1, keepdims=True))

    def difference(shift: float) -> float:
        """Mean over the pixels that the plain photo covers, grey levels."""
        other, K_other = plain
        at = ideal * np.diag(K_other)[:2] + K_other[:2, 2] + shift
        inside = ((at >= 2) & (at <= np.array([125, 93]))).all(-1)
        x, y = np.moveaxis(at.astype(np.float32), -1, 0)
        expected = cv2.remap(other, x, y, cv2.INTER_LINEAR)
        return float(np.abs(expected.astype(float) - rgb)[inside].mean())

    assert difference(0.0) < 6
    assert difference(0.0) < 0.8 * min(difference(0.5), difference(-0.5))


def test_a_set_is_a_folder_of_photos_with_their_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SETS["zoomed"](SEED)
    monkeypatch.setitem(SETS, "zoomed", lambda seed: replace(whole, shots=whole.shots[:4]))
    write_sets([("zoomed", SEED, tmp_path)], shrink=16)
    truth = json.loads((tmp_path / "truth.json").read_text())
    scene = render_orbit(SEED, 8, (8, 8), 210.0, views=range(4))
    np.testing.assert_allclose([view["world_from_cam"] for view in truth["views"]], scene.world_from_cam)
    focal = [view["K"][0][0] for view in truth["views"]]
    assert focal[3] == pytest.approx(1.5 * focal[0]) and len({round(f, 6) for f in focal}) == 2
    # 62 degrees across 64 pixels
    assert focal[0] == pytest.approx(32 / math.tan(math.radians(31)))
    photos = Scene.read("zoomed", "x", tmp_path).photos
    assert [photo.name for photo in photos] == [view["file"] for view in truth["views"]]
    assert all(decode_image(photo.read_bytes(), photo.name).focal_exif_px is None for photo in photos)
    assert not Scene.read("zoomed", "x", tmp_path).has_one_camera()

    written = photos[0].stat().st_mtime_ns
    write_sets([("zoomed", SEED, tmp_path)], shrink=16)
    assert photos[0].stat().st_mtime_ns == written


def test_exif_states_the_true_focal_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = SETS["aerial"](SEED)
    monkeypatch.setitem(SETS, "aerial", lambda seed: replace(few, shots=few.shots[:2]))
    write_sets([("aerial", SEED, tmp_path)], shrink=16)
    scene = Scene.read("aerial", "x", tmp_path)
    assert scene.has_one_camera()
    for photo in scene.photos:
        K = scene.truth[photo.name].K
        assert K is not None
        assert decode_image(photo.read_bytes(), photo.name).focal_exif_px == pytest.approx(K[0, 0])
        with Image.open(photo) as image:
            assert (image.getexif()[0x010F], image.getexif()[0x0110]) == ("mast3r-sfm", "synthetic drone")


def test_every_set_has_its_photos() -> None:
    sizes = {name: [shot.saved or shot.size for shot in made(SEED).shots] for name, made in SETS.items()}
    assert {name: len(own) for name, own in sizes.items()} == {
        "orbit": 7, "low-texture": 7, "wide": 7, "aerial": 16, "zoomed": 8, "two-cameras": 8, "two-cameras-exif": 8,
        "aspect": 8, "large": 200, "distorted": 7,
    }  # fmt: skip
    assert sizes["two-cameras"] == [(1024, 768), (1280, 832)] * 4 == sizes["two-cameras-exif"]
    assert sizes["aspect"] == [(1024, 768), (768, 768)] * 4


def test_rings_look_at_the_town_from_above() -> None:
    scene = render_rings(SEED, (8, 8), rings=2, views_per_ring=3, unit=10.0)
    centre, forward = scene.world_from_cam[:, :3, 3], scene.world_from_cam[:, :3, 2]
    radius = centre[:, [0, 2]].norm(dim=1)
    assert ((radius[:3] - 32).abs() < 6).all() and ((radius[3:] - 70).abs() < 12).all()
    # towards the axis of the town, and down
    assert ((-centre[:, [0, 2]] * forward[:, [0, 2]]).sum(1) > 0.6 * radius).all() and (forward[:, 1] > 0).all()


def test_faded_materials_keep_their_mean_colour() -> None:
    materials = draw_materials(Draws(1, 1), torch.zeros(1, 5, dtype=torch.int64), torch.tensor([False]))
    weak = faded(materials, 0.25)
    shades, faint = (rows[..., :6].unflatten(-1, (2, 3)) for rows in (materials, weak))
    torch.testing.assert_close(faint.mean(-2), shades.mean(-2))
    torch.testing.assert_close(faint[..., 0, :] - faint[..., 1, :], 0.25 * (shades[..., 0, :] - shades[..., 1, :]))
    column = MaterialColumns.NOISE_CONTRAST
    torch.testing.assert_close(weak[..., column], 0.25 * materials[..., column])


def test_variants() -> None:
    base = ReconstructionOptions()
    name, options = parse_variant("x:refinement=none,alignment.niter_fine=7,alignment.shared_intrinsics=true", base)
    assert name == "x" and options.refinement is None
    assert options.alignment == replace(base.alignment, niter_fine=7, shared_intrinsics=True)
    assert with_overrides(base, "refinement=default").refinement == RefinementOptions()
    none = replace(base, refinement=None)
    assert with_overrides(none, "refinement.max_features=99").refinement == RefinementOptions(max_features=99)
    assert str(with_overrides(base, "scene_graph=swin-2-noncyclic").scene_graph) == "swin-2-noncyclic"
    assert parse_variant("as it is", base) == ("as it is", base)


@pytest.mark.parametrize("text", ["nothing=1", "alignment.nothing=1", "seed", "seed.x=1"])
def test_variants_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        with_overrides(ReconstructionOptions(), text)


def rows(variant: str, rotation: Sequence[float], ate: Sequence[float]) -> list[Row]:
    return [
        Row("orbit", str(k), variant, 7, 6, r, 1.0, 0.5, 0.9, a, 0.01, 0.02, {"Match": 1.0 + k})
        for k, (r, a) in enumerate(zip(rotation, ate, strict=True))
    ]


def test_medians_and_differences_by_hand(tmp_path: Path) -> None:
    nan = float("nan")
    first, other = rows("a", [1, 2, 180], [0.1, 0.2, nan]), rows("b", [3, 1, 1], [0.1, 0.1, 0.1])
    middle = median_row(first)
    assert (middle.images, middle.registered, middle.rotation_deg) == (21, 18, 2)
    assert middle.ate == pytest.approx(0.15) and middle.seconds == {"Match": 2.0}
    # rotations change by 2, -1, -179; ATE by 0 and -0.1, and once there is nothing to compare
    change = differences(first, other)
    assert (change["rotation_deg_median"], change["rotation_deg_worst"]) == (-1, 2)
    assert change["ate_median"] == pytest.approx(-0.05) and change["ate_worst"] == 0
    write_json(tmp_path / "cameras.json", [*first, *other], ["a", "b"], {})
    content = json.loads((tmp_path / "cameras.json").read_text())
    assert len(content["rows"]) == 6 and [row["variant"] for row in content["medians"]] == ["a", "b"]
    assert content["rows"][2]["ate"] is None


def test_colmap_that_finds_nothing_registers_nothing(tmp_path: Path) -> None:
    for k in range(2):
        Image.new("RGB", (64, 48), (90, 90, 90)).save(tmp_path / f"{k}.jpg")
    photos = sorted(tmp_path.glob("*.jpg"))
    views, seconds = run_colmap(photos, one_camera=True, threads=1)
    assert [view.registered for view in views] == [False, False] and len(seconds) == 3
