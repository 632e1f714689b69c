"""How a batch of scenes is packed into tensors: column names of the tables that the ray caster reads.

World frame: metres, y points down, the cluster of objects stands on the floor around the y axis.
A scene has `NUM_SOLIDS` convex primitives, `NUM_LEAVES` porous ellipsoids (foliage) and a hull: the six
faces of a room, or a terrain under the sky. A surface id names the object, the hull face, or the sky.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

NUM_ITEMS, SLOTS_PER_ITEM = 5, 6
NUM_SOLIDS = NUM_ITEMS * SLOTS_PER_ITEM
NUM_LEAVES = 6
NUM_OBJECTS = NUM_SOLIDS + NUM_LEAVES
FACE_X0, FACE_X1, FACE_CEILING, FACE_FLOOR, FACE_Z0, FACE_Z1 = range(NUM_OBJECTS, NUM_OBJECTS + 6)
SKY = NUM_OBJECTS + 6
UNKNOWN = SKY + 1
"""What is seen has no truth: a reflection, or something that hides the scene in one view."""
NUM_SURFACES = NUM_OBJECTS + 6  # rows of the material table; the sky has none

# Shapes in local coordinates u = A (x - centre), |u_y| <= 1:
BOX = 0.0  # |u_x| <= p0 + p1 u_y and |u_z| <= p2 + p3 u_y: boxes, gables, pyramids, ramps
ROUND = 1.0  # u_x^2 + u_z^2 <= p0 + p1 u_y + p2 u_y^2: ellipsoids, cylinders, cones


class ObjectColumns:
    """Columns of `Scenes.objects`."""

    A = 0  # 9 numbers, row-major: local from world
    CENTRE = 9  # 3
    HALF_SIZE = 12  # 3, metres for one local unit
    SHAPE = 15
    PROFILE = 16  # 4
    ACTIVE = 20
    BOUND = 21  # radius of the bounding sphere, metres
    WIDTH = 22


class MaterialColumns:
    """Columns of `Scenes.materials`."""

    COLOUR = 0  # 9: three colours
    PATTERN = 9  # which pattern
    PATTERN_FREQUENCY = 10  # cells per metre
    NOISE_FREQUENCY = 11  # cells per metre of the coarsest octave
    NOISE_DECAY = 12  # amplitude of an octave over the one before
    NOISE_CONTRAST = 13
    DIRECTION = 14  # 3, unit: of stripes
    OFFSET = 17  # 3, metres: moves the texture about
    SEED = 20
    CELL_CONTRAST = 21
    GLOSS = 22  # strength of the highlight
    SHININESS = 23  # its exponent
    WIDTH = 24


class LightColumns:
    """Columns of `Scenes.lights`."""

    SUN = 0  # 3, unit: towards the light that casts shadows
    FILL = 3  # 3, unit: towards the second light
    AMBIENT = 6
    SUN_STRENGTH = 7
    FILL_STRENGTH = 8
    SUN_COLOUR = 9  # 3
    SKY_COLOUR = 12  # 3: of the ambient light from above, and of the zenith
    HORIZON = 15  # 3
    CLOUDS = 18  # 0 to 1
    SEED = 19
    WIDTH = 20


class Scenes(NamedTuple):
    """A batch of B scenes, float32, in the order in which the kernels of `shading_triton` take the tables.

    half       (B, 3) half extents of the hull, metres: walls, ceiling and floor lie at +-half
    outdoor    (B,) 1 where the hull is a terrain under the sky, else 0
    terrain    (B, 4, 4) waves of the ground: amplitude (m), k_x, k_z (rad/m), phase
    objects    (B, NUM_OBJECTS, ObjectColumns.WIDTH)
    materials  (B, NUM_SURFACES, MaterialColumns.WIDTH)
    lights     (B, LightColumns.WIDTH)
    """

    half: torch.Tensor
    outdoor: torch.Tensor
    terrain: torch.Tensor
    objects: torch.Tensor
    materials: torch.Tensor
    lights: torch.Tensor

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(*(tensor.to(device, non_blocking=True) for tensor in self))

    def rows(self, start: int, stop: int) -> Scenes:
        """The scenes start ... stop - 1."""
        return Scenes(*(tensor[start:stop] for tensor in self))


TERRAIN_RADIUS = 16.0
"""Beyond this distance from the world's y axis (metres) the ground flattens out, so that horizons are well-behaved."""


def _flattening(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    far = (x * x + z * z) * (1 / TERRAIN_RADIUS**2)
    return 1 / (1 + far * far)


def terrain_height(terrain: torch.Tensor, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Height of the ground above the floor plane (metres, upwards) at x, z of shape (B, n)."""
    height = torch.zeros_like(x)
    for wave in range(terrain.shape[1]):
        amplitude, k_x, k_z, phase = (terrain[:, wave, c, None] for c in range(4))
        height = height + amplitude * torch.sin(k_x * x + k_z * z + phase)
    return height * _flattening(x, z)


def terrain_slope(terrain: torch.Tensor, x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Derivatives of the ground's height by x and by z, (B, n) each; the slow flattening counts as constant."""
    slope_x, slope_z = torch.zeros_like(x), torch.zeros_like(x)
    for wave in range(terrain.shape[1]):
        amplitude, k_x, k_z, phase = (terrain[:, wave, c, None] for c in range(4))
        cosine = amplitude * torch.cos(k_x * x + k_z * z + phase)
        slope_x, slope_z = slope_x + k_x * cosine, slope_z + k_z * cosine
    flattening = _flattening(x, z)
    return slope_x * flattening, slope_z * flattening
