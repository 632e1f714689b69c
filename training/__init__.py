"""Training of the bundled model on rendered scenes. Run from the repository's root: `python -m training.train --help`."""
