"""From the dense descriptors of a pair to its matches, and which of them its geometry confirms.

`match_pairs` finds them (`RepeatedMatching` for many batches), `verify_batch` keeps those that both predictions of a
pair confirm; `match_pair` and `verify_matches` are the same for one pair.
"""

from mast3r_sfm.matching.geometric_check import verify_batch as verify_batch
from mast3r_sfm.matching.geometric_check import verify_matches as verify_matches
from mast3r_sfm.matching.pairs import RepeatedMatching as RepeatedMatching
from mast3r_sfm.matching.pairs import match_pair as match_pair
from mast3r_sfm.matching.pairs import match_pairs as match_pairs
