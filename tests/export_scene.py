"""Small reconstructions with known answers, and a reader of GLB files that knows nothing of the writer."""

import dataclasses
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.types import Correspondences, ImageTransform, ReconstructedView


def view(
    depth: npt.ArrayLike,
    conf: npt.ArrayLike = 10.0,
    index: int = 0,
    pose: np.ndarray | None = None,
    rgb: np.ndarray | None = None,
    focal: float = 10.0,
    **changes: Any,
) -> ReconstructedView:
    """A view with the principal point in the middle of its image; `conf` is a number or a map."""
    depth = np.asarray(depth, dtype=np.float32)
    H, W = depth.shape
    if rgb is None:
        y, x = np.mgrid[:H, :W]
        rgb = np.stack([x * 255 // W, y * 255 // H, np.full_like(x, 40 * index)], -1)
    conf = np.broadcast_to(np.asarray(conf, dtype=np.float32), depth.shape).copy()
    made = ReconstructedView(
        index=index,
        file=f"photos/img {index}.jpg",
        transform=ImageTransform((2 * W, 2 * H), (W, H), (0, 0), (W, H)),
        rgb=rgb.astype(np.uint8),
        registered=True,
        K=np.array([[focal, 0, (W - 1) / 2], [0, focal, (H - 1) / 2], [0, 0, 1]]),
        world_from_cam=np.eye(4) if pose is None else pose,
        depth=depth,
        conf=conf,
        conf_clean=conf.copy(),
        median_reprojection_error_px=0.5,
        num_matches=3,
    )
    return dataclasses.replace(made, **changes)


def pose(degrees_about_y: float, centre: Sequence[float]) -> np.ndarray:
    """Camera-to-world: turned about the world's y axis, then put at `centre`."""
    c, s = np.cos(np.radians(degrees_about_y)), np.sin(np.radians(degrees_about_y))
    matrix = np.eye(4)
    matrix[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    matrix[:3, 3] = centre
    return matrix


def matches(i: int, j: int, xy_i: npt.ArrayLike, xy_j: npt.ArrayLike, conf: Sequence[float]) -> Correspondences:
    return Correspondences(
        i,
        j,
        torch.tensor(xy_i, dtype=torch.int32).reshape(-1, 2),
        torch.tensor(xy_j, dtype=torch.int32).reshape(-1, 2),
        torch.tensor(conf, dtype=torch.float32),
    )


def two_views() -> Reconstruction:
    """A plane at depth 2 seen by two cameras, 0.5 apart, with three matches."""
    views = (
        view(np.full((12, 16), 2.0)),
        view(np.full((12, 16), 2.0), index=1, pose=pose(0, [0.5, 0, 0])),
    )
    pair = matches(0, 1, [[4, 1], [5, 2], [6, 3]], [[2, 1], [3, 2], [4, 3]], [0.5, 1.5, 2.5])
    return Reconstruction(views, (pair,))


@dataclasses.dataclass
class Glb:
    """A parsed file: the JSON document and the bytes of its only buffer."""

    document: dict[str, Any]
    binary: bytes

    def array(self, accessor: int) -> np.ndarray:
        """An accessor's content; checks that it lies in its buffer view, aligned, and that its bounds are true."""
        a = self.document["accessors"][accessor]
        v = self.document["bufferViews"][a["bufferView"]]
        dtype = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[a["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[a["type"]]
        assert v["byteOffset"] % 4 == 0
        assert v["byteOffset"] + v["byteLength"] <= len(self.binary)
        values = np.frombuffer(self.binary, dtype, a["count"] * width, v["byteOffset"]).reshape(-1, width)
        assert values.nbytes == v["byteLength"]
        if "min" in a:
            assert a["min"] == values.min(0).tolist() and a["max"] == values.max(0).tolist()
        return values

    def matrix(self, node: dict[str, Any]) -> np.ndarray:
        """(4, 4) of a node's parent from the node."""
        return np.array(node.get("matrix", np.eye(4).T.ravel())).reshape(4, 4).T

    def primitives(self, group: str) -> list[dict[str, Any]]:
        """The primitives below the node of this name: dictionaries of arrays in the file's axes, and the material."""
        nodes = self.document["nodes"]
        found = [k for k in self.document["scenes"][0]["nodes"] if nodes[k]["name"] == group]
        return [one for k in found for one in self._below(nodes[k], np.eye(4))]

    def _below(self, node: dict[str, Any], parent: np.ndarray) -> list[dict[str, Any]]:
        matrix = parent @ self.matrix(node)
        result = []
        for p in self.document["meshes"][node["mesh"]]["primitives"] if "mesh" in node else []:
            one = {name: self.array(index) for name, index in p["attributes"].items()}
            one["POSITION"] = one["POSITION"] @ matrix[:3, :3].T + matrix[:3, 3]
            one["material"] = self.document["materials"][p["material"]]
            one["mode"] = p["mode"]
            if "indices" in p:
                one["faces"] = self.array(p["indices"]).reshape(-1, 3)
                assert one["faces"].max() < len(one["POSITION"])
            result.append(one)
        return result + [
            one for k in node.get("children", []) for one in self._below(self.document["nodes"][k], matrix)
        ]

    def texture(self, material: dict[str, Any]) -> np.ndarray:
        """(H, W, 3) uint8 RGB of a material's texture."""
        texture = self.document["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]
        v = self.document["bufferViews"][self.document["images"][texture["source"]]["bufferView"]]
        data = np.frombuffer(self.binary, np.uint8, v["byteLength"], v["byteOffset"])
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert picture is not None
        return picture[:, :, ::-1]


def read_glb(path: Path) -> Glb:
    """Parses the container of glTF 2.0: header, JSON chunk, binary chunk."""
    data = path.read_bytes()
    assert struct.unpack_from("<4sII", data) == (b"glTF", 2, len(data))
    length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and length % 4 == 0
    document = json.loads(data[20 : 20 + length])
    size, kind = struct.unpack_from("<I4s", data, 20 + length)
    assert kind == b"BIN\0" and size % 4 == 0
    binary = data[28 + length :]
    assert len(binary) == size == document["buffers"][0]["byteLength"]
    return Glb(document, binary)
