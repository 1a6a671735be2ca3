"""Your own array library: a few lines make it fast, and none are needed to make it right.

A library that follows the array API standard works as it is, with a scatter of the standard, and `check`
tells whether it does. Here the library is made up: NumPy arrays that say which library they belong to, and
count the scatters. In your own, scatter_add is one call of your library.

    python examples/custom_backend.py
"""

import array_api_compat.numpy as xp
import numpy as np

import tomecore as tc
from tomecore.backends import Backend, check, register


class MyArray(np.ndarray):
    """Arrays of mylib. tomecore goes by the module of the class, and by that of its bases."""

    __module__ = "mylib"


def asarray(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).view(MyArray)


calls = []


def scatter_add(base, index, updates):
    """(B, n, C), (B, r), (B, r, C) -> a new (B, n, C); repeated indices accumulate."""
    calls.append(index.shape)
    found = base.copy()  # never in place: `base` is the caller's
    np.add.at(found, (np.arange(len(index))[:, None], index), updates)
    return found


def main() -> None:
    check(Backend("mylib", xp, scatter_add))  # raises with all that is missing or wrong
    calls.clear()
    register("mylib", lambda: Backend("mylib", xp, scatter_add))
    generator = np.random.default_rng(0)
    keys, tokens = (generator.standard_normal((2, 197, 32)) for _ in "kx")
    plan = tc.bipartite_soft_matching(asarray(keys), r=16, protected=1)
    merged, sizes = tc.merge_weighted(plan, asarray(tokens))
    expected, _ = tc.merge_weighted(tc.bipartite_soft_matching(keys, r=16, protected=1), tokens)
    print("tokens:", tokens.shape[1], "->", merged.shape[1], "of", type(merged).__name__)
    print("sizes sum to the tokens there were:", float(sizes.sum(-1)[0]))
    print("the same as NumPy, to the last bit:", bool((merged == expected).all()))
    print("scatters by mylib:", len(calls))


if __name__ == "__main__":
    main()
