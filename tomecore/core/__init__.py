"""Represent a merge as data: the plan, merging and unmerging by it, and argument checks."""
