"""The algorithm spelled a second time, as compiled kernels; README.md says why."""
