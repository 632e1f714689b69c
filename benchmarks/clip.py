"""A clip of a minute, 1920x1080, 30 pictures a second: a walk around things in a rendered room, with true cameras.

    python -m benchmarks.clip --output FOLDER [--device cuda]
    mast3r-sfm reconstruct --input FOLDER/orbit.mp4 --output RESULT --model-name small --device cpu
    mast3r-sfm evaluate RESULT --truth FOLDER/truth.json

Five pictures a second are rendered, and each stands for a fifth of one: on a CPU core a picture takes half a minute, so
this is work for a GPU. Pictures that FOLDER/pictures holds already are taken as they are, so a run that was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from synthetic.cameras import clamp_to_hull, look_at
from synthetic.compose import clear_view, compose
from synthetic.draws import Draws
from synthetic.layout import Scenes
from synthetic.orbit import orbit_cameras, render_views
from synthetic.photo import draw_effects

SEED = 910_001
SIZE = (1920, 1080)
FOV_DEG = 66.0
NUM_RENDERED = 300
PICTURES_EACH = 6
FPS = 30
SAMPLES = 2
_QUALITY = 92


class Walk(NamedTuple):
    """A room and the n cameras that go once around what stands in it: eye (1, n, 3), rotation (1, n, 3, 3)."""

    scenes: Scenes
    eye: torch.Tensor
    rotation: torch.Tensor
    draws: Draws


def walk(num: int, seed: int = SEED) -> Walk:
    """The way of a hand that carries the camera: a circle with slow waves of some centimetres and half a degree."""
    draws = Draws(seed, 1)
    outdoor = torch.full_like(draws.chance(0.3), False)
    scenes = compose(draws, outdoor)
    turn = 2 * math.pi * torch.arange(num) / num
    azimuth = draws.uniform(0, 2 * math.pi, 1) + turn
    eye, rotation = orbit_cameras(draws, scenes, outdoor, azimuth, jitter=0)
    target = eye + 2 * rotation[..., :, 2] + _waves(turn, (0.06, 5, 0), (0.05, 8, 1), (0.06, 6, 2))
    eye = clamp_to_hull(scenes, eye + _waves(turn, (0.05, 7, 1), (0.04, 11, 0), (0.05, 9, 2)))
    return Walk(scenes, eye, look_at(eye, target, (0.01 * torch.sin(10 * turn))[None]), draws)


def _waves(turn: torch.Tensor, *waves: tuple[float, float, float]) -> torch.Tensor:
    """(1, n, 3) metres; a wave along each axis: its height, how often it comes in a turn, its phase."""
    return torch.stack([height * torch.sin(often * turn + phase) for height, often, phase in waves], -1)[None]


def render_pictures(folder: Path, num: int, size: tuple[int, int], device: str) -> list[Path]:
    """The pictures of the walk as JPEG files, those that are there left as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes, eye, rotation, draws = walk(num)
    effects, scenes = draw_effects(draws, num, 0.0), clear_view(scenes, eye)
    files = [folder / f"{k:04d}.jpg" for k in range(num)]
    for k, file in enumerate(files):
        if not file.exists():
            view = render_views(
                scenes, eye, rotation, focal_px(size), effects, size, device, samples=SAMPLES, views=[k]
            )
            Image.fromarray(view.rgb[0].cpu().numpy()).save(file, quality=_QUALITY)
            print(file, flush=True)
    return files


def focal_px(size: tuple[int, int]) -> float:
    return 0.5 * max(size) / math.tan(math.radians(FOV_DEG) / 2)


def truth(num: int, size: tuple[int, int], stem: str) -> dict[str, object]:
    """`truth.json` for the frames that may be taken of the clip: named after the clip and the number of the picture."""
    _, eye, rotation, _ = walk(num)
    K = [[focal_px(size), 0.0, (size[0] - 1) / 2], [0.0, focal_px(size), (size[1] - 1) / 2], [0.0, 0.0, 1.0]]
    poses = np.tile(np.eye(4), (num, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotation[0].numpy(), eye[0].numpy()
    views = [
        {"file": f"{stem}_{number:06d}.jpg", "world_from_cam": poses[number // PICTURES_EACH].tolist()}
        for number in range(num * PICTURES_EACH)
    ]
    return {"size": size, "K": K, "views": views}


def write_clip(path: Path, files: Sequence[Path]) -> None:
    """H.264 of the pictures, each `PICTURES_EACH` times."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height = Image.open(files[0]).size
        stream.pix_fmt = "yuv420p"
        for file in files:
            picture = np.asarray(Image.open(file))
            for _ in range(PICTURES_EACH):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rendered", type=int, default=NUM_RENDERED, help="pictures that are rendered")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("W", "H"))
    given = parser.parse_args(arguments)
    size = (given.size[0], given.size[1])
    files = render_pictures(given.output / "pictures", given.rendered, size, given.device)
    write_clip(given.output / "orbit.mp4", files)
    (given.output / "truth.json").write_text(json.dumps(truth(given.rendered, size, "orbit")) + "\n")


if __name__ == "__main__":
    main()
