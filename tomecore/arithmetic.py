"""The old path of :mod:`tomecore.schedule.arithmetic`."""

from tomecore.schedule.arithmetic import (
    Arithmetic,
    LayerArithmetic,
    PlannedLayer,
    arithmetic_of,
    plan_table,
)

__all__ = ["Arithmetic", "LayerArithmetic", "PlannedLayer", "arithmetic_of", "plan_table"]
