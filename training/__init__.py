"""Training of the bundled model on rendered scenes; from the root of the repository: `python -m training.train`."""
