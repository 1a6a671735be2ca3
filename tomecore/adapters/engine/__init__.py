"""The patch of any model in any framework: found, checked, swapped; and the forward pass that merges."""
