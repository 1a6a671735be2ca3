"""Patch models of every framework: find the blocks, check them, swap their classes; and merge tokens."""
