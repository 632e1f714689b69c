"""From aligned cameras to exact ones: local features at the photos' resolution, tracks of them, bundle adjustment."""

from mast3r_sfm.tracks.features import LocalFeatures as LocalFeatures
from mast3r_sfm.tracks.features import extract_features as extract_features
from mast3r_sfm.tracks.refinement import RefinedCameras as RefinedCameras
from mast3r_sfm.tracks.refinement import TrackView as TrackView
from mast3r_sfm.tracks.refinement import refine_cameras as refine_cameras
