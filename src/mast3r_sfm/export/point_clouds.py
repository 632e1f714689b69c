"""Points of the scene as LAS and E57 files, which surveying and point cloud programs read; by packages that are extras.

A georeferenced LAS file is in metres of the UTM zone of its origin, which it names: geographic programs put it in its
place. All other files are in the frame of the exported cameras: metres east, north and up, or that of `cameras.json`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from mast3r_sfm._version import __version__
from mast3r_sfm.export.extras import require_for
from mast3r_sfm.export.georeference import in_metres, utm_crs, utm_from_enu
from mast3r_sfm.export.points import scene_points
from mast3r_sfm.options import ExportFormat, SceneOptions
from mast3r_sfm.types import ReconstructedScene

_LAS_RESOLUTION = 0.0001  # coordinates are whole numbers of these
_LARGEST_INT = 2**31 - 1


def write_las(scene: ReconstructedScene, path: Path, options: SceneOptions) -> None:
    """Writes the kept points with colours of 16 bits (LAS 1.4, format 7) and their confidence as an extra dimension.

    Raises InputError if the library is missing, and EmptySceneError if no point is left.
    """
    require_for(ExportFormat.LAS)
    import laspy

    place = scene.georeference
    points = scene_points(in_metres(scene), options)
    xyz = points.xyz.astype(np.float64)
    header = laspy.LasHeader(version="1.4", point_format=7)
    header.generating_software = f"mast3r-sfm {__version__}"
    header.add_extra_dim(laspy.ExtraBytesParams(name="confidence", type=np.dtype(np.float32)))
    if place is not None:
        xyz = utm_from_enu(place, xyz)
        header.add_crs(utm_crs(place))
    header.offsets = np.floor(np.median(xyz, axis=0))
    # whole numbers of 32 bits must reach all points
    extent = float(np.abs(xyz - header.offsets).max())
    header.scales = np.full(3, _LAS_RESOLUTION * max(1.0, np.ceil(extent / (_LARGEST_INT * _LAS_RESOLUTION))))
    las = laspy.LasData(header)
    las.x, las.y, las.z = xyz.T
    las.red, las.green, las.blue = points.rgb.astype(np.uint16).T * np.uint16(257)  # 255 becomes 65535
    las.confidence = points.confidence
    las.write(str(path))


def write_e57(scene: ReconstructedScene, path: Path, options: SceneOptions) -> None:
    """Writes the kept points with colours as one scan.

    Raises InputError if the library is missing, and EmptySceneError if no point is left.
    """
    require_for(ExportFormat.E57)
    import pye57

    points = scene_points(scene, options)
    columns = {
        **dict(zip(("cartesianX", "cartesianY", "cartesianZ"), points.xyz.astype(np.float64).T, strict=True)),
        **dict(zip(("colorRed", "colorGreen", "colorBlue"), points.rgb.T, strict=True)),
    }
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=".e57-"
    ) as folder:  # the library does not write over a file
        made = Path(folder) / "scene.e57"
        file = pye57.E57(str(made), mode="w")
        file.write_scan_raw({name: np.ascontiguousarray(values) for name, values in columns.items()}, name="scene")
        file.close()
        made.replace(path)
