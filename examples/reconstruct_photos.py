"""Photos in, a result folder out, with a line per stage: `python examples/reconstruct_photos.py PHOTOS RESULT`."""

from __future__ import annotations

import sys

from mast3r_sfm import load_images, load_model, reconstruct


def show(stage: str, done: int, total: int) -> None:
    """Called as the work goes on; the library itself prints nothing."""
    if done in (0, total):
        print(f"{stage}: {done} of {total}")


def main(photos: str, output: str) -> None:
    model = load_model("small")  # no name: the published model, downloaded once
    images = load_images(photos, model)
    result = reconstruct(images, model, progress=show)
    for view in result.registered:
        x, y, z = view.world_from_cam[:3, 3]
        print(f"{view.file}: focal length {view.K_original[0, 0]:.0f} px, camera at {x:.2f}, {y:.2f}, {z:.2f}")
    result.save(output, overwrite=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
