"""Decide how many tokens each layer merges: every form of ``r``, rules for a target, and the arithmetic.

model.r = schedule.Ratio(0.9)
model.r = schedule.for_tokens(model, last=98)
model.r = schedule.for_speedup(model, 2.0)
"""

from __future__ import annotations

from tomecore.schedule.parse import R, Schedule, as_data, parse_r, tokens_per_layer
from tomecore.schedule.rules import ForSpeedup, ForTokens, Ratio, for_speedup, for_tokens

__all__ = [
    "ForSpeedup",
    "ForTokens",
    "R",
    "Ratio",
    "Schedule",
    "as_data",
    "for_speedup",
    "for_tokens",
    "parse_r",
    "tokens_per_layer",
]
