"""Depth of all pixels without the grid of anchors, from views that agree; confidence by what they agree on.

    observations    matches and tracks -> log depth of single pixels
    field           the factor of the predicted depth: smooth on surfaces, free at edges, solved on all pixels
    agreement       what neighbours say of each pixel's depth, as further observations of the field
    edges           depth edges moved onto those of the photo
    trust           confidence by confirmation and contradiction; contradicted points removed

`agreed_depth` runs them in this order (docs/method.md, Dense depth). `sky_of` finds the sky in what they leave.
"""

from mast3r_sfm.dense.observations import observe as observe
from mast3r_sfm.dense.observations import sightings_of_matches as sightings_of_matches
from mast3r_sfm.dense.observations import tracked_pixels as tracked_pixels
from mast3r_sfm.dense.sky import sky_of as sky_of
from mast3r_sfm.dense.stage import DenseResult as DenseResult
from mast3r_sfm.dense.stage import agreed_depth as agreed_depth
from mast3r_sfm.dense.views import DenseView as DenseView
