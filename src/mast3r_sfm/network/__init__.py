"""The two-view network of MASt3R and DUSt3R, in plain torch."""

from mast3r_sfm.network.heads import HeadOutput as HeadOutput
from mast3r_sfm.network.two_view import TwoViewNetwork as TwoViewNetwork
