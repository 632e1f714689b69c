"""Depth of all pixels without the grid of anchors, from views that agree; confidence by what they agree on.

    observations    matches and tracks -> log depth of single pixels
    field           the factor of the predicted depth: smooth on surfaces, free at edges, solved on all pixels
    agreement       what neighbours say of each pixel's depth, as further observations of the field
    edges           depth edges moved onto those of the photo
    trust           confidence by confirmation and contradiction; contradicted points removed

`agree` runs them in this order (docs/method.md, Dense depth); modules `*_triton` and `*_cuda` hold the same for CUDA
devices. `sky_of` finds the sky in what they leave.
"""

from mast3r_sfm.dense.observations import TrackedPixels as TrackedPixels
from mast3r_sfm.dense.observations import tracked_pixels as tracked_pixels
from mast3r_sfm.dense.scene import DenseResult as DenseResult
from mast3r_sfm.dense.scene import DenseScene as DenseScene
from mast3r_sfm.dense.sky import sky_of as sky_of
from mast3r_sfm.dense.stage import agree as agree
from mast3r_sfm.dense.views import DenseCameras as DenseCameras
