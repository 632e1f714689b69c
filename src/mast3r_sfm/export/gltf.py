"""A writer of binary glTF 2.0 (GLB): just the parts a reconstructed scene needs.

All materials are unlit (KHR_materials_unlit), because the photos carry their light already, and double-sided.
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

_COMPONENT = {"uint16": 5123, "uint32": 5125, "float32": 5126}
_VERTEX_TARGET, _INDEX_TARGET = 34962, 34963
_POINTS, _TRIANGLES = 0, 4
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071


def linear_from_srgb(srgb: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1], float32, from uint8 sRGB of the same shape (IEC 61966-2-1)."""
    code = np.arange(256) / 255.0
    table = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return table.astype(np.float32)[srgb]


class GlbBuilder:
    """Collects meshes and writes them as one file. Every `add_` method returns the index of what it added."""

    def __init__(self, generator: str) -> None:
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

    def add_material(self, name: str, srgb: tuple[int, int, int] | None = None, texture: int | None = None) -> int:
        """A material of one colour (0..255), of a texture, or white for vertices that have colours."""
        surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        if srgb is not None:
            surface["baseColorFactor"] = [*linear_from_srgb(np.array(srgb)).tolist(), 1.0]
        if texture is not None:
            surface["baseColorTexture"] = {"index": texture}
        material = {"name": name, "pbrMetallicRoughness": surface, "doubleSided": True}
        return self._append("materials", material | {"extensions": {"KHR_materials_unlit": {}}})

    def triangles(
        self, vertices: np.ndarray, faces: np.ndarray, material: int, uv: np.ndarray | None = None
    ) -> dict[str, Any]:
        """A primitive of triangles for `add_mesh`.

        vertices  (N, 3) float32
        faces     (F, 3) indices, counter-clockwise seen from the front
        uv        (N, 2) texture coordinates, (0, 0) at the top left corner of the image
        """
        index_type = np.uint16 if len(vertices) < 65536 else np.uint32
        attributes = {"POSITION": self._add_positions(vertices)}
        if uv is not None:
            attributes["TEXCOORD_0"] = self._add_accessor(uv.astype(np.float32), "VEC2", _VERTEX_TARGET)
        indices = self._add_accessor(faces.astype(index_type).reshape(-1), "SCALAR", _INDEX_TARGET)
        return {"attributes": attributes, "indices": indices, "material": material, "mode": _TRIANGLES}

    def points(self, vertices: np.ndarray, srgb: np.ndarray, material: int) -> dict[str, Any]:
        """A primitive of points (N, 3) float32 with (N, 3) uint8 sRGB colours.

        Colours are stored as linear floats: 8 bits of linear light are too coarse for shadows, and trimesh reads
        16-bit colours wrongly.
        """
        attributes = {"POSITION": self._add_positions(vertices)}
        attributes["COLOR_0"] = self._add_accessor(linear_from_srgb(srgb), "VEC3", _VERTEX_TARGET)
        return {"attributes": attributes, "material": material, "mode": _POINTS}

    def add_mesh(self, name: str, primitives: list[dict[str, Any]]) -> int:
        """A node that shows `primitives`."""
        mesh = self._append("meshes", {"name": name, "primitives": primitives})
        return self._append("nodes", {"name": name, "mesh": mesh})

    def add_group(self, name: str, nodes: list[int]) -> None:
        """Puts `nodes` into the scene under one name, so that a viewer can hide them together."""
        if nodes:
            self._document["scenes"][0]["nodes"].append(self._append("nodes", {"name": name, "children": nodes}))

    def write(self, path: Path) -> int:
        """Writes the file and returns its size in bytes. Raises InputError above the format's limit of 4 GiB."""
        document = self._document | {"buffers": [{"byteLength": self._size}]}
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
        view = {"buffer": 0, "byteOffset": self._size, "byteLength": len(data)}
        padded = data + b"\0" * (-len(data) % 4)  # accessors must start at multiples of their component size
        self._chunks.append(padded)
        self._size += len(padded)
        return self._append("bufferViews", view | ({} if target is None else {"target": target}))

    def _add_accessor(self, array: np.ndarray, kind: str, target: int) -> int:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        accessor = {"bufferView": self._add_buffer(array.tobytes(), target), "type": kind, "count": len(array)}
        return self._append("accessors", accessor | {"componentType": _COMPONENT[array.dtype.name]})

    def _add_positions(self, vertices: np.ndarray) -> int:
        vertices = vertices.astype(np.float32)
        index = self._add_accessor(vertices, "VEC3", _VERTEX_TARGET)
        bounds = {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
        self._document["accessors"][index] |= bounds
        return index
