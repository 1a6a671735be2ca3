"""Matching and merging as two loops over memory, compiled by Numba."""
