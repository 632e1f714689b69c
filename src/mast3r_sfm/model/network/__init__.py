"""The two-view network of MASt3R and DUSt3R, in plain torch."""

from mast3r_sfm.model.network.heads import HeadOutput as HeadOutput
from mast3r_sfm.model.network.two_view import TwoViewNetwork as TwoViewNetwork
