"""Measure what merging costs in accuracy and gains in speed, on a user's own model and images.

    result = evaluate(model, images, labels, [8, 16, (16, -1)])
    result.rows[2].top1, result.rows[2].agreement, result.rows[2].speedup

``images`` are arrays or a folder (:func:`find`); ``tomecore evaluate`` does the same on the command line.
"""

from tomecore.evaluation._batch import outputs_of
from tomecore.evaluation._data import Found, find, read_names
from tomecore.evaluation._device import put_on
from tomecore.evaluation._pictures import Pictures, evenly_spread
from tomecore.evaluation._plot import draw
from tomecore.evaluation._result import Result, Row
from tomecore.evaluation._run import evaluate

__all__ = [
    "Found",
    "Pictures",
    "Result",
    "Row",
    "draw",
    "evaluate",
    "evenly_spread",
    "find",
    "outputs_of",
    "put_on",
    "read_names",
]
