"""From aligned cameras to exact ones: local features at the photos' resolution, tracks of them, bundle adjustment."""

from mast3r_sfm.tracks.adjusted import MIN_OBSERVATIONS as MIN_OBSERVATIONS
from mast3r_sfm.tracks.bundle import MIN_ANGLE_DEG as MIN_ANGLE_DEG
from mast3r_sfm.tracks.cameras import CameraGroup as CameraGroup
from mast3r_sfm.tracks.cameras import camera_group as camera_group
from mast3r_sfm.tracks.cameras import colmap_camera as colmap_camera
from mast3r_sfm.tracks.features import LocalFeatures as LocalFeatures
from mast3r_sfm.tracks.features import extract_features as extract_features
from mast3r_sfm.tracks.mapping import map_features as map_features
from mast3r_sfm.tracks.refinement import MAX_ERROR_PX as MAX_ERROR_PX
from mast3r_sfm.tracks.refinement import RefinedCameras as RefinedCameras
from mast3r_sfm.tracks.refinement import TrackView as TrackView
from mast3r_sfm.tracks.refinement import refine_cameras as refine_cameras
from mast3r_sfm.tracks.two_views import confirm_pair as confirm_pair
from mast3r_sfm.tracks.two_views import is_flat as is_flat
