"""Errors against known cameras: by hand, whatever the frame and the unit, and from every kind of file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from export_scene import pose, view

from mast3r_sfm.app.cli import main
from mast3r_sfm.errors import InputError
from mast3r_sfm.evaluation import TrueCamera, area_under_curve, evaluate_views, pair_errors_deg, read_truth
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import ReconstructedView

POSES = [pose(0, [0, 0, 0]), pose(10, [1, 0, 0]), pose(25, [2, 0.5, 0])]


def result_views() -> list[ReconstructedView]:
    return [view(np.full((12, 16), 2.0), index=k, pose=p) for k, p in enumerate(POSES)]


def moved(p: np.ndarray) -> np.ndarray:
    """The camera in a world that is turned, shifted and 2.5 times as large."""
    turn = np.array([[0, 0, 1, 7], [1, 0, 0, -2], [0, 1, 0, 1], [0, 0, 0, 1]], dtype=np.float64)
    p = p.copy()
    p[:3, 3] *= 2.5
    return turn @ p


def truth_of(views: list[ReconstructedView]) -> dict[str, TrueCamera]:
    return {Path(v.file).name: TrueCamera(moved(v.world_from_cam), v.K_original) for v in views}


def test_frame_and_unit_do_not_matter() -> None:
    views = result_views()
    depth = {Path(v.file).name: 2.5 * v.depth for v in views}
    found = evaluate_views(views, truth_of(views), depth)
    assert found.num_registered == found.num_images == 3 and found.scale == pytest.approx(2.5)
    assert max(found.rotation_deg, found.direction_deg, found.ate, found.focal, found.depth) < 1e-6
    assert all(share == 1 for share in found.accuracy.values()) and found.depth_within_3_percent == 1
    assert found.auc[1] == 1


def test_errors_by_hand() -> None:
    views = result_views()
    truth = truth_of(views)
    # the first camera turned by 2 degrees about y: two of three pairs are off in rotation and in direction
    name = Path(views[0].file).name
    truth[name] = dataclasses.replace(truth[name], world_from_cam=truth[name].world_from_cam @ pose(2, [0, 0, 0]))
    poses, true_poses = (np.stack(x) for x in ([v.world_from_cam for v in views],
                                               [truth[Path(v.file).name].world_from_cam for v in views]))  # fmt: skip
    rotation, direction = pair_errors_deg(poses, true_poses, np.array([True, True, True]))
    np.testing.assert_allclose(rotation, [2, 2, 0], atol=1e-6)
    np.testing.assert_allclose(direction[:1], [2], atol=1e-6)  # motion along x, turned about y
    found = evaluate_views(views, truth)
    assert found.accuracy[1] == pytest.approx(1 / 3) and found.accuracy[3] == 1
    focal = truth_of(views)
    focal[name] = dataclasses.replace(focal[name], K=np.diag([1.1, 1.1, 1.0]) @ views[0].K_original)
    assert evaluate_views(views, focal).focal == pytest.approx(0, abs=1e-9)  # the median of three


def test_missing_images_count_as_turned_around() -> None:
    views = result_views()
    views[1] = dataclasses.replace(views[1], registered=False)
    found = evaluate_views(views, truth_of(views))
    assert found.num_registered == 2 and found.rotation_deg == 180 and found.accuracy[15] == pytest.approx(1 / 3)


def test_area_under_the_curve_by_hand() -> None:
    assert area_under_curve(np.array([0.0, 0.0]), 5) == 1
    assert area_under_curve(np.array([180.0]), 5) == 0
    # an error of half the limit counts from there on: 150 of 300 steps, but not the step it lies on
    assert area_under_curve(np.array([2.5]), 5) == pytest.approx(0.5)
    assert area_under_curve(np.array([0.0, 180.0]), 5) == pytest.approx(0.5)


def write_colmap(folder: Path, views: list[ReconstructedView]) -> None:
    model = pycolmap.Reconstruction()
    for k, one in enumerate(views, 1):
        width, height = one.transform.original_size
        K = one.K_original
        params = [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5]
        camera = pycolmap.Camera(camera_id=k, model="PINHOLE", width=width, height=height, params=params)
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(image_id=k, camera_id=k, name=Path(one.file).name)
        cam_from_world = np.linalg.inv(moved(one.world_from_cam))[:3]
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(cam_from_world))
    folder.mkdir()
    model.write(str(folder))


def test_every_kind_of_file(tmp_path: Path) -> None:
    views = result_views()
    write_colmap(tmp_path / "sparse", views)
    entries = [
        {"file": Path(v.file).name, "K": v.K_original.tolist(), "world_from_cam": moved(v.world_from_cam).tolist()}
        for v in views
    ]
    (tmp_path / "truth.json").write_text(json.dumps({"views": entries}))
    Reconstruction(tuple(views), ()).export("cameras", tmp_path / "cameras.json")
    lines = ["# name tx ty tz qx qy qz qw"]
    for v in views:
        half = np.arctan2(v.world_from_cam[0, 2], v.world_from_cam[0, 0]) / 2
        x, y, z = v.world_from_cam[:3, 3]
        lines.append(f"{Path(v.file).name.replace(' ', '_')} {x} {y} {z} 0 {np.sin(half)} 0 {np.cos(half)}")
    (tmp_path / "tum.txt").write_text("\n".join(lines))
    for name in ("sparse", "truth.json", "cameras.json"):
        found = evaluate_views(views, read_truth(tmp_path / name))
        assert max(found.rotation_deg, found.direction_deg, found.ate, found.focal) < 1e-6, name
    renamed = [dataclasses.replace(v, file=v.file.replace(" ", "_")) for v in views]
    found = evaluate_views(renamed, read_truth(tmp_path / "tum.txt"))
    assert max(found.rotation_deg, found.direction_deg, found.ate) < 1e-6 and np.isnan(found.focal)


@pytest.mark.parametrize("content", ["{", '{"views": [{"file": "a"}]}', '{"images": 3}', "[]"])
def test_files_that_are_no_truth(tmp_path: Path, content: str) -> None:
    (tmp_path / "truth.json").write_text(content)
    with pytest.raises(InputError, match=r"truth\.json`: cannot be read as"):
        read_truth(tmp_path / "truth.json")
    (tmp_path / "tum.txt").write_text("a 1 2 3")
    with pytest.raises(InputError, match="4 fields, 8 are needed"):
        read_truth(tmp_path / "tum.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_truth(tmp_path)


def test_names_that_do_not_agree() -> None:
    with pytest.raises(InputError, match="cameras for 0 of 3 images"):
        evaluate_views(result_views(), {"other.jpg": TrueCamera(np.eye(4))})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = result_views()
    Reconstruction(tuple(views), ()).save(tmp_path / "out")
    write_colmap(tmp_path / "sparse", views)
    arguments = ["evaluate", str(tmp_path / "out"), "--truth", str(tmp_path / "sparse")]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--json", str(tmp_path / "figures.json")])
    shown = " ".join(capsys.readouterr().err.split())
    assert done.value.code == 0 and "Images registered 3 of 3" in shown and "100.0% at 1" in shown
    assert json.loads((tmp_path / "figures.json").read_text())["scale"] == pytest.approx(2.5)
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(tmp_path / "out"), "--truth", str(tmp_path / "nowhere.json")])
    assert done.value.code == 2 and "--truth" in capsys.readouterr().err
