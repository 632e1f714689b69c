"""Other ways to a reconstruction: the published packages as an independent witness, and the comparison with them."""
