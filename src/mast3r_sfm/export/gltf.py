"""A writer of binary glTF 2.0 (GLB): just the parts a reconstructed scene needs.

All materials are unlit (KHR_materials_unlit), because the photos carry their light already.
Colours enter as sRGB, as photos have them. Textures are sRGB in glTF too; factors and vertex colours are linear
there, so those are converted here.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.compression import (
    POSITION_BITS,
    TEXTURE_BITS,
    PackedBuffer,
    draco_mesh,
    packed_floats,
    packed_triangles,
    reordered_mesh,
    reordered_points,
)
from mast3r_sfm.options import Compression

_COMPONENT = {"uint16": 5123, "uint32": 5125, "float32": 5126}
_VERTEX_TARGET, _INDEX_TARGET = 34962, 34963
_POINTS, _TRIANGLES = 0, 4
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071
_MESHOPT, _DRACO = "EXT_meshopt_compression", "KHR_draco_mesh_compression"
_COLOUR_BITS = 12
_WORTH_PACKING = 1000
"""Faces or points from which a primitive is compressed; the frame of a camera is not worth it."""


def linear_from_srgb(srgb: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1], float32, from uint8 sRGB of the same shape (IEC 61966-2-1)."""
    code = np.arange(256) / 255.0
    table = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return table.astype(np.float32)[srgb]


class GlbBuilder:
    """Collects meshes and writes them as one file. Every `add_` method returns the index of what it added.

    compress  how the geometry of large primitives is packed; the file then needs the extension of that name
    """

    def __init__(self, generator: str, compress: Compression = Compression.NONE) -> None:
        self._compress = compress
        self._unpacked_size = 0
        self._document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": generator},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"nodes": []}],
        }
        self._chunks: list[bytes] = []
        self._size = 0

    def add_texture(self, jpeg: bytes, name: str) -> int:
        """A texture of a JPEG file, clamped at its borders."""
        if "samplers" not in self._document:
            sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR}
            self._append("samplers", sampler | {"wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE})
        image = {"bufferView": self._add_buffer(jpeg), "mimeType": "image/jpeg", "name": name}
        return self._append("textures", {"sampler": 0, "source": self._append("images", image)})

    def add_material(
        self,
        name: str,
        srgb: tuple[int, int, int] | None = None,
        texture: int | None = None,
        double_sided: bool = False,
    ) -> int:
        """A material of one colour (0..255), of a texture, or white for vertices that have colours."""
        surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        if srgb is not None:
            surface["baseColorFactor"] = [*linear_from_srgb(np.array(srgb)).tolist(), 1.0]
        if texture is not None:
            surface["baseColorTexture"] = {"index": texture}
        material = {"name": name, "pbrMetallicRoughness": surface, "doubleSided": double_sided}
        return self._append("materials", material | {"extensions": {"KHR_materials_unlit": {}}})

    def triangles(
        self, vertices: np.ndarray, faces: np.ndarray, material: int, uv: np.ndarray | None = None
    ) -> dict[str, Any]:
        """A primitive of triangles for `add_mesh`.

        vertices  (N, 3) float32
        faces     (F, 3) indices, counter-clockwise seen from the front
        uv        (N, 2) texture coordinates, (0, 0) at the top left corner of the image
        """
        packed = self._compress is not Compression.NONE and len(faces) >= _WORTH_PACKING
        if packed and self._compress is Compression.DRACO and uv is not None:
            return self._draco_triangles(vertices, faces, material, uv)
        packed = packed and self._compress is Compression.MESHOPT
        if packed:
            vertices, faces, uv = reordered_mesh(vertices, faces, uv)
        attributes = {"POSITION": self._add_positions(vertices, packed)}
        if uv is not None:
            attributes["TEXCOORD_0"] = self._add_floats(uv, "VEC2", TEXTURE_BITS if packed else None)
        indices = faces.astype(_index_type(len(vertices))).reshape(-1)
        index = (
            self._add_packed(packed_triangles(indices), "SCALAR", _INDEX_TARGET)
            if packed
            else self._add_accessor(indices, "SCALAR", _INDEX_TARGET)
        )
        return {"attributes": attributes, "indices": index, "material": material, "mode": _TRIANGLES}

    def points(self, vertices: np.ndarray, srgb: np.ndarray, material: int) -> dict[str, Any]:
        """A primitive of points (N, 3) float32 with (N, 3) uint8 sRGB colours.

        Colours are stored as linear floats: 8 bits of linear light are too coarse for shadows, and trimesh reads
        16-bit colours wrongly.
        """
        packed = self._compress is Compression.MESHOPT and len(vertices) >= _WORTH_PACKING
        if packed:
            order = reordered_points(vertices)
            vertices, srgb = vertices[order], srgb[order]
        attributes = {"POSITION": self._add_positions(vertices, packed)}
        attributes["COLOR_0"] = self._add_floats(linear_from_srgb(srgb), "VEC3", _COLOUR_BITS if packed else None)
        return {"attributes": attributes, "material": material, "mode": _POINTS}

    def add_mesh(self, name: str, primitives: list[dict[str, Any]]) -> int:
        """A node that shows `primitives`."""
        mesh = self._append("meshes", {"name": name, "primitives": primitives})
        return self._append("nodes", {"name": name, "mesh": mesh})

    def add_camera(
        self,
        name: str,
        yfov: float,
        aspect: float,
        near: float,
        pose: np.ndarray,
        children: list[int],
        extras: dict[str, Any],
    ) -> int:
        """A node with a perspective camera without a far plane, and `children` in its frame.

        yfov    angle from the lower to the upper edge of the picture, radians
        aspect  width of the picture over its height, at one distance
        pose    (4, 4) of the file from the camera; the camera looks along its -z, y is up
        extras  facts that glTF has no place for
        """
        perspective = {"yfov": yfov, "aspectRatio": aspect, "znear": near}
        camera = self._append("cameras", {"name": name, "type": "perspective", "perspective": perspective})
        self._document["cameras"][camera]["extras"] = extras
        node: dict[str, Any] = {"name": name, "camera": camera, "matrix": pose.T.reshape(-1).tolist()}
        return self._append("nodes", node | ({"children": children} if children else {}))

    def add_group(self, name: str, nodes: list[int]) -> None:
        """Puts `nodes` into the scene under one name, so that a viewer can hide them together."""
        if nodes:
            self._document["scenes"][0]["nodes"].append(self._append("nodes", {"name": name, "children": nodes}))

    def write(self, path: Path) -> int:
        """Writes the file and returns its size in bytes. Raises InputError above the format's limit of 4 GiB."""
        buffers: list[dict[str, Any]] = [{"byteLength": self._size}]
        if self._unpacked_size:  # what a viewer unpacks to; it has no bytes in the file
            buffers.append({"byteLength": self._unpacked_size, "extensions": {_MESHOPT: {"fallback": True}}})
        document = self._document | {"buffers": buffers}
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._size
        if total >= 2**32:
            raise InputError(f"{path.name} would have {total / 2**30:.1f} GiB, GLB files end at 4: lower `max_points`")
        with path.open("wb") as file:
            file.write(struct.pack("<4sII", b"glTF", 2, total))
            file.write(struct.pack("<I4s", len(text), b"JSON") + text)
            file.write(struct.pack("<I4s", self._size, b"BIN\0"))
            file.writelines(self._chunks)
        return total

    def _append(self, kind: str, item: dict[str, Any]) -> int:
        items = self._document.setdefault(kind, [])
        items.append(item)
        return len(items) - 1

    def _add_buffer(self, data: bytes, target: int | None = None) -> int:
        return self._append("bufferViews", self._padded(data) | ({} if target is None else {"target": target}))

    def _padded(self, data: bytes) -> dict[str, Any]:
        """Appends bytes to the buffer of the file, and says where they are."""
        view = {"buffer": 0, "byteOffset": self._size, "byteLength": len(data)}
        padded = data + b"\0" * (-len(data) % 4)  # accessors must start at multiples of their component size
        self._chunks.append(padded)
        self._size += len(padded)
        return view

    def _add_accessor(self, array: np.ndarray, kind: str, target: int) -> int:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        accessor = {"bufferView": self._add_buffer(array.tobytes(), target), "type": kind, "count": len(array)}
        return self._append("accessors", accessor | {"componentType": _COMPONENT[array.dtype.name]})

    def _add_packed(self, packed: PackedBuffer, kind: str, target: int) -> int:
        """An accessor of a buffer that meshopt packed."""
        self._require(_MESHOPT)
        values = packed.values
        data = self._padded(packed.data)
        stride = values.nbytes // len(values)
        extension: dict[str, Any] = {**data, "byteStride": stride, "count": len(values), "mode": packed.mode}
        extension |= {} if packed.filter is None else {"filter": packed.filter}
        view: dict[str, Any] = {
            "buffer": 1,
            "byteOffset": self._unpacked_size,
            "byteLength": values.nbytes,
            "target": target,
        }
        view |= {"byteStride": stride} if target == _VERTEX_TARGET else {}
        self._unpacked_size += values.nbytes + -values.nbytes % 4
        accessor: dict[str, Any] = {
            "bufferView": self._append("bufferViews", view | {"extensions": {_MESHOPT: extension}})
        }
        accessor |= {"type": kind, "count": len(values), "componentType": _COMPONENT[values.dtype.name]}
        return self._append("accessors", accessor)

    def _add_floats(self, values: np.ndarray, kind: str, bits: int | None) -> int:
        """An accessor of float32 (N, k), packed to `bits` a value unless that is None."""
        if bits is None:
            return self._add_accessor(values.astype(np.float32), kind, _VERTEX_TARGET)
        return self._add_packed(packed_floats(values, bits), kind, _VERTEX_TARGET)

    def _add_positions(self, vertices: np.ndarray, packed: bool) -> int:
        vertices = vertices.astype(np.float32)
        if packed:
            buffer = packed_floats(vertices, POSITION_BITS)
            vertices, index = buffer.values, self._add_packed(buffer, "VEC3", _VERTEX_TARGET)
        else:
            index = self._add_floats(vertices, "VEC3", None)
        self._document["accessors"][index] |= _bounds(vertices)
        return index

    def _draco_triangles(
        self, vertices: np.ndarray, faces: np.ndarray, material: int, uv: np.ndarray
    ) -> dict[str, Any]:
        """A primitive whose accessors have no bytes: they say what Draco's data unpacks to."""
        self._require(_DRACO)
        mesh = draco_mesh(vertices, faces, uv)
        count, float32 = len(mesh.vertices), _COMPONENT["float32"]
        position = {"type": "VEC3", "count": count, "componentType": float32, **_bounds(mesh.vertices)}
        index_type = _COMPONENT[np.dtype(_index_type(count)).name]
        indices = {"type": "SCALAR", "count": 3 * mesh.num_faces, "componentType": index_type}
        attributes = {
            "POSITION": self._append("accessors", position),
            "TEXCOORD_0": self._append("accessors", {"type": "VEC2", "count": count, "componentType": float32}),
        }
        extension = {"bufferView": self._add_buffer(mesh.data), "attributes": mesh.attributes}
        primitive = {"attributes": attributes, "indices": self._append("accessors", indices), "material": material}
        return primitive | {"mode": _TRIANGLES, "extensions": {_DRACO: extension}}

    def _require(self, extension: str) -> None:
        for kind in ("extensionsUsed", "extensionsRequired"):
            if extension not in self._document.setdefault(kind, []):
                self._document[kind].append(extension)


def _index_type(num_vertices: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if num_vertices < 65536 else np.uint32


def _bounds(vertices: np.ndarray) -> dict[str, list[float]]:
    return {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
