"""Compressed geometry for glTF by the libraries that its extensions are named after, which are optional extras.

Meshopt (EXT_meshopt_compression) keeps buffers and accessors and packs each buffer; viewers decode it at the speed of
memory. Draco (KHR_draco_mesh_compression) packs a whole mesh, smaller and slower; it knows no points.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from mast3r_sfm.export.extras import require
from mast3r_sfm.options import Compression

_PACKAGE = {Compression.MESHOPT: "meshopt", Compression.DRACO: "DracoPy"}

POSITION_BITS = 15
"""Of a coordinate, over the extent of a mesh: a third of a millimetre in ten metres."""

TEXTURE_BITS = 14
"""Of a texture coordinate: an eighth of a pixel of a large texture."""

_DRACO_LEVEL = 7  # of 10; higher ones are slower and hardly smaller


def check_compression(compress: Compression) -> None:
    """Raises InputError that says how to install the library, if it is not there."""
    if (package := _PACKAGE.get(compress)) is not None:
        require(f"compress={compress}", package, package, str(compress))


def _library(compress: Compression) -> Any:
    check_compression(compress)
    return import_module(_PACKAGE[compress])


@dataclass(frozen=True)
class PackedBuffer:
    """One buffer view packed by meshopt.

    data    the bytes in the file
    values  (N, k) what a viewer decodes
    mode, filter   as the extension names them; filter None for none
    """

    data: bytes
    values: np.ndarray
    mode: str
    filter: str | None = None


def reordered_mesh(
    vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The same mesh in the order that packs well: faces beside each other, vertices as the faces come to them."""
    indices, place_of, used = _library(Compression.MESHOPT).reorder_mesh(
        np.ascontiguousarray(faces, dtype=np.uint32).reshape(-1), triangles=True, optsize=True
    )
    order = np.argsort(place_of)[:used]
    return vertices[order], indices.reshape(-1, 3), None if uv is None else uv[order]


def reordered_points(vertices: np.ndarray) -> np.ndarray:
    """(N,) the order in which points that are near each other come one after the other."""
    return np.argsort(_library(Compression.MESHOPT).reorder_points(vertices.astype(np.float32)))


def packed_floats(values: np.ndarray, bits: int) -> PackedBuffer:
    """Floats (N, k) of `bits` significant bits each, of a grid that is the same for every value of a column."""
    meshopt = _library(Compression.MESHOPT)
    values = np.ascontiguousarray(values, dtype=np.float32)
    rows = meshopt.encode_filter_exp(values, bits, "SharedComponent")
    data = meshopt.encode_gltf_buffer(rows, "ATTRIBUTES")
    size = values.shape[1] * 4
    decoded = meshopt.decode_gltf_buffer(data, len(values), size, "ATTRIBUTES", "EXPONENTIAL")
    return PackedBuffer(data, np.ascontiguousarray(decoded).view(np.float32), "ATTRIBUTES", "EXPONENTIAL")


def packed_triangles(indices: np.ndarray) -> PackedBuffer:
    """Indices (3 F,) of triangles, uint16 or uint32."""
    return PackedBuffer(_library(Compression.MESHOPT).encode_gltf_buffer(indices, "TRIANGLES"), indices, "TRIANGLES")


@dataclass(frozen=True)
class DracoMesh:
    """A mesh packed by Draco; the vertices come in another order and may have become fewer.

    attributes  number of each attribute in the data, by its name in glTF
    vertices    (N, 3) float32 what a viewer decodes
    num_faces   of those
    """

    data: bytes
    attributes: dict[str, int]
    vertices: np.ndarray
    num_faces: int


def draco_mesh(vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray) -> DracoMesh:
    """Packs vertices (N, 3), faces (F, 3) and texture coordinates (N, 2)."""
    draco = _library(Compression.DRACO)
    data = draco.encode(
        np.ascontiguousarray(vertices, dtype=np.float32),
        faces=np.ascontiguousarray(faces, dtype=np.uint32),
        tex_coord=np.ascontiguousarray(uv, dtype=np.float64),
        quantization_bits=POSITION_BITS,
        tex_coord_quantization_bits=TEXTURE_BITS,
        compression_level=_DRACO_LEVEL,
    )
    decoded = draco.decode(data)
    kinds = {draco.AttributeType.POSITION: "POSITION", draco.AttributeType.TEX_COORD: "TEXCOORD_0"}
    attributes = {kinds[one["attribute_type"]]: int(one["unique_id"]) for one in decoded.attributes}
    return DracoMesh(data, attributes, np.asarray(decoded.points, dtype=np.float32), len(decoded.faces))
