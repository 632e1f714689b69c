"""Rendered scenes with exact geometry: for training, tests, the demo scene and quality limits."""

from .aerial import render_aerial as render_aerial
from .aerial import render_rings as render_rings
from .draws import RESERVED_SEEDS as RESERVED_SEEDS
from .ideal import ideal_correspondences as ideal_correspondences
from .ideal import ideal_pair_prediction as ideal_pair_prediction
from .ideal import ideal_pair_predictions as ideal_pair_predictions
from .ideal import reproject as reproject
from .ideal import visible_in as visible_in
from .orbit import RenderedScene as RenderedScene
from .orbit import render_orbit as render_orbit
from .pairs import PairBatch as PairBatch
from .pairs import correspond as correspond
from .pairs import render_pairs as render_pairs
