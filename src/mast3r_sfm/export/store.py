"""`reconstruction.npz`: a whole `ReconstructedScene`, without loss, so that it can be exported again."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.files import write_npz
from mast3r_sfm.export.matches import pack_matches, unpack_matches
from mast3r_sfm.types import (
    Frame,
    Georeference,
    GpsFix,
    ImageTransform,
    Level,
    ReconstructedScene,
    ReconstructedView,
    SceneVerdict,
    Tracks,
    Verdict,
)

FORMAT_VERSION = 3
"""Format 2 has no tracks, format 1 no distortion and nothing else of a refinement; both are read."""


def save_reconstruction(reconstruction: ReconstructedScene, path: Path) -> None:
    """Writes one compressed file that `load_reconstruction` and `np.load` read, without pickle."""
    views, group_of = reconstruction.views, reconstruction.group_of
    arrays = {
        "format_version": np.array(FORMAT_VERSION),
        "index": np.array([view.index for view in views], dtype=np.int64),
        "file": np.array([view.file_in_result for view in views], dtype=np.str_),
        "transform": np.array([_packed_transform(view.transform) for view in views], dtype=np.int64).reshape(-1, 4, 2),
        "registered": np.array([view.registered for view in views], dtype=bool),
        "K": np.array([view.K for view in views], dtype=np.float64).reshape(-1, 3, 3),
        "world_from_cam": np.array([view.world_from_cam for view in views], dtype=np.float64).reshape(-1, 4, 4),
        "median_reprojection_error_px": np.array([view.median_reprojection_error_px for view in views], dtype=float),
        "num_matches": np.array([view.num_matches for view in views], dtype=np.int64),
        "distortion": np.array([view.distortion for view in views], dtype=np.float64),
        "refined": np.array([view.refined for view in views], dtype=bool),
        "num_track_observations": np.array([view.num_track_observations for view in views], dtype=np.int64),
        "track_error_px": np.array([view.track_error_px for view in views], dtype=np.float64),
        "focal_std_px": np.array([view.focal_std_px for view in views], dtype=np.float64),
        "position_std": np.array([view.position_std for view in views], dtype=np.float64),
        "apart_error_px": np.array([view.apart_error_px for view in views], dtype=np.float64),
        "gps": np.array([_packed_fix(view.gps) for view in views], dtype=np.float64).reshape(-1, 4),
        "num_confirmed": np.array([view.num_confirmed for view in views], dtype=np.int64),
        "num_explained": np.array([view.num_explained for view in views], dtype=np.int64),
        "clip": np.array([view.frame.clip if view.frame else "" for view in views], dtype=np.str_),
        "clip_time_s": np.array([view.frame.time_s if view.frame else 0.0 for view in views], dtype=np.float64),
        "sample_bits": np.array([view.sample_bits for view in views], dtype=np.int64),
        "mask_file": np.array([view.mask_file or "" for view in views], dtype=np.str_),
        "photo_folders": np.array(_photo_folders(views, path), dtype=np.str_),
        "group": np.array([group_of.get(view.index, -1) for view in views], dtype=np.int64),
        "verdict": np.array(_verdict_text(reconstruction.verdict), dtype=np.str_),
        **{f"match_{key}": array for key, array in pack_matches(reconstruction.matches).items()},
    }
    for number, view in enumerate(views):
        arrays[f"rgb_{number:03d}"] = view.rgb
        arrays[f"depth_{number:03d}"] = view.depth
        arrays[f"conf_{number:03d}"] = view.conf
        # cleaning sets confidences to 0 and changes nothing else, so a flag per pixel says it all
        cleaned = view.conf_clean == 0
        assert np.array_equal(_cleaned(view.conf, cleaned), view.conf_clean, equal_nan=True)
        arrays[f"cleaned_{number:03d}"] = cleaned
        if view.mask is not None:
            arrays[f"mask_{number:03d}"] = view.mask
    if reconstruction.tracks is not None:
        arrays |= {f"track_{key}": getattr(reconstruction.tracks, key) for key in _TRACKS}
    if (place := reconstruction.georeference) is not None:
        arrays |= {
            "georeference_origin": np.array([place.latitude_deg, place.longitude_deg, place.altitude_m]),
            "georeference_enu_from_world": place.enu_from_world,
            "georeference_residuals_m": place.residuals_m,
            "georeference_inliers": place.inliers,
        }
    write_npz(path, arrays)


def load_reconstruction(path: Path) -> ReconstructedScene:
    """Reads what `save_reconstruction` wrote.

    Raises InputError if the file is missing, damaged, or of another version of the format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            version = int(file["format_version"])
            if not 1 <= version <= FORMAT_VERSION:
                raise InputError(
                    f"{path} has format {version}, this version of mast3r-sfm reads formats up to {FORMAT_VERSION}: "
                    "run the reconstruction again"
                )
            matches = unpack_matches({key: file[f"match_{key}"] for key in pack_matches([])})
            columns = {key: file[key] for key in _COLUMNS}
            count = len(columns["index"])
            # earlier formats do not have all of them
            columns |= {key: file.get(key, np.full(count, usual)) for key, usual in _LATER_COLUMNS.items()}
            columns["gps"] = file.get("gps", np.full((count, 4), np.nan))
            photo_folder = _photo_folder(file, columns, path)
            views = tuple(_view(file, columns, number, path.parent, photo_folder) for number in range(count))
            groups = _groups(columns["index"], columns["group"])
            verdict = _verdict(str(file["verdict"])) if "verdict" in file else None
            tracks = Tracks(**{key: file[f"track_{key}"] for key in _TRACKS}) if "track_points" in file else None
            place = _georeference(file) if "georeference_origin" in file else None
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: name the output folder of a finished reconstruction") from error
    except (OSError, EOFError, KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): run the reconstruction again"
        ) from error
    return ReconstructedScene(views, matches, tracks, groups, verdict, georeference=place)


_COLUMNS = (
    "index",
    "file",
    "transform",
    "registered",
    "K",
    "world_from_cam",
    "median_reprojection_error_px",
    "num_matches",
)
_LATER_COLUMNS: dict[str, float | str] = {
    "distortion": 0.0,
    "refined": False,
    "num_track_observations": 0,
    "track_error_px": np.nan,
    "focal_std_px": np.nan,
    "position_std": np.nan,
    "apart_error_px": np.nan,
    "num_confirmed": 0,
    "num_explained": 0,
    "group": -1,
    "clip": "",
    "clip_time_s": 0.0,
    "sample_bits": 16,
    "mask_file": "",
}
_TRACKS = tuple(field.name for field in dataclasses.fields(Tracks))


def _groups(index: np.ndarray, group: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Indices of the views of each group; none if the groups are not known."""
    return tuple(tuple(index[group == number].tolist()) for number in range(int(group.max(initial=-1)) + 1))


def _photo_folders(views: Sequence[ReconstructedView], path: Path) -> tuple[str, str]:
    """What names of photos and masks are relative to: the folder as it is named now, and seen from that of the store.

    The first holds from wherever an export is started, the second where photos and result moved together.
    """
    folder = Path(next((view.folder for view in views if view.folder), "")).absolute()
    try:
        return str(folder), os.path.relpath(folder, path.absolute().parent)
    except ValueError:  # another drive of Windows: there is no way between the two
        return str(folder), str(folder)


def _photo_folder(file: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray], path: Path) -> str:
    """The folder that names of photos are relative to: the first that has one of them; "" for the current one."""
    if "photo_folders" not in file:
        return ""  # older results do not say
    named, seen_from_here = (str(folder) for folder in file["photo_folders"])
    names = [str(name) for name, clip in zip(columns["file"], columns["clip"], strict=True) if not clip]
    candidates = (named, os.path.normpath(path.absolute().parent / seen_from_here), "")
    return next((folder for folder in candidates if any(Path(folder, name).exists() for name in names)), named)


def _verdict_text(verdict: SceneVerdict | None) -> str:
    """A verdict as JSON; "" without one."""
    if verdict is None:
        return ""
    return json.dumps([[str(one.level), *one.reasons] for one in (verdict.overall, *verdict.views)])


def _verdict(text: str) -> SceneVerdict | None:
    if not text:
        return None
    overall, *views = (Verdict(Level(level), tuple(reasons)) for level, *reasons in json.loads(text))
    return SceneVerdict(overall, tuple(views))


def _packed_fix(fix: GpsFix | None) -> tuple[float, ...]:
    """Four numbers, nan for what is not known."""
    values = (
        (None,) * 4 if fix is None else (fix.latitude_deg, fix.longitude_deg, fix.altitude_m, fix.horizontal_error_m)
    )
    return tuple(np.nan if value is None else value for value in values)


def _fix(packed: np.ndarray) -> GpsFix | None:
    latitude, longitude, altitude, error = (None if np.isnan(value) else float(value) for value in packed)
    return None if latitude is None or longitude is None else GpsFix(latitude, longitude, altitude, error)


def _georeference(file: Mapping[str, np.ndarray]) -> Georeference:
    names = ("enu_from_world", "residuals_m", "inliers")
    latitude, longitude, altitude = (float(value) for value in file["georeference_origin"])
    return Georeference(latitude, longitude, altitude, **{name: file[f"georeference_{name}"] for name in names})


def _cleaned(conf: np.ndarray, cleaned: np.ndarray) -> np.ndarray:
    return np.where(cleaned, np.float32(0), conf)


def _packed_transform(transform: ImageTransform) -> list[tuple[int, int]]:
    return [transform.original_size, transform.resized_size, transform.crop_left_top, transform.network_size]


def _view(
    file: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray], number: int, folder: Path, photo_folder: str
) -> ReconstructedView:
    name, clip = str(columns["file"][number]), str(columns["clip"][number])
    conf = file[f"conf_{number:03d}"]
    original, resized, crop, network = ((int(x), int(y)) for x, y in columns["transform"][number])
    return ReconstructedView(
        index=int(columns["index"][number]),
        file=str(folder / name) if clip else name,  # frames are kept in the result
        transform=ImageTransform(original, resized, crop, network),
        rgb=file[f"rgb_{number:03d}"],
        registered=bool(columns["registered"][number]),
        K=columns["K"][number],
        world_from_cam=columns["world_from_cam"][number],
        depth=file[f"depth_{number:03d}"],
        conf=conf,
        conf_clean=_cleaned(conf, file[f"cleaned_{number:03d}"]),
        median_reprojection_error_px=float(columns["median_reprojection_error_px"][number]),
        num_matches=int(columns["num_matches"][number]),
        mask=file.get(f"mask_{number:03d}"),
        distortion=float(columns["distortion"][number]),
        refined=bool(columns["refined"][number]),
        num_track_observations=int(columns["num_track_observations"][number]),
        track_error_px=float(columns["track_error_px"][number]),
        focal_std_px=float(columns["focal_std_px"][number]),
        position_std=float(columns["position_std"][number]),
        apart_error_px=float(columns["apart_error_px"][number]),
        gps=_fix(columns["gps"][number]),
        num_confirmed=int(columns["num_confirmed"][number]),
        num_explained=int(columns["num_explained"][number]),
        frame=Frame(clip, float(columns["clip_time_s"][number])) if clip else None,
        sample_bits=int(columns["sample_bits"][number]),
        mask_file=str(columns["mask_file"][number]) or None,
        folder="" if clip else photo_folder,
    )
