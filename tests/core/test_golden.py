"""The published implementations' numbers: every case, on every library.

In float32 the decisions must be the same too. That is not luck: a test says that no decision of these
cases is closer than float32 can tell.
"""

from __future__ import annotations

import numpy as np


def test_float64(golden_case, library) -> None:
    golden_case.check(library, "float64", 1e-11)


def test_float32(golden_case, library) -> None:
    golden_case.check(library, "float32", 1e-5)


def test_no_near_ties(golden_case) -> None:
    keys = golden_case.arrays["metric"]
    keys = keys / np.linalg.norm(keys, axis=2, keepdims=True)
    tokens = np.arange(keys.shape[1])
    if golden_case.asked["kind"] == "kth":
        k = golden_case.asked["k"]
        sources, targets = tokens[tokens % k != k - 1], tokens[k - 1 :: k]
    else:
        free = tokens[golden_case.protected :]
        sources, targets = free[free % 2 == 0], free[free % 2 == 1]
    scores = np.sort(keys[:, sources] @ keys[:, targets].swapaxes(1, 2), axis=2)[:, :, ::-1]
    if len(targets) > 1:
        assert (scores[:, :, 0] - scores[:, :, 1]).min() > 1e-6
    if golden_case.asked["kind"] == "bipartite":
        best = np.sort(scores[:, :, 0], axis=1)
        assert np.diff(best, axis=1).min() > 1e-6


def test_all_cases_are_there(golden) -> None:
    arrays, cases = golden("merge")
    assert len(cases) == 81
    assert len({name.partition(".")[0] for name in arrays}) == len(cases)
