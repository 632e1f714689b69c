"""Sparse global alignment: canonical views and matches in, cameras and depths out.

`build_problem` packs them, `align` optimises, `reprojection_errors` says how well the result fits.
"""

from mast3r_sfm.alignment.group import AlignedGroup as AlignedGroup
from mast3r_sfm.alignment.group import align_group as align_group
from mast3r_sfm.alignment.kinematic_tree import KinematicTree as KinematicTree
from mast3r_sfm.alignment.layout import CameraLayout as CameraLayout
from mast3r_sfm.alignment.problem import AlignmentProblem as AlignmentProblem
from mast3r_sfm.alignment.problem import build_problem as build_problem
from mast3r_sfm.alignment.reprojection import reprojection_errors as reprojection_errors
from mast3r_sfm.alignment.solver import AlignmentResult as AlignmentResult
from mast3r_sfm.alignment.solver import align as align
from mast3r_sfm.alignment.solver import num_iterations as num_iterations
from mast3r_sfm.options import AlignmentConfig as AlignmentConfig
