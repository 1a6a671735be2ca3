"""Decide how many tokens each layer merges: every form of ``r``, rules for a target, and the arithmetic.

    model.r = schedule.Ratio(0.9)
    model.r = schedule.for_tokens(model, last=98)
    model.r = schedule.for_speedup(model, 2.0)
    model.r = schedule.search(model, images, 2.0)

A number, a pair and a list need no function: ``model.r = 16``.
"""

from __future__ import annotations

from tomecore.schedule import gpu
from tomecore.schedule.parse import R, Schedule, as_data, parse_r, tokens_per_layer
from tomecore.schedule.rules import ForSpeedup, ForTokens, Ratio, for_speedup, for_tokens
from tomecore.schedule.saved import Tuned, load
from tomecore.schedule.search import Found, search, tune

__all__ = [
    "ForSpeedup",
    "ForTokens",
    "Found",
    "R",
    "Ratio",
    "Schedule",
    "Tuned",
    "as_data",
    "for_speedup",
    "for_tokens",
    "gpu",
    "load",
    "parse_r",
    "search",
    "tokens_per_layer",
    "tune",
]
