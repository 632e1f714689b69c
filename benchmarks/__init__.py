"""Measurements, run from the root of the repository: `python -m benchmarks.NAME`, its options with `--help`.

Every figure of RESULTS.md names the command that made it.
"""
