"""Stand-in for the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def load_images(folder_or_list: list[str], size: int) -> list[dict[str, Any]]:
    from mast3r_sfm.images import loading as images

    known = [path for path in folder_or_list if Path(path).suffix.lower() in (".jpg", ".jpeg", ".png")]
    views = images.load_views(known, images.ImageSizing.for_model(size, 16, False))
    return [
        {"img": view.tensor[None], "true_shape": np.int32([view.shape]), "idx": k, "instance": str(k)}
        for k, view in enumerate(views)
    ]
