"""Renders the demo scene: ten photos with EXIF focal length, and the true cameras in truth.json.

    python -m training.make_demo --output demo_data

The seed lies below `synthetic.RESERVED_SEEDS`: no model is trained on it.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from synthetic import render_orbit

SEED = 302
ITEMS = ("round table", "chair", "planter", "vessels", "shelf")
NUM_VIEWS = 10
DEGREES = 140.0
SIZE = (1024, 768)
FOCAL_35MM = 28
FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
SENSOR_DIAGONAL_MM = 7.66  # of a 1/2.3 inch sensor, for the FocalLength tag
FOCAL_PX = FOCAL_35MM * math.hypot(*SIZE) / FULL_FRAME_DIAGONAL_MM
SAMPLES = 2
OCTAVES = 6
JPEG_QUALITY = 90


def render_view(view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rgb (H, W, 3) uint8, K (3, 3) and world_from_cam (4, 4) of one view of the demo scene."""
    torch.set_num_threads(1)
    fov_deg = math.degrees(2 * math.atan(0.5 * max(SIZE) / FOCAL_PX))
    scene = render_orbit(
        SEED,
        NUM_VIEWS,
        SIZE,
        DEGREES,
        outdoor=False,
        fov_deg=fov_deg,
        samples=SAMPLES,
        effects=0.1,
        octaves=OCTAVES,
        items=ITEMS,
        views=[view],
    )
    return scene.rgb[0].numpy(), scene.K[0].numpy(), scene.world_from_cam[0].numpy()


def save_photo(rgb: np.ndarray, path: Path) -> None:
    """Writes a JPEG with the EXIF tags that a phone would write of its lens."""
    image = Image.fromarray(rgb)
    exif = image.getexif()
    exif[0x010F], exif[0x0110] = "mast3r-sfm", "synthetic camera"
    details = exif.get_ifd(0x8769)
    details[0x920A] = FOCAL_35MM * SENSOR_DIAGONAL_MM / FULL_FRAME_DIAGONAL_MM
    details[0xA405] = FOCAL_35MM
    image.save(path, quality=JPEG_QUALITY, exif=exif)


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("demo_data"))
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True)
def main(output: Path, processes: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    truth = []
    with ProcessPoolExecutor(processes) as pool:
        for view, (rgb, K, world_from_cam) in enumerate(pool.map(render_view, range(NUM_VIEWS))):
            name = f"view_{view:02d}.jpg"
            save_photo(rgb, output / name)
            truth.append({"file": name, "K": K.tolist(), "world_from_cam": world_from_cam.tolist()})
            click.echo(f"{output / name}")
    content = {
        "convention": "OpenCV axes, camera-to-world, pixel centres at integers, metres; the world's y axis points down",
        "size": list(SIZE),
        "views": truth,
    }
    (output / "truth.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
