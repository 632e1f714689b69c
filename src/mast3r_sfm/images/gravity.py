"""Which way is down in a photo, where its EXIF says so: telephones of Apple write what their accelerometer measured."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from mast3r_sfm.images.decoding import quiet_pillow

_ORIENTATION, _EXIF_IFD, _MAKER_NOTE, _LENS_MODEL = 0x0112, 0x8769, 0x927C, 0xA434
_ACCELERATION = 0x0008
_SIGNED_RATIONAL = 10
_APPLE = b"Apple iOS\0"
_IFD_OFFSET = 14  # of the directory in Apple's note, whose offsets count from the start of the note

# (x, y) of the photo as it is shown from the telephone held upright, x right and y down, by EXIF orientation
_SHOWN_FROM_UPRIGHT = {1: ((0, 1), (-1, 0)), 3: ((0, -1), (1, 0)), 6: ((1, 0), (0, 1)), 8: ((-1, 0), (0, -1))}


def gravity_of_photo(file: str | Path) -> np.ndarray | None:
    """(3,) unit vector of the camera's frame (x right, y down, z forward) that points down; None if unknown.

    Unknown is also what cannot be read: the scene is written all the same.
    """
    try:
        with quiet_pillow(), Image.open(Path(file)) as image:
            exif = image.getexif()
            details = exif.get_ifd(_EXIF_IFD)
    except Exception:  # as in `decode_image`: image libraries raise nearly any type
        return None
    if "front" in str(details.get(_LENS_MODEL, "")).lower():
        return None  # it looks the other way
    note = details.get(_MAKER_NOTE)
    return gravity_of_note(note, exif.get(_ORIENTATION, 1)) if isinstance(note, bytes) else None


def gravity_of_note(note: bytes, orientation: int) -> np.ndarray | None:
    """Gravity as `gravity_of_photo` gives it, from Apple's note and the EXIF orientation of a photo of the back camera.

    The note has the acceleration in units of g and in axes of the screen: x right, y up, z out of it. At rest it points
    down.
    """
    axes = _SHOWN_FROM_UPRIGHT.get(orientation)
    acceleration = _acceleration(note)
    if axes is None or acceleration is None or not 0.8 < np.linalg.norm(acceleration) < 1.2:  # moved, or in free fall
        return None
    x, y, z = acceleration
    upright = np.array([x, -y])
    down = np.array([*(np.array(axes) @ upright), -z])
    return down / np.linalg.norm(down)


def _acceleration(note: bytes) -> np.ndarray | None:
    """(3,) of the note's entry, None without one."""
    if not note.startswith(_APPLE) or note[12:14] not in (b"MM", b"II"):
        return None
    order = ">" if note[12:14] == b"MM" else "<"
    try:
        (count,) = struct.unpack_from(order + "H", note, _IFD_OFFSET)
        for k in range(count):
            tag, kind, number, offset = struct.unpack_from(order + "HHII", note, _IFD_OFFSET + 2 + 12 * k)
            if (tag, kind, number) == (_ACCELERATION, _SIGNED_RATIONAL, 3):
                values = np.array(struct.unpack_from(order + "6i", note, offset), dtype=np.float64).reshape(3, 2)
                return values[:, 0] / values[:, 1] if (values[:, 1] != 0).all() else None
    except struct.error:
        pass
    return None
