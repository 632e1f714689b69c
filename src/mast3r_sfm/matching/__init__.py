"""From the dense descriptors of a pair to its matches, and which of them its geometry confirms."""
