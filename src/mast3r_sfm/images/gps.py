"""Where a photo was taken, from its EXIF (EXIF 2.32, GPS attribute information)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mast3r_sfm.types import GpsFix

_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4
_ALTITUDE_REF, _ALTITUDE, _STATUS, _ERROR_M = 5, 6, 9, 31
_BELOW_SEA = (1, 3)  # 2 and 3: above and below the ellipsoid, by EXIF 3


def gps_from_exif(tags: Mapping[int, Any]) -> GpsFix | None:
    """The fix that the tags of the GPS directory state; None without a latitude and a longitude that make sense.

    A receiver that says that it measures nothing (status V), and the place 0, 0, which some write then, are no fix.
    """
    latitude = _degrees(tags.get(_LATITUDE), _text(tags.get(_LATITUDE_REF)), "N", "S", 90.0)
    longitude = _degrees(tags.get(_LONGITUDE), _text(tags.get(_LONGITUDE_REF)), "E", "W", 180.0)
    if latitude is None or longitude is None or _text(tags.get(_STATUS)) == "V" or latitude == longitude == 0.0:
        return None
    altitude, error = _number(tags.get(_ALTITUDE)), _number(tags.get(_ERROR_M))
    reference = tags.get(_ALTITUDE_REF, 0)
    if (
        altitude is not None
        and (reference[0] if isinstance(reference, bytes) and reference else reference) in _BELOW_SEA
    ):
        altitude = -altitude
    return GpsFix(latitude, longitude, altitude, error if error is not None and error > 0 else None)


def _degrees(value: Any, reference: str, positive: str, negative: str, limit: float) -> float | None:
    """Degrees, minutes and seconds with their hemisphere as degrees; None for nonsense."""
    if not isinstance(value, tuple) or len(value) != 3 or reference not in (positive, negative):
        return None
    parts = [_number(part) for part in value]
    if any(part is None or part < 0 for part in parts):
        return None
    degrees = sum(part / 60**k for k, part in enumerate(parts) if part is not None)
    return None if degrees > limit else math.copysign(degrees, 1 if reference == positive else -1)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    return value.strip("\0 ").upper() if isinstance(value, str) else ""
