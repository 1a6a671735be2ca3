"""Matching and merging as four kernels for a GPU, compiled by Triton."""
