"""A merge as data: what a plan is, what merging by it computes, and the checks of arguments."""
