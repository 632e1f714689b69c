"""The output folder exists completely or not at all, and nothing of the user's is ever lost."""

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from export_scene import read_glb, two_views, view

from mast3r_sfm.errors import EmptySceneError, InputError
from mast3r_sfm.export import result
from mast3r_sfm.export.glb import SceneStatistics
from mast3r_sfm.export.result import (
    ResultPart,
    check_output,
    expected_bytes,
    read_scene_options,
    rewrite_scene,
    write_result,
)
from mast3r_sfm.options import SceneKind, SceneOptions, Up
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import Correspondences

Refusal = Callable[[Path, bool, str], None]
"""Asks for a result in a folder, with --overwrite or not, and expects an error that matches."""

OPTIONS = SceneOptions(min_conf_thr=3.0)
FILES = {
    *("scene.glb", "cameras.json", "matches.npz", "reconstruction.npz", "report.html", "run.json"),
    *(f"{kind}_{i:03d}.{ending}" for kind in ("depth", "confidence") for i in (0, 1) for ending in ("npy", "png")),
}


def write(
    output: Path,
    overwrite: bool = False,
    reconstruction: Reconstruction | None = None,
    options: SceneOptions = OPTIONS,
    **run: Any,
) -> SceneStatistics:
    return write_result([ResultPart(reconstruction or two_views(), options, run)], output, overwrite)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An existing result."""
    write(tmp_path / "out", seed=1)
    return tmp_path / "out"


class TestWriting:
    def test_a_result_has_all_files_and_nothing_else_remains(self, tmp_path: Path) -> None:
        statistics = write(tmp_path / "new" / "deep" / "out", seed=7, loss=float("nan"))
        output = tmp_path / "new" / "deep" / "out"
        assert names(output) == FILES
        assert names(output.parent) == {"out"}
        assert 2 * 11 * 15 < statistics.num_faces < 2 * 2 * 11 * 15  # what both views show is there once
        run = run_of(output)
        assert run["seed"] == 7 and run["loss"] is None and run["tool"] == "mast3r-sfm"
        assert run["scene"]["num_faces"] == statistics.num_faces
        assert run["scene"]["min_conf_thr"] == 3.0 and run["scene"]["share_kept"] == 1.0

    def test_the_folder_has_the_usual_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "usual").mkdir()
        write(tmp_path / "out")
        assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode

    def test_an_empty_folder_is_filled_even_if_a_file_manager_looked_at_it(self, tmp_path: Path) -> None:
        for name, litter in (("a", None), ("b", ".DS_Store")):
            (tmp_path / name).mkdir()
            if litter:
                (tmp_path / name / litter).touch()
            write(tmp_path / name)
            assert names(tmp_path / name) == FILES

    def test_a_link_to_a_folder_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        write(tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and names(tmp_path / "real") == FILES

    def test_overwriting_replaces_the_result_as_a_whole(self, old: Path) -> None:
        write(old, overwrite=True, reconstruction=Reconstruction(two_views().views[:1], ()), seed=2)
        assert run_of(old)["seed"] == 2
        assert names(old) == {name for name in FILES if "_001" not in name}
        assert names(old.parent) == {"out"}

    def test_without_a_scene_everything_else_is_written_and_the_cure_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            write(tmp_path / "out", options=SceneOptions(min_conf_thr=50))
        assert names(tmp_path / "out") == FILES - {"scene.glb"}
        command = f"mast3r-sfm export {tmp_path / 'out'} --min-conf-thr 9.99"
        assert str(caught.value).endswith(command)
        assert "`min_conf_thr=50` keeps no triangle" in run_of(tmp_path / "out")["scene"]["error"]
        rewrite_scene(tmp_path / "out", SceneOptions(min_conf_thr=9.99))
        assert names(tmp_path / "out") == FILES and "error" not in run_of(tmp_path / "out")["scene"]


class TestRefusals:
    """By the check before the computation, and by the writer itself."""

    @pytest.fixture(params=["check", "write"])
    def refused(self, request: pytest.FixtureRequest) -> Refusal:
        def attempt(output: Path, overwrite: bool, match: str) -> None:
            with pytest.raises(InputError, match=match) as caught:
                check_output(output, overwrite) if request.param == "check" else write(output, overwrite)
            assert caught.value.exit_code == 2

        return attempt

    def test_a_result_is_kept_unless_overwriting_is_asked_for(self, old: Path, refused: Refusal) -> None:
        before = content(old)
        refused(old, False, "already holds a result.*`overwrite=True`")
        assert content(old) == before
        check_output(old, True)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_of_something_else_is_never_deleted(
        self, tmp_path: Path, refused: Refusal, overwrite: bool
    ) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        for name, text in (("a.jpg", "photo"), ("run.json", '{"tool": "another"}')):
            (photos / name).write_text(text)
            refused(photos, overwrite, "no result of mast3r-sfm")
            assert (photos / name).read_text() == text
        assert names(photos) == {"a.jpg", "run.json"}

    def test_files_that_the_user_put_into_a_result_are_not_deleted(self, old: Path, refused: Refusal) -> None:
        (old / "notes.txt").write_text("mine")
        refused(old, True, r"also notes\.txt, which `overwrite=True` would delete")
        assert (old / "notes.txt").read_text() == "mine"

    def test_files_that_the_user_put_into_an_export_are_not_deleted(self, old: Path, refused: Refusal) -> None:
        for entry in ("nerfstudio", "scene_1/depth_exr"):
            (old / entry).mkdir(parents=True)
            (old / entry / "notes.txt").write_text("mine")
            refused(old, True, rf"also {entry}/notes\.txt, which `overwrite=True` would delete")
            (old / entry / "notes.txt").unlink()
        write(old, overwrite=True)

    def test_a_file(self, tmp_path: Path, refused: Refusal) -> None:
        (tmp_path / "out").write_text("mine")
        refused(tmp_path / "out", True, "is a file: name a folder")
        refused(tmp_path / "out" / "below", True, "Not a directory|File exists")
        assert (tmp_path / "out").read_text() == "mine"

    def test_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refusal) -> None:
        (tmp_path / "here" / "below").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here" / "below")
        refused(Path(), False, "holds the current folder")
        refused(tmp_path / "here", False, "holds the current folder")

    def test_a_mount_point(self, refused: Refusal) -> None:
        refused(Path("/proc"), True, "mount point")

    @pytest.mark.parametrize(
        ("number", "match"),
        [
            (errno.EROFS, r"cannot be written to \(Read-only file system\): change its permissions"),
            (errno.EACCES, r"cannot be written to \(Permission denied\)"),
            (errno.ENOSPC, "The disk of .* is full: free some space"),
        ],
    )
    def test_a_place_that_cannot_be_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refusal, number: int, match: str
    ) -> None:
        def fail(self: Path, *args: Any, **kwargs: Any) -> None:
            raise OSError(number, os.strerror(number), str(self))

        monkeypatch.setattr(Path, "mkdir", fail)
        refused(tmp_path / "out", False, match)
        assert not names(tmp_path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, tmp_path: Path, refused: Refusal) -> None:
        tmp_path.chmod(0o500)
        refused(tmp_path / "new" / "out", False, f"{tmp_path}.* cannot be written to")
        tmp_path.chmod(0o700)


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "out", False)
    assert not names(tmp_path)


def test_too_little_disk_is_told_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has \d+ MB free, the result takes up to 1000000000000 MB"):
        check_output(tmp_path / "out", False, needed_bytes=10**18)


def test_a_disk_that_does_not_tell_its_size_is_not_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=0))
    check_output(tmp_path / "out", False, needed_bytes=10**9)


def test_the_expected_size_is_an_upper_bound(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noisy = view(
        rng.uniform(2, 2.01, (200, 300)), rgb=rng.integers(0, 256, (200, 300, 3)), conf=rng.uniform(4, 9, (200, 300))
    )

    def size_of(matches: tuple[Correspondences, ...], options: SceneOptions) -> int:
        write(tmp_path / "out", overwrite=True, reconstruction=Reconstruction((noisy,), matches), options=options)
        return sum(path.stat().st_size for path in (tmp_path / "out").iterdir())

    for options in (SceneOptions(cameras=False), SceneOptions(cameras=False, as_pointcloud=True)):
        size = size_of((), options)
        assert 0.6 < size / expected_bytes(200 * 300, 0, options) <= 1
        xy_i, xy_j = (torch.from_numpy(rng.integers(0, 200, (50_000, 2), dtype=np.int32)) for _ in range(2))
        conf = torch.from_numpy(rng.uniform(1, 9, 50_000).astype(np.float32))
        matches = Correspondences(0, 0, xy_i, xy_j, conf)
        room = expected_bytes(200 * 300, 50_000, options) - expected_bytes(200 * 300, 0, options)
        assert 0.5 < (size_of((matches,), options) - size) / room <= 1


class TestFailures:
    """Whatever fails, and wherever, an old result stays as it was and no half one is left."""

    WRITERS = ("save_reconstruction", "write_depth_maps", "write_cameras", "write_matches", "write_glb", "write_json")

    @pytest.mark.parametrize("writer", WRITERS)
    @pytest.mark.parametrize(
        ("error", "seen"),
        [
            (KeyboardInterrupt(), KeyboardInterrupt),
            (OSError(errno.ENOSPC, "No space left on device"), InputError),
            (RuntimeError("a bug"), RuntimeError),
        ],
    )
    def test_while_writing(
        self, old: Path, monkeypatch: pytest.MonkeyPatch, writer: str, error: BaseException, seen: type[BaseException]
    ) -> None:
        before = content(old)

        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(result, writer, fail)
        with pytest.raises(seen):
            write(old, overwrite=True)
        with pytest.raises(seen):
            write(old.parent / "a" / "b" / "new")
        assert names(old.parent) == {"out"}
        assert content(old) == before

    @pytest.mark.parametrize("step", [1, 2])
    def test_while_moving_into_place(self, old: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        """Ctrl-C before or after the renaming of the old result (1) or of the new one (2)."""
        before = content(old)
        rename = Path.rename
        for interrupt_after in (False, True):
            calls: list[Path] = []

            def interrupted(
                self: Path, target: Path, calls: list[Path] = calls, interrupt_after: bool = interrupt_after
            ) -> Path:
                calls.append(target)
                if len(calls) == step and not interrupt_after:
                    raise KeyboardInterrupt
                renamed = rename(self, target)
                if len(calls) == step:
                    raise KeyboardInterrupt
                return renamed

            monkeypatch.setattr(Path, "rename", interrupted)
            with pytest.raises(KeyboardInterrupt):
                write(old, overwrite=True, seed=2)
            assert names(old.parent) == {"out"}
            if (step, interrupt_after) == (2, True):
                assert run_of(old)["seed"] == 2 and names(old) == FILES  # it was in place already
            else:
                assert content(old) == before

    def test_a_finished_result_is_kept_if_its_place_is_taken_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = tmp_path / "out"
        cameras = result.write_cameras

        def meanwhile(*args: Any) -> None:
            output.mkdir()
            (output / "mine.txt").write_text("mine")
            cameras(*args)

        monkeypatch.setattr(result, "write_cameras", meanwhile)
        with pytest.raises(InputError, match=r"no result of mast3r-sfm.*The finished result is in ") as caught:
            write(output)
        assert content(output) == {"mine.txt": b"mine"}
        rescued = Path(str(caught.value).rpartition(" is in ")[2])
        assert names(rescued) == FILES and names(tmp_path) == {"out", rescued.name}

    def test_the_old_result_comes_back_if_the_new_one_cannot_be_moved(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = content(old)
        rename = Path.rename

        def refuse(self: Path, target: Path) -> Path:
            if ".partial-" in self.name and Path(target) == old:
                raise OSError(errno.EBUSY, "Device or resource busy")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(InputError, match=r"busy.*The finished result is in "):
            write(old, overwrite=True, seed=2)
        assert content(old) == before
        [rescued] = [path for path in old.parent.iterdir() if path != old]
        assert names(rescued) == FILES


class TestRewriting:
    def test_only_the_scene_and_its_notes_change(self, old: Path) -> None:
        before = content(old)
        statistics = rewrite_scene(old, SceneOptions(as_pointcloud=True, max_points=50))
        assert names(old) == FILES
        changed = {name for name, data in content(old).items() if data != before[name]}
        assert changed == {"scene.glb", "run.json", "report.html"}
        assert statistics.num_vertices == 50 == len(read_glb(old / "scene.glb").primitives("points")[0]["POSITION"])
        assert run_of(old)["seed"] == 1
        assert run_of(old)["scene"]["as_pointcloud"] is True and run_of(old)["scene"]["num_vertices"] == 50

    def test_cameras_json_follows_the_frame_of_the_scene(self, old: Path) -> None:
        assert json.loads((old / "cameras.json").read_text())["scene_glb"]["up_from"] in ("cameras", "planes")
        rewrite_scene(old, dataclasses.replace(OPTIONS, up=Up.FIRST_CAMERA))
        frame = json.loads((old / "cameras.json").read_text())["scene_glb"]
        assert frame["up_from"] == "first-camera" and run_of(old)["scene"]["up"] == "first-camera"
        assert frame["gltf_from_world"] == [[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

    def test_the_options_of_a_scene_can_be_read_back(self, tmp_path: Path) -> None:
        fused = SceneOptions(scene=SceneKind.FUSED, up=Up.FIRST_CAMERA, texture_size=99)
        for options in (OPTIONS, SceneOptions(1.5, True, 77, False, 0.3, False, 0.1), fused):
            write(tmp_path / "out", overwrite=True, options=options)
            assert read_scene_options(tmp_path / "out") == options
        with pytest.raises(InputError, match="is not a result of mast3r-sfm"):
            read_scene_options(tmp_path)

    def test_an_empty_scene_leaves_the_old_one(self, old: Path) -> None:
        before = content(old)
        with pytest.raises(EmptySceneError, match="`min_conf_thr=50`"):
            rewrite_scene(old, SceneOptions(min_conf_thr=50))
        assert content(old) == before

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
    def test_a_failure_leaves_the_old_one(
        self, old: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        before = content(old)

        def fail(reconstruction: Reconstruction, path: Path, *_: Any) -> None:
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(result, "write_glb", fail)
        with pytest.raises((KeyboardInterrupt, InputError)):
            rewrite_scene(old, dataclasses.replace(OPTIONS, as_pointcloud=True))
        assert content(old) == before

    def test_only_in_a_result(self, tmp_path: Path, old: Path) -> None:
        with pytest.raises(InputError, match="is not a result of mast3r-sfm"):
            rewrite_scene(tmp_path, OPTIONS)
        with pytest.raises(InputError, match="is not a result of mast3r-sfm"):
            rewrite_scene(tmp_path / "missing", OPTIONS)
        (old / "reconstruction.npz").unlink()
        with pytest.raises(InputError, match=r"reconstruction\.npz does not exist"):
            rewrite_scene(old, OPTIONS)
        shutil.rmtree(old)
