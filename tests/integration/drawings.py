"""Find images in drawings."""

from __future__ import annotations

import numpy as np

__all__ = ["times_in"]


def times_in(sheet: np.ndarray, part: np.ndarray) -> int:
    """How often a part is in a drawing, pixel by pixel."""
    height, width = part.shape[:2]
    probes = [(height // 2, width // 2)]  # a few pixels first, because this leaves few places
    probes += [
        (y, x) for y in range(0, height, 1 + height // 8) for x in range(0, width, 1 + width // 8)
    ]
    rows, columns = sheet.shape[0] - height + 1, sheet.shape[1] - width + 1
    starts = np.argwhere(np.ones((max(rows, 0), max(columns, 0)), dtype=bool))
    for y, x in probes:
        starts = starts[(sheet[starts[:, 0] + y, starts[:, 1] + x] == part[y, x]).all(-1)]
    found = (sheet[y : y + height, x : x + width] for y, x in starts)
    return sum(np.array_equal(one, part) for one in found)
