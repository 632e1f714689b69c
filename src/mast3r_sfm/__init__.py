"""Uncalibrated photos in; cameras, depth and a 3D scene out."""

__version__ = "0.1.0"
