"""The code specific to each framework: modules and hooks, attention, and state between blocks."""
