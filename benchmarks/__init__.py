"""Measurements; every figure of RESULTS.md names the command that made it."""
