"""The published packages as an independent witness, and the comparison with them."""
